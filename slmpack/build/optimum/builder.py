"""Builder by optimum: packages of architectures that ONNX Runtime GenAI's builder does not know.

    snapshot --optimum, in its own environment--> exports/<key>/model.onnx, float32 --compared with the source-->
             --ONNX Runtime's quantiser, genai_config.json, tokenizer--> package

The work is in `export`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from slmpack.build.builder import BuildResult
from slmpack.build.optimum.export import build_exported
from slmpack.build.optimum.recipes import exporter_digest, exporter_versions, graph_options
from slmpack.records import Exporter, Recipe, Snapshot, Target, digest_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimumBuilder:
    """Optimum, and a quantiser for its graphs; it has fewer recipes, all of them for CPUs."""

    exporter: ClassVar[Exporter] = "optimum"
    snapshot: Snapshot
    target: Target
    recipe: Recipe | None

    def digest(self) -> str:
        """Return the digest of the package: of the snapshot, the graph's options, and all that exports and quantises.

        There is one for a recipe that is refused, too.
        """
        return digest_of([self.snapshot.digest, self.target, self.recipe, exporter_digest(self.target, self.recipe)])

    def versions(self) -> dict[str, str]:
        """Return the versions of what exports and quantises."""
        return exporter_versions()

    def build(self, into: Path, workspace: Path) -> BuildResult:
        """Fill the empty folder `into`.

        Raises:
            RecipeError: exported graphs have no such recipe.
            BuildError: optimum cannot be had or cannot export the model, or what it exports is another model.
            WorkspaceError: there is no room.
        """
        options = graph_options(self.target, self.recipe, self.snapshot.architecture)
        logger.info("exporting %s for %s, recipe %s", self.snapshot.source.name, self.target, self.recipe)
        return build_exported(self.snapshot, options, into, self.digest(), workspace)
