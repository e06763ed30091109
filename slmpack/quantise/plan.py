"""Plan: what the quantiser does with each weight, by the checkpoint's names of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from slmpack.checkpoint.blocks import Bits, Quantised

if TYPE_CHECKING:
    from torch import Tensor

    from slmpack.quantise.awq.channel_pairs import Fold


class StoredRows(Protocol):
    """A matrix that was quantised before, to 4 bits with zero points."""

    def read(self, start: int, stop: int) -> Quantised: ...


@dataclass(frozen=True)
class Plan:
    """How the weights of one package are quantised; without anything, as the stock builder does it.

    Attributes:
        energies: float32 `[K]` of a weight `[N, K]`: its 4-bit scales are searched by it.
        zero_points: blocks of 4 bits whose scale is searched get a zero point of their own.
        fold: what weights and norms are multiplied with before.
        int8: weights that have 8 bits in a graph of 4.
        stored: weights of 4 bits that were quantised before, as the fold has them.
        lossless: weights that are whole multiples already, of so many bits: nothing is lost where they have them here.
    """

    energies: "Mapping[str, Tensor]" = field(default_factory=dict)
    zero_points: bool = False
    fold: "Fold | None" = None
    int8: frozenset[str] = frozenset()
    stored: Mapping[str, StoredRows] = field(default_factory=dict)
    lossless: Mapping[str, Bits] = field(default_factory=dict)
