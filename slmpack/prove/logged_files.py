"""Logged files: what the small files of a logged model say, checked one thing after another; no weight is read."""

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slmpack.errors import CheckError
from slmpack.log.artifacts import Artifacts
from slmpack.log.interfaces import gets_whole_requests, input_example_of, metadata_of, signature_of
from slmpack.log.provenance import PROVENANCE
from slmpack.log.requirements import PACKAGES, PIN
from slmpack.log.trust import CODE_LOADER, PICKLE_SUFFIXES
from slmpack.machine.bounded_file import parse_json, read_bounded
from slmpack.machine.bounded_yaml import parse_yaml
from slmpack.machine.surroundings import home_folder
from slmpack.records import LoggedModel, Target
from slmpack.reports import Check
from slmpack.source.mlflow_errors import one_line
from slmpack.source.mlmodel import read_mlmodel

if TYPE_CHECKING:
    from mlflow.models import Model

LOADERS = {Target.TRANSFORMERS: "mlflow.transformers"}
PICKLE_KEYS = ("python_model", "cloudpickle_version", "pickled_model")
TEXT_FILES = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt")
ADVICE = "log the model again"


@dataclass(frozen=True)
class LoggedFiles:
    """What is read of the logged model: its metadata, the names of all its files, the text of the small ones."""

    model: LoggedModel
    metadata: "Model"
    names: tuple[str, ...]
    texts: dict[str, str]
    workspace: Path


def read_logged_files(model: LoggedModel, workspace: Path) -> LoggedFiles:
    """Read the names of a logged model's files, and its small ones.

    Raises:
        CheckError: one that MLflow writes is missing, or cannot be read.
    """
    artifacts = Artifacts(model.uri)
    names = tuple(artifacts.sizes())
    if missing := sorted(set(TEXT_FILES) - set(names)):
        raise refusal("files", f"{', '.join(missing)} missing", "the files that MLflow writes with every model")
    with TemporaryDirectory() as folder:
        read = [name for name in (*TEXT_FILES, PROVENANCE) if name in names]
        texts = {name: _text(name, artifacts.copy(name, Path(folder))) for name in read}
    try:
        metadata = read_mlmodel(texts["MLmodel"].encode())
    except ValueError as error:
        raise refusal("files", f"MLmodel cannot be read ({error})", "the one that MLflow wrote") from error
    return LoggedFiles(model=model, metadata=metadata, names=names, texts=texts, workspace=workspace)


def _text(name: str, path: Path) -> str:
    try:
        return read_bounded(path).decode()
    except (OSError, ValueError) as error:
        raise refusal("files", f"{name} cannot be read ({error})", "a text of a plain size") from error


def _parsed(name: str, content: str) -> Any:
    try:
        return parse_json(content.encode()) if name.endswith(".json") else parse_yaml(content)
    except ValueError as error:
        raise refusal("files", f"{name} cannot be read ({error})", "YAML or JSON of a plain size") from error


def refusal(name: str, found: str, expected: str) -> CheckError:
    """Return the error of a check that does not hold."""
    return CheckError(f"{name}: {found}", expected, ADVICE)


def _check_files(files: LoggedFiles) -> Check:
    """Check that the package or checkpoint is whole."""
    folder = "model" if files.model.package.target is Target.TRANSFORMERS else "artifacts/package"
    expected = {f"{folder}/{file.name}" for file in files.model.package.files}
    if missing := sorted(expected - set(files.names)):
        raise refusal("files", f"{', '.join(missing)} missing", f"the {len(expected)} files of the package")
    return Check(name="files", found=f"{len(files.names)}")


def _check_signature(files: LoggedFiles) -> Check:
    expected, found = signature_of(files.model.interface), files.metadata.signature
    if found != expected:
        shown = "none" if found is None else f"inputs {str(found.inputs)[:150]}"
        raise refusal("signature", shown, f"the signature of {files.model.interface}, exactly")
    if files.model.package.target is not Target.TRANSFORMERS and not gets_whole_requests(found):
        raise refusal("signature", "MLflow drops what is not in it", "requests that reach the wrapper as they are")
    return Check(name="signature", found=f"that of {files.model.interface}")


def _check_example(files: LoggedFiles) -> Check:
    """Check that the example is there, has the interface's fields, and passes MLflow's enforcement of the signature."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import validate_schema

    if files.metadata.saved_input_example_info is None:
        raise refusal("input example", "none", "one that the model can answer")
    try:
        example = files.metadata.load_input_example(files.model.uri)
    except (MlflowException, OSError, ValueError) as error:
        raise refusal("input example", f"it cannot be read ({type(error).__name__})", "a JSON object") from error
    expected = input_example_of(files.model.interface)
    if not isinstance(example, dict) or example.keys() != expected.keys():
        fields = ", ".join(map(str, example)) if isinstance(example, dict) else type(example).__name__
        raise refusal("input example", f"an example with {fields}", f"one with {', '.join(expected)}")
    try:
        validate_schema(example, signature_of(files.model.interface).inputs)
    except MlflowException as error:
        raise refusal("input example", one_line(error), "an example that fits the signature") from error
    return Check(name="input example", found=", ".join(example))


def _check_no_pickle(files: LoggedFiles) -> Check:
    """Nothing is unpickled at load: the wrapper is source code, the weights are ONNX or safetensors."""
    expected = LOADERS.get(files.model.package.target, CODE_LOADER)
    for flavor, settings in files.metadata.flavors.items():
        if keys := [key for key in PICKLE_KEYS if settings.get(key) is not None]:
            raise refusal("no pickle", f"{', '.join(keys)} in flavour {flavor}", "models-from-code")
    loader = files.metadata.flavors.get("python_function", {}).get("loader_module")
    if loader != expected:
        raise refusal("no pickle", f"loader {loader}", f"loader {expected}")
    if pickles := [name for name in files.names if name.endswith(PICKLE_SUFFIXES)]:
        raise refusal("no pickle", ", ".join(pickles), "no file of a pickled format")
    return Check(name="no pickle", found=f"loader {loader}")


def _check_requirements(files: LoggedFiles) -> Check:
    """Every line is an exact pin, and they are the pins that the model was logged with: none more, none less."""
    lines = [line.strip() for line in files.texts["requirements.txt"].splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if loose := [line for line in found if not PIN.fullmatch(line)]:
        raise refusal("requirements", f"{loose[0]!r}", "name==version on every line")
    names = {line.partition("==")[0] for line in found}
    if missing := sorted(set(PACKAGES[files.model.package.target]) - names):
        raise refusal("requirements", f"without {', '.join(missing)}", "all that the target needs")
    if different := sorted(set(found) ^ set(files.model.requirements)):
        raise refusal("requirements", f"{different[0]} in one of file and record", "the versions that were installed")
    return Check(name="requirements", found=", ".join(found))


def _check_metadata(files: LoggedFiles) -> Check:
    found = files.metadata.metadata or {}
    for key, value in metadata_of(files.model.interface).items():
        if found.get(key) != value:
            raise refusal("metadata", f"{key} is {found.get(key)!r}", f"{key} {value!r}")
    digest = found.get("slmpack", {}).get("digest")
    if digest != files.model.digest:
        raise refusal("metadata", f"digest {digest}", f"digest {files.model.digest}")
    return Check(name="metadata", found=str(found.get("task", "no task")))


def _check_no_leak(files: LoggedFiles) -> Check:
    """Nothing of this machine: a path in the model would break it elsewhere, and tells what is nobody's business."""
    private = _private_words(files)
    for name, content in files.texts.items():
        parsed = content.splitlines() if name.endswith(".txt") else _parsed(name, content)
        for place, text in _leaves(parsed, name):
            if found := next((word for word in private if word in text), None):
                raise refusal("no leak", f"{found} in {place}", "nothing of the machine that built it")
            if re.match(r"(file:|[A-Za-z]:[\\/]|~|/)", text) or re.search(r"@ *file:|(^| )-e ", text):
                raise refusal("no leak", f"the path {text[:100]} in {place}", "no absolute path")
    return Check(name="no leak", found=f"{len(files.texts)} files")


def _private_words(files: LoggedFiles) -> list[str]:
    """Return what names this machine or its user; words too short to mean anything are left out."""
    package = files.model.package
    words = [
        str(files.workspace),
        str(package.path),
        str(package.snapshot.path),
        str(home_folder()),
        socket.gethostname(),
    ]
    source = package.snapshot.source
    public = f"{files.model.name} localhost {'' if source.is_local else source.location}"
    return [word for word in words if len(word) > 3 and word not in public]


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield every string in parsed YAML with where it is; the signature's own JSON has none of ours."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place} {key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, place)


CHECKS: tuple[Callable[[LoggedFiles], Check], ...] = (
    _check_signature,
    _check_example,
    _check_no_pickle,
    _check_requirements,
    _check_metadata,
    _check_no_leak,
    _check_files,
)
