"""Select: what builds packages of an architecture for a target.

    transformers          NoBuilder: the snapshot is the package
    a known architecture  GenaiBuilder: ONNX Runtime GenAI's own builder
    any other             OptimumBuilder: a graph that optimum exports

No other module decides between them; `Builder` is what they have in common.
"""

from dataclasses import dataclass
from typing import ClassVar

from slmpack.build.builder import Builder
from slmpack.build.genai.architectures import builder_architectures
from slmpack.build.genai.builder import GenaiBuilder, option_parts
from slmpack.build.optimum.builder import OptimumBuilder
from slmpack.build.optimum.recipes import EXPORT_STEPS, EXPORTED, requirements_digest
from slmpack.build.versions import BUILD_STEPS, builder_versions
from slmpack.checkpoint.package import checkpoint_package
from slmpack.records import Exporter, Recipe, Snapshot, Target, digest_of
from slmpack.targets import options_for


@dataclass(frozen=True)
class NoBuilder:
    """The target that is not built: its package is the snapshot itself."""

    exporter: ClassVar[Exporter] = "none"
    snapshot: Snapshot
    target: Target
    recipe: Recipe | None

    def digest(self) -> str:
        """Return the digest of the package, which covers transformers' version as well."""
        return checkpoint_package(self.snapshot).digest

    def versions(self) -> dict[str, str]:
        """Return the version of what runs the package."""
        return checkpoint_package(self.snapshot).versions


def select_builder(
    snapshot: Snapshot, target: Target, recipe: Recipe | None, calibration_text: str | None
) -> Builder | NoBuilder:
    """Return what makes the package of `snapshot`; nothing is imported or started for that.

    Args:
        calibration_text: what the source reads before its weights are quantised; None: what is built in.
    """
    options = options_for(target, recipe)
    if options is None:
        return NoBuilder(snapshot, target, recipe)
    if is_known(snapshot.architecture):
        return GenaiBuilder(snapshot, target, recipe, options, calibration_text)
    return OptimumBuilder(snapshot, target, recipe)


def is_known(architecture: str) -> bool:
    """Say whether ONNX Runtime GenAI's builder knows an architecture; where that cannot be read, it is tried."""
    known = builder_architectures()
    return not known or architecture in known


def recipe_digest(target: Target, recipe: Recipe | None, calibration_text: str | None = None) -> str:
    """Return the digest of all that is done to a source, whichever it is and whichever builder knows it."""
    parts = option_parts(options_for(target, recipe), calibration_text)
    exported = (requirements_digest(), EXPORT_STEPS) if target in EXPORTED else None
    return digest_of([target, recipe, parts, builder_versions(target), BUILD_STEPS, exported])
