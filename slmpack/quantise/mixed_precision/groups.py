"""Sensitivity groups: the matrices that have their bits together, since they read one input.

The builder joins q, k and v into one matrix, and gate and up where the checkpoint has. Calibration measured the input
of each matrix (see `calibrate`): matrices of one module whose energies are equal to the bit have one input.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from slmpack.checkpoint.headers import Tensor as Header
from slmpack.records import Record

if TYPE_CHECKING:
    from torch import Tensor

_IN_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")


class Group(Record):
    """Matrices with one input, and what they cost in 4 bits.

    Attributes:
        tensors: their names in the checkpoint.
        weights: how many there are in all of them.
        loss: nats a token where it was measured, else in proportion to that, roughly.
    """

    tensors: tuple[str, ...]
    weights: int
    loss: float

    @property
    def name(self) -> str:
        """What they are called together, such as `model.layers.9.self_attn.q_proj, k_proj, v_proj`."""
        first, *others = (tensor.removesuffix(".weight") for tensor in self.tensors)
        return ", ".join((first, *(other.rpartition(".")[2] for other in others)))


def groups_of(energy: "Mapping[str, Tensor]") -> tuple[tuple[str, ...], ...]:
    """Return the names of the decoder layers' matrices, those with one input together, layer after layer.

    Args:
        energy: what calibration measured, by the name of the checkpoint's tensor; what it has not is in no group.
    """
    import torch

    groups: list[list[str]] = []
    for name in sorted(filter(layer_of, energy), key=lambda name: (int(layer_of(name) or 0), name)):
        module = _module(name)
        same = (
            group for group in groups if _module(group[0]) == module and torch.equal(energy[group[0]], energy[name])
        )
        if (group := next(same, None)) is not None:
            group.append(name)
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def layer_of(name: str) -> str | None:
    """Return the number of the decoder layer that a tensor of the checkpoint is in, None if it is in none."""
    match = _IN_LAYER.match(name)
    return match[1] if match else None


def weights_in(group: tuple[str, ...], headers: Mapping[str, Header]) -> int:
    """Return how many weights the matrices of a group have."""
    return sum(headers[name].parameters for name in group)


def _module(name: str) -> str:
    """Return the name of the module that a Linear's weight's Linear is in."""
    return name.rsplit(".", 2)[0]
