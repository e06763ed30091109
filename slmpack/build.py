"""Build: from a snapshot to a package for one target, by the ONNX Runtime GenAI builder in a child process.

    snapshot --builder--> scratch folder --driven through prefill and decode--> packages/<digest>/

The builder runs in a process of its own: it changes logging and the import path of whoever calls it, gives its memory
back only by ending, and some of its methods are replaced there, so that weights are quantised while they are written
(see `streaming`). What cannot be streamed takes memory by the model's size, which is asked for before any work.
"""

import contextlib
import io
import logging
import os
import re
from pathlib import Path

from slmpack import progress
from slmpack.calibrate import CALIBRATION, calibrate, read_energy
from slmpack.child import run_in_child
from slmpack.errors import BuildError, RecipeError
from slmpack.finite import require_finite_weights
from slmpack.limits import limit_seconds
from slmpack.memory import available_bytes, predicted_stock_peak, require_memory
from slmpack.records import Package, Recipe, Record, Snapshot, Target, digest_of
from slmpack.repair import repair_tokenizer
from slmpack.sliding_window import move_window_into_attention
from slmpack.store import Manifest, log_folder, require_space, store_folder
from slmpack.streaming import Streaming, raise_to_int8, stream_weights, unchecked_builder
from slmpack.targets import BYTES_PER_PARAMETER, RECIPES, BuilderOptions, builder_versions
from slmpack.weights import read_weights

logger = logging.getLogger(__name__)

BUILD_LIMIT_SECONDS = 2 * 3600.0
DRIVE_LIMIT_SECONDS = 600.0
DECODE_STEPS = 4
BUILD_STEPS = 3  # counts up when what is done to the builder's output changes, so that packages are built again


class BuildRequest(Record):
    """What the builder's process is asked for.

    Attributes:
        streamed: quantise while writing; else as the stock builder does.
        calibration: what `calibrate` stored, for weighted scales, else None.
        into: an empty folder.
    """

    snapshot: Path
    architecture: str
    layers: int
    options: BuilderOptions
    streamed: bool
    calibration: Path | None = None
    into: Path


class DriveRequest(Record):
    """The package folder to run a few tokens through; its ids must stay below the model's vocabulary."""

    package: Path


class Built(Record):
    """What the builder's process did beside building.

    Attributes:
        repairs: a sentence for each repair of its output.
        streamed: whether weights were quantised while they were written.
        obstacle: why they were not although that was asked for, else None.
    """

    repairs: tuple[str, ...]
    streamed: bool
    obstacle: str | None


class Done(Record):
    """Nothing to tell but that it ended well."""


def package_digest(snapshot: Snapshot, target: Target, recipe: Recipe | None) -> str:
    """Return the digest of the package that `build_package` would make, without making it."""
    options = RECIPES[target][recipe] if recipe else None
    told = options.model_dump(exclude_defaults=True) if options else {}
    if options and options.weighted:
        told["calibration"] = CALIBRATION
    return digest_of([snapshot.digest, target, recipe, told, builder_versions(target), BUILD_STEPS])


def build_package(snapshot: Snapshot, target: Target, recipe: Recipe | None, workspace: Path) -> Package:
    """Build the package of `snapshot` for `target`, or take the whole one that an earlier run left.

    Raises:
        RecipeError: the recipe cannot cut the model's rows, or needs more memory than there is.
        BuildError: no builder knows the architecture, a weight is not finite, or the builder's process failed, was
            killed or took too long.
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
    options = RECIPES[target][recipe]

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("building %s for %s, recipe %s", snapshot.source.name, target, recipe)
        request = _request(snapshot, options, workspace, into)
        built, run = run_in_child(
            run_builder, request, log=log, failure=BuildError, doing="the build",
            limit_seconds=limit_seconds(BUILD_LIMIT_SECONDS, snapshot.size_bytes),
        )  # fmt: skip
        remarks = (
            () if built.streamed or not options.streams else (_taken_over(built.obstacle or obstacle_of(options)),)
        )
        run_in_child(
            drive_package, DriveRequest(package=into), log=drive_log, failure=BuildError,
            limit_seconds=limit_seconds(DRIVE_LIMIT_SECONDS, snapshot.size_bytes), doing="the first run of the package",
        )  # fmt: skip
        return {
            "target": target,
            "recipe": recipe,
            "quantised_by": "streaming" if built.streamed else "the stock builder",
            "build_peak_bytes": run.peak_private_bytes,
            "repairs": "\n".join((*built.repairs, *remarks)),
        }

    return store_folder(workspace, "packages", digest, make)


def obstacle_of(options: BuilderOptions) -> str | None:
    """Return why the stock builder must quantise, None if weights can be streamed."""
    return unchecked_builder() if options.streams else f"{options.algo_config} looks at whole matrices"


def _taken_over(obstacle: str | None) -> str:
    """Return the sentence for the page, having warned with it."""
    remark = f"the stock builder quantised, by the blocks' extremes, since {obstacle}"
    logger.warning("%s", remark)
    return remark


def _request(snapshot: Snapshot, options: BuilderOptions, workspace: Path, into: Path) -> BuildRequest:
    """Decide whether weights are streamed, and say so if not; then there must be memory for all of them.

    Raises:
        RecipeError: there is not.
        BuildError: the calibration failed.
    """
    obstacle = obstacle_of(options)
    if obstacle:
        logger.warning("the stock builder quantises, which takes more time and memory: %s", obstacle)
        require_stock_memory(snapshot.path, options)
    weighted = options.weighted and obstacle is None
    return BuildRequest(
        snapshot=snapshot.path,
        architecture=snapshot.architecture,
        layers=snapshot.layers,
        options=options,
        streamed=obstacle is None,
        calibration=calibrate(snapshot, None, workspace) if weighted else None,
        into=into,
    )


def require_stock_memory(snapshot: Path, options: BuilderOptions) -> None:
    """Refuse what the stock builder would be killed for.

    Raises:
        RecipeError: the machine, or our cgroup, has less memory than it will need.
    """
    bits = 8 if options.precision == "int8" else 4
    needed = predicted_stock_peak(read_weights(snapshot), bits, options.block_size, options.algo_config)
    require_memory(needed, available_bytes(), f"the stock builder, for {options.algo_config} {options.precision},")


def run_builder(request: BuildRequest) -> Built:
    """Run in a child: let the builder write its folder, then mend what it is known to get wrong.

    Raises:
        RecipeError: the recipe cannot cut the model's rows into its blocks.
        BuildError: the builder does not know the architecture, or a weight is not finite.
    """
    import torch
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    options = request.options
    arguments = (None, str(request.snapshot), str(request.into), options.precision, options.execution_provider)
    cache = str(request.into / ".cache")
    pairs = [f"block_size={options.block_size}", f"algo_config={options.algo_config}", "hf_token=false"]
    if options.int8:
        pairs.append("matmul_mixed_precision=" + ",".join(f"{group}:int8" for group in options.int8))
    torch.set_num_threads(1)  # threads share tensors here, not the arithmetic of one
    streaming = _prepare(request)
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
        raise RecipeError(
            f"rows that {options.algo_config} cannot cut into pairs of blocks of {options.block_size}",
            "an even number of blocks a row", "use --recipe small",
        ) from error  # fmt: skip
    move_window_into_attention(request.into)
    repairs = repair_tokenizer(request.into, request.snapshot)
    if request.calibration and not streaming.obstacle and not streaming.searched:
        # Tensors that were converted while they were loaded have no name in a file.
        repairs = (
            *repairs,
            "no scale was searched, since the calibration names none of the weights as the builder has them",
        )
    return Built(repairs=repairs, streamed=request.streamed and not streaming.obstacle, obstacle=streaming.obstacle)


def _prepare(request: BuildRequest) -> Streaming:
    """Replace the builder's methods; where nothing is streamed, look at the weights beforehand."""
    from builders import base  # type: ignore[import-not-found] # on the path since the builder was imported

    def before_stock(obstacle: str) -> None:
        require_stock_memory(request.snapshot, request.options)
        require_finite_weights(request.snapshot)

    raise_to_int8(base.Model, request.options.int8_nodes)
    if request.streamed:
        energies = read_energy(request.calibration) if request.calibration else None
        return stream_weights(base.Model, len(os.sched_getaffinity(0)), before_stock, energies)
    _follow_quantiser(request.layers)
    require_finite_weights(request.snapshot)
    return Streaming()


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
