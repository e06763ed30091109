"""Builder of ONNX Runtime GenAI: its options for a recipe, its run in a process of its own, and the package's digest.

    snapshot --prepare--> energies, fold, codes --run_builder, in a child--> package

Weights are quantised while they are written (see `streaming`); what cannot be streamed takes memory by the model's
size, which is checked before any work.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from slmpack.build.builder import BuildResult
from slmpack.build.genai.run_builder import BuilderRun, BuildRequest, require_stock_memory, run_builder
from slmpack.build.genai.streaming import unchecked_builder
from slmpack.build.versions import BUILD_STEPS, builder_versions
from slmpack.errors import BuildError
from slmpack.machine.remember import ChildWork, run_work
from slmpack.quantise.prepare import Prepared, preparation_digest, prepare, takes_codes
from slmpack.records import Exporter, Recipe, Snapshot, Target, digest_of
from slmpack.targets import BuilderOptions

logger = logging.getLogger(__name__)

BUILD_LIMIT_SECONDS = 2 * 3600.0
BUILDING = ChildWork(run_builder, "build", BUILD_LIMIT_SECONDS, BuildError, "the build")


@dataclass(frozen=True)
class GenaiBuilder:
    """The builder, for architectures that it knows.

    Attributes:
        calibration_text: what the source reads before its weights are quantised; None: what is built in.
    """

    exporter: ClassVar[Exporter] = "onnxruntime-genai"
    snapshot: Snapshot
    target: Target
    recipe: Recipe | None
    options: BuilderOptions
    calibration_text: str | None

    def digest(self) -> str:
        """Return the digest of the package: of the snapshot, the options, and what quantises and builds."""
        parts = option_parts(self.options, self.calibration_text)
        if takes_codes(self.snapshot, self.options):
            parts["kept"] = True  # this word is in the digests of published packages
        return digest_of([self.snapshot.digest, self.target, self.recipe, parts, self.versions(), BUILD_STEPS])

    def versions(self) -> dict[str, str]:
        """Return the installed versions of what builds."""
        return builder_versions(self.target)

    def build(self, into: Path, workspace: Path) -> BuildResult:
        """Fill the empty folder `into`.

        Raises:
            RecipeError: the recipe cannot cut the model's rows, or needs more memory than there is.
            BuildError: a weight is not finite, or a process failed, was killed or took too long.
        """
        snapshot, options = self.snapshot, self.options
        logger.info("building %s for %s, recipe %s", snapshot.source.name, self.target, self.recipe or "none")
        reason = unsupported_reason_of(options)
        if reason:
            _require_stock(snapshot, options, reason)
        prepared = Prepared() if reason else prepare(snapshot, options, self.calibration_text, workspace)
        request = BuildRequest(
            snapshot=prepared.checkpoint or snapshot.path,
            architecture=snapshot.architecture,
            layers=snapshot.layers,
            options=options,
            streamed=options.quantises and reason is None,
            prepared=prepared,
            into=into,
        )
        built, run = run_work(BUILDING, request, self.digest(), snapshot, workspace)
        reason = reason or built.unsupported_reason
        remarks = (_taken_over(reason),) if reason and options.streams else ()
        return BuildResult(
            quantised_by=_quantiser_of(options, built),
            peak_private_bytes=run.peak_private_bytes,
            repairs=built.repairs,
            quantisation=(*prepared.remarks, *built.quantisation, *remarks),
            reused_checkpoint=prepared.checkpoint is not None,
            reused_tensors=built.lossless,
        )


def option_parts(options: BuilderOptions | None, calibration_text: str | None) -> dict[str, Any]:
    """Return what a digest covers of the options, and of what is done before weights are quantised."""
    parts = options.model_dump(exclude_defaults=True) if options else {}
    if options and options.weighted:
        parts["preparation"] = preparation_digest(options, calibration_text)
    return parts


def unsupported_reason_of(options: BuilderOptions) -> str | None:
    """Return why the stock builder must quantise, None if weights can be streamed or nothing is quantised."""
    if not options.quantises:
        return None
    return unchecked_builder() if options.streams else f"{options.algo_config} looks at whole matrices"


def _require_stock(snapshot: Snapshot, options: BuilderOptions, reason: str) -> None:
    """Say that the stock builder quantises, and why; then there must be memory for all weights.

    Raises:
        RecipeError: there is not.
    """
    logger.warning("the stock builder quantises, which takes more time and memory: %s", reason)
    require_stock_memory(snapshot.path, options)


def _taken_over(reason: str) -> str:
    """Return the sentence for the page, having warned with it."""
    remark = f"the stock builder quantised, by the blocks' extremes, since {reason}"
    logger.warning("%s", remark)
    return remark


def _quantiser_of(options: BuilderOptions, built: BuilderRun) -> str:
    if not options.quantises:
        return "nobody"
    return "streaming" if built.streamed else "the stock builder"
