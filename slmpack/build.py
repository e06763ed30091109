"""Build: from a snapshot to a package for one target, by the ONNX Runtime GenAI builder in a child process.

    snapshot --builder--> scratch folder --driven through prefill and decode--> packages/<digest>/

The builder runs in a process of its own: it changes logging and the import path of whoever calls it, and gives its
memory back only by ending.
"""

import contextlib
import io
import logging
import re
from pathlib import Path

from slmpack import progress
from slmpack.child import run_in_child
from slmpack.errors import BuildError
from slmpack.records import Package, Recipe, Record, Snapshot, Target, digest_of
from slmpack.repair import repair_tokenizer
from slmpack.sliding_window import move_window_into_attention
from slmpack.store import Manifest, log_folder, require_space, store_folder
from slmpack.targets import BYTES_PER_PARAMETER, RECIPES, BuilderOptions, builder_versions

logger = logging.getLogger(__name__)

BUILD_LIMIT_SECONDS = 2 * 3600.0
DRIVE_LIMIT_SECONDS = 600.0
DECODE_STEPS = 4
BUILD_STEPS = 3  # counts up when what is done to the builder's output changes, so that packages are built again


class BuildRequest(Record):
    """What the builder's process is asked for; `into` is an empty folder."""

    snapshot: Path
    architecture: str
    layers: int
    options: BuilderOptions
    into: Path


class DriveRequest(Record):
    """The package folder to run a few tokens through; its ids must stay below the model's vocabulary."""

    package: Path


class Built(Record):
    """What the builder's process did beside building: a sentence for each repair of its output."""

    repairs: tuple[str, ...]


class Done(Record):
    """Nothing to tell but that it ended well."""


def package_digest(snapshot: Snapshot, target: Target, recipe: Recipe | None) -> str:
    """Return the digest of the package that `build_package` would make, without making it."""
    options = RECIPES[target][recipe].model_dump() if recipe else {}
    return digest_of([snapshot.digest, target, recipe, options, builder_versions(target), BUILD_STEPS])


def build_package(snapshot: Snapshot, target: Target, recipe: Recipe | None, workspace: Path) -> Package:
    """Build the package of `snapshot` for `target`, or take the whole one that an earlier run left.

    Raises:
        BuildError: no builder knows the architecture, or its process failed, was killed or took too long.
        WorkspaceError: the workspace has too little space for the result.
    """
    digest = package_digest(snapshot, target, recipe)
    path = snapshot.path
    if recipe is not None:
        require_space(workspace, int(snapshot.parameters * BYTES_PER_PARAMETER[target]), f"a {target} package")
        path = _build(snapshot, target, recipe, digest, workspace)
    manifest = Manifest.read(path)
    return Package(
        snapshot=snapshot,
        target=target,
        recipe=recipe,
        path=path,
        files=manifest.files,
        versions=builder_versions(target),
        digest=digest,
        build_peak_bytes=int(manifest.facts.get("build_peak_bytes") or 0),
        repairs=tuple(str(manifest.facts.get("repairs") or "").splitlines()),
    )


def _build(snapshot: Snapshot, target: Target, recipe: Recipe, digest: str, workspace: Path) -> Path:
    """Return the stored folder; its manifest remembers what making it took and what was repaired."""
    log = log_folder(workspace) / f"build-{digest[:12]}.log"
    drive_log = log_folder(workspace) / f"drive-{digest[:12]}.log"

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("building %s for %s, recipe %s", snapshot.source.name, target, recipe)
        request = BuildRequest(
            snapshot=snapshot.path,
            architecture=snapshot.architecture,
            layers=snapshot.layers,
            options=RECIPES[target][recipe],
            into=into,
        )
        built, run = run_in_child(
            run_builder, request, log=log, limit_seconds=BUILD_LIMIT_SECONDS, failure=BuildError, doing="the build"
        )
        run_in_child(
            drive_package, DriveRequest(package=into), log=drive_log, limit_seconds=DRIVE_LIMIT_SECONDS,
            failure=BuildError, doing="the first run of the package",
        )  # fmt: skip
        return {
            "target": target,
            "recipe": recipe,
            "build_peak_bytes": run.peak_private_bytes,
            "repairs": "\n".join(built.repairs),
        }

    return store_folder(workspace, "packages", digest, make)


def run_builder(request: BuildRequest) -> Built:
    """Run in a child: let the builder write its folder, then mend what it is known to get wrong.

    Raises:
        BuildError: the builder does not know the architecture, or cannot cut its rows into the recipe's blocks.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    options = request.options
    arguments = (None, str(request.snapshot), str(request.into), options.precision, options.execution_provider)
    cache = str(request.into / ".cache")
    pairs = [f"block_size={options.block_size}", f"algo_config={options.algo_config}", "hf_token=false"]
    _follow_quantiser(request.layers)
    try:
        with contextlib.redirect_stdout(_BuilderOutput(request.layers)):
            extra = parse_extra_options(*arguments, cache, pairs)
            create_model(*arguments, cache, **extra)
    except NotImplementedError as error:
        raise BuildError(
            f"architecture {request.architecture}", "one that the ONNX Runtime GenAI builder knows",
            "use --target transformers",
        ) from error  # fmt: skip
    except ValueError as error:
        if "cannot reshape array" not in str(error):  # k_quant needs an even number of blocks a row
            raise
        raise BuildError(
            f"rows that {options.algo_config} cannot cut into pairs of blocks of {options.block_size}",
            "an even number of blocks a row", "use --recipe small",
        ) from error  # fmt: skip
    move_window_into_attention(request.into)
    return Built(repairs=repair_tokenizer(request.into, request.snapshot))


class _BuilderOutput(io.TextIOBase):
    """Passes what the builder prints on to the log, and reports the layers that it names."""

    def __init__(self, layers: int) -> None:
        import sys

        self._log = sys.stdout
        self._layers = layers

    def write(self, text: str) -> int:
        if match := re.match(r"Reading layer (\d+)", text):
            progress.report("build", int(match[1]) + 1, self._layers, "layers read")
        return self._log.write(text)

    def flush(self) -> None:
        self._log.flush()


def _follow_quantiser(layers: int) -> None:
    """Report the layer that ONNX Runtime's quantiser logs about."""

    class Follow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.search(r"complete quantization of /model/layers\.(\d+)/", record.getMessage()):
                progress.report("build", int(match[1]) + 1, layers, "layers quantised")

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").addHandler(Follow())


def drive_package(request: DriveRequest) -> Done:
    """Run in a child: prefill and a few decode steps, since the builder returns 0 for packages that cannot.

    `logits` are float32 `[batch, sequence, vocabulary]`.

    Raises:
        BuildError: the package does not load, breaks at decode, or gives logits that are not finite.
    """
    import numpy as np
    import onnxruntime_genai as og

    try:
        model = og.Model(str(request.package))
        ids = og.Tokenizer(model).encode("Once upon a time")
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + DECODE_STEPS, min_length=len(ids) + DECODE_STEPS)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        for step in range(DECODE_STEPS):
            generator.generate_next_token()
            if not np.isfinite(generator.get_logits()).all():
                raise BuildError(f"logits that are not finite at decode step {step + 1}", "finite numbers",
                                 "check the checkpoint's weights")  # fmt: skip
    except RuntimeError as error:
        raise BuildError(f"the built package does not run: {error}", "a package that loads and decodes",
                         "try another --recipe") from error  # fmt: skip
    return Done()
