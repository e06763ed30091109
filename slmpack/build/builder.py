"""Builder: the methods by which `build` makes a package; `select` chooses which class has them."""

from pathlib import Path
from typing import Protocol

from slmpack.records import Exporter, Recipe, Record, Snapshot, Target


class BuildResult(Record):
    """What a builder did to fill the folder of a package.

    Attributes:
        quantised_by: what quantised the weights.
        peak_private_bytes: of the largest of its processes.
        repairs: a sentence for each repair of the tokenizer or a chat template.
        quantisation: a sentence for each thing that was done to the weights.
        reused_checkpoint: whether it took the checkpoint as it was quantised, in place of the dequantised snapshot.
        reused_tensors: names of the tensors whose codes and scales are those of the GGUF file.
    """

    quantised_by: str
    peak_private_bytes: int
    repairs: tuple[str, ...]
    quantisation: tuple[str, ...]
    reused_checkpoint: bool = False
    reused_tensors: tuple[str, ...] = ()


class Builder(Protocol):
    """What makes the package of one snapshot for one target and recipe."""

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def target(self) -> Target: ...

    @property
    def recipe(self) -> Recipe | None: ...

    @property
    def exporter(self) -> Exporter:
        """Name of what makes the graph, as a `Package` has it."""

    def digest(self) -> str:
        """Return the digest of the package: of all that its bytes depend on."""

    def versions(self) -> dict[str, str]:
        """Return the versions of what builds, name to version, that the digest covers."""

    def build(self, into: Path, workspace: Path) -> BuildResult:
        """Fill the empty folder `into`; logs and what is worth keeping for another recipe go to `workspace`."""
