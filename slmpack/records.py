"""What travels between stages: frozen records, each holding its predecessor.

The last one therefore is the provenance of the whole. They carry ids, paths and numbers, never tensors or bytes.
"""

import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A value that does not change and has no field that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(StrEnum):
    """The hardware and precision a package is for."""

    TRANSFORMERS = "transformers"
    CPU_INT4 = "cpu-int4"
    CPU_INT8 = "cpu-int8"
    CUDA_INT4 = "cuda-int4"
    CUDA_FP16 = "cuda-fp16"

    @property
    def provider(self) -> "Provider":
        """The execution provider that the target's packages are for, and so the work pool of its machines."""
        return "cuda" if self in {Target.CUDA_INT4, Target.CUDA_FP16} else "cpu"


class Recipe(StrEnum):
    """How weights are quantised, from cheap to dear; `auto` is the cheapest that passes the quality policy.

    It does not try `best`, which takes long, nor those that begin with `stock`: the builder's own, for comparison.
    """

    AUTO = "auto"
    SMALL = "small"
    BALANCED = "balanced"
    ACCURATE = "accurate"
    BEST = "best"
    STOCK_SMALL = "stock-small"
    STOCK_MIXED = "stock-mixed"


class Interface(StrEnum):
    """The signature of the wrapped model: MLflow's `llm/v1/chat`, or one string in, one string out."""

    CHAT = "chat"
    PROMPT = "prompt"


class Dispatch(StrEnum):
    """Where the targets of one run are packaged: in that run, or each in its own work pool."""

    HERE = "here"
    POOLS = "pools"


class SourceKind(StrEnum):
    """Where a model comes from."""

    HUB = "hf"
    FOLDER = "folder"
    GGUF = "gguf"
    WHEEL = "pypi"
    MLFLOW = "mlflow"


Exporter = Literal["onnxruntime-genai", "optimum", "none"]  # what makes a package's graph
Provider = Literal["cpu", "cuda"]  # ONNX Runtime's execution providers, as ONNX Runtime GenAI writes them


class Device(Record):
    """What a proof ran on.

    Attributes:
        provider: the execution provider that the session really had.
        name: the GPU's; "" for a processor, which a version's page names.
        driver: version of the GPU's driver.
        compute_capability: of the GPU, such as `9.0`.
    """

    provider: Provider = "cpu"
    name: str = ""
    driver: str = ""
    compute_capability: str = ""


CPU = Device()


class Progress(Record):
    """How far a stage is: `done` of `total` `unit`s; `total` is None where nobody knows it."""

    stage: str
    done: int
    total: int | None
    unit: str


def _inside(name: str) -> str:
    """Return a path in a folder; records travel, and one that leaves its folder would be read or written elsewhere."""
    parts = name.split("/")
    if not name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"{name!r} is no path in a folder")
    return name


class FileDigest(Record):
    """One file of a folder: its path in it (with forward slashes), its sha256 and its size."""

    name: Annotated[str, AfterValidator(_inside)]
    sha256: str
    size_bytes: int


def digest_of(value: object) -> str:
    """Return the sha256 of `value` as canonical JSON: the same facts give the same digest on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_files(files: Iterable[FileDigest]) -> str:
    """Return one sha256 over the names and contents of `files`, in any order."""
    return digest_of(sorted((file.name, file.sha256) for file in files))


class ModelSource(Record):
    """A source, resolved once to exact content.

    Attributes:
        text: what the user wrote.
        kind: which of the design's sources it is.
        location: repository id, absolute path, pinned requirement, or MLflow model URI.
        revision: what pins the content: a commit, a file's or a folder's sha256, a release's version,
            or the id of an MLflow logged model.
        member: the file inside a wheel, else None.
        name: the registered model's name unless the user gives one.
        licence: what the source itself states before it is fetched, else None.
        base: of an adapter, the model that it is merged into; None of a whole model.
    """

    text: str
    kind: SourceKind
    location: str
    revision: str
    member: str | None = None
    name: str
    licence: str | None = None
    base: "ModelSource | None" = None

    @property
    def is_local(self) -> bool:
        """Whether its location is a path of this machine, which nobody elsewhere can use or needs to know."""
        return self.kind in {SourceKind.FOLDER, SourceKind.GGUF}

    @property
    def shown(self) -> str:
        """What to call it in a record that travels."""
        return self.name if self.is_local else self.text


class Original(Record):
    """The form that a snapshot's weights had in their source; in the snapshot they are plain.

    Attributes:
        form: such as `GPTQ, 4 bits, groups of 128`, or `GGUF`.
        bits: number of bits of a quantised checkpoint's weights; None of a GGUF file, where each matrix has its own.
        unsupported_reason: why the builder cannot take a quantised checkpoint's codes, None if it can.
        storages: how a GGUF file stored each matrix (`Q4_0`, `F16`), by the matrix's name in the snapshot.
        version: of the code that dequantised a checkpoint; None of a GGUF file, whose snapshot's key has its own.
    """

    form: str
    bits: Literal[4, 8] | None = None
    unsupported_reason: str | None = None
    storages: dict[str, str] = Field(default_factory=dict)
    version: int | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether the source was a checkpoint of GPTQ, AWQ or Olive, and not a GGUF file."""
        return self.bits is not None


class Snapshot(Record):
    """A checkpoint in Hugging Face's layout, in the workspace, checked and digested.

    The folder holds safetensors, `config.json`, a fast tokenizer (`tokenizer.json`, `tokenizer_config.json`),
    a chat template, and a licence file where the source has one.

    Attributes:
        architecture: `config.json`'s `architectures[0]`, such as `Phi3ForCausalLM`.
        dtype: what most of the weights' bytes are in safetensors' terms (`F32`, `F16`, `BF16`).
        parameters: number of weights in all tensors.
        layers: number of decoder layers.
        context_length: tokens, prompt and answer together.
        repairs: what was put right in the checkpoint's small files, a sentence each, see `source.repairs`.
        original: what the weights were in the source; None if they were plain there.
        base_template: of an adapter, the chat template of the model that it was merged into; None if it has none, and
            of a snapshot that was made before it was noted.
    """

    source: ModelSource
    path: Path
    files: tuple[FileDigest, ...]
    architecture: str
    dtype: str
    parameters: int
    layers: int
    context_length: int
    licence: str | None
    repairs: tuple[str, ...] = ()
    original: Original | None = None
    base_template: str | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def is_dequantised(self) -> bool:
        """Whether its weights were codes of a GPTQ, AWQ or Olive checkpoint."""
        return self.original is not None and self.original.is_checkpoint

    @property
    def digest(self) -> str:
        return digest_of_files(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Package(Record):
    """What a target needs to run the model: an ONNX Runtime GenAI folder, or the snapshot itself.

    Attributes:
        recipe: how it was quantised; None for `transformers`, which is not.
        versions: builder and runtime, name to version, the ones that the digest covers.
        digest: sha256 over the snapshot's files, the target, the recipe and those versions.
        build_peak_bytes: peak private memory of the builder and its children; 0 where nothing was built.
        repairs: what was repaired in the builder's tokenizer or chat template, a sentence each.
        quantisation: what was done to the weights and why, a sentence each.
        exporter: what made the graph: `onnxruntime-genai` is its builder, `optimum` is for what that does not know,
            `none` for `transformers`.
    """

    snapshot: Snapshot
    target: Target
    recipe: Recipe | None
    path: Path
    files: tuple[FileDigest, ...]
    versions: dict[str, str]
    digest: str
    build_peak_bytes: int = 0
    repairs: tuple[str, ...] = ()
    quantisation: tuple[str, ...] = ()
    exporter: Exporter = "onnxruntime-genai"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class LoggedModel(Record):
    """A package wrapped and logged in MLflow, not yet registered.

    Attributes:
        name: the registered model it is meant for.
        model_id: MLflow's id, `m-...`.
        uri: `models:/<model_id>`: the only hand-over between machines.
        run_id: the MLflow run that holds parameters and figures.
        requirements: exact pins, `name==version`.
        digest: sha256 over the package's digest, the interface, the requirements and the wrapper's code.
    """

    package: Package
    interface: Interface
    name: str
    model_id: str
    uri: str
    run_id: str
    requirements: tuple[str, ...]
    digest: str
