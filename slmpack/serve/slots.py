"""Slots: which tokens each row of the table holds, and how much of a new prompt is there already.

A prompt that begins as one before it needs not be computed again. What is used again is what a fresh computation would
give, bit for bit: keys and values that were computed as parts of prompts, up to an even number of tokens. (Those of
generated tokens come from another kernel, for single rows, which rounds otherwise; so do the last of an odd number of
rows in 8 bits. Both were seen with onnxruntime 1.31.1.) So an answer is the same, whatever was asked before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

LEAST_REUSED = 16  # tokens; for less, a row that holds something is not given up
MOST_CUT = 64  # tokens that a row in use as it is may lose; else its beginning is copied
# Kernels take rows in tiles of 128; one that is left over goes through the kernel for single rows, which rounds
# otherwise. Seen with the 4-bit ones of onnxruntime 1.31.1: of prompts, with the last token where 128 k + 1 are read.
TILE = 128
LEAST_LEFT = 2  # tokens in the last part of any other prompt


def last_part(count: int) -> int:
    """Return how many tokens of a prompt are read together at its end, at least, so that they are read as in one."""
    return TILE + 1 if count > TILE and count % TILE == 1 else LEAST_LEFT


class Table(Protocol):
    """What is needed of the graph's table."""

    def cut(self, slot: int, length: int) -> None:
        """Forget what a slot holds behind its first `length` tokens."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`."""


@dataclass
class Slot:
    """One row.

    Attributes:
        tokens: what it holds of prompts, in order; generated tokens are not in it.
        used: when it was last given to somebody, in turns.
    """

    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: int = 0


class Slots:
    """Gives rows to prompts, and takes them back."""

    def __init__(self, table: Table, count: int) -> None:
        self._table = table
        self._slots = [Slot() for _ in range(count)]
        self._turn = 0

    @property
    def has_free(self) -> bool:
        """Whether a row can be taken."""
        return any(not slot.busy for slot in self._slots)

    @property
    def busy(self) -> int:
        """How many rows are in use."""
        return sum(slot.busy for slot in self._slots)

    def take(self, prompt: Sequence[int], *, reuse: bool) -> tuple[int, int]:
        """Return a free row, and how many tokens of the prompt it holds already."""
        self._turn += 1
        known, source = self._longest(prompt) if reuse else (0, 0)
        if known < LEAST_REUSED:
            known = 0
        free = [place for place, slot in enumerate(self._slots) if not slot.busy]
        chosen = min(free, key=lambda place: (len(self._slots[place].tokens) > 0, self._slots[place].used, place))
        if known:
            if source in free and (len(self._slots[source].tokens) <= known + MOST_CUT or chosen == source):
                chosen = source
            else:
                self._table.copy(source, chosen, known)
        self._table.cut(chosen, known)
        self._slots[chosen] = Slot(list(prompt[:known]), busy=True, used=self._turn)
        return chosen, known

    def fill(self, place: int, tokens: Sequence[int]) -> None:
        """Note that the next part of the prompt is in the row."""
        self._slots[place].tokens.extend(tokens)

    def give_back(self, place: int) -> None:
        """Free a row; what it holds of its prompt stays until it is taken again."""
        self._slots[place].busy = False
        self._table.cut(place, len(self._slots[place].tokens))

    def _longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Return how many tokens the row with the longest common beginning shares, and which row that is."""
        reusable = np.asarray(prompt[: -last_part(len(prompt))], np.int64)
        return max(
            ((_common(slot.tokens, reusable), place) for place, slot in enumerate(self._slots)),
            key=lambda found: (found[0], -found[1]),
        )


def _common(held: list[int], wanted: npt.NDArray[np.int64]) -> int:
    """Return how many tokens are equal from the beginning, an even number."""
    count = min(len(held), len(wanted))
    differs = np.flatnonzero(np.asarray(held[:count], np.int64) != wanted[:count])
    return (int(differs[0]) if len(differs) else count) // 2 * 2
