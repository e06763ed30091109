"""Quantised weights: the codes, scales and zero points of one matrix, out of the layout of GPTQ, AWQ or Olive.

    GPTQ   qweight int32 [K * bits / 32, N], the lowest bits the first of K      qzeros int32 [G, N * bits / 32]
    AWQ    qweight int32 [K, N / 8], eight of N in the order 0 2 4 6 1 3 5 7     qzeros int32 [G, N / 8], likewise
    Olive  qweight uint8 [N, K * bits / 8], the first in the lower half          qzeros uint8 [N, G * bits / 8]

    weight[n, k] = scales[n, group of k] * (code[n, k] - zero[n, group of k])

Scales are `[G, N]`, with Olive `[N, G]`. GPTQ's first format has zero points less one.

Source: as `quantised_layout`.
"""

from typing import TYPE_CHECKING, NamedTuple

from slmpack.checkpoint.blocks import Bits, packed, packed_zeros, unpacked
from slmpack.checkpoint.quantised_layout import QuantisedForm, QuantisedMatrix

if TYPE_CHECKING:
    from torch import Tensor

# Where each of eight neighbours is found among AWQ's.
_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


class Codes(NamedTuple):
    """A matrix `[N, K]` in codes, from any of the layouts.

    Attributes:
        codes: uint8 `[N, K]`, one a byte.
        scales: float `[N, G]`, as stored.
        zeros: uint8 `[N, G]`, the code that means zero.
        groups: int64 `[K]`, the group of each column.
    """

    codes: "Tensor"
    scales: "Tensor"
    zeros: "Tensor"
    groups: "Tensor"

    def weights(self, start: int, stop: int) -> "Tensor":
        """Return rows of the matrix in float32, exactly what 8-bit codes and scales in float16 say."""
        zeros = self.zeros[start:stop, self.groups].float()
        return (self.codes[start:stop].float() - zeros).mul_(self.scales[start:stop, self.groups].float())


def read_codes(form: QuantisedForm, matrix: QuantisedMatrix, parts: "dict[str, Tensor]") -> Codes:
    """Read a matrix.

    Args:
        parts: its tensors, by the last part of their names: `qweight`, `scales`, perhaps `qzeros` and `g_idx`.
    """
    import torch

    bits, stored = matrix.bits, parts.get("qzeros")
    match form.method:
        case "gptq":
            codes = _items(parts["qweight"], bits).permute(1, 0, 2).reshape(matrix.rows, -1)
            zeros = None if stored is None else _items(stored, bits).flatten(1).T
        case "awq":
            codes = _items(parts["qweight"], bits)[..., _AWQ_PLACES].flatten(1).T
            zeros = None if stored is None else _items(stored, bits)[..., _AWQ_PLACES].flatten(1).T
        case "olive":
            codes = unpacked(parts["qweight"]) if bits == 4 else parts["qweight"]
            zeros = stored if stored is None or bits == 8 else unpacked(stored)[:, : matrix.groups]
    scales = parts["scales"] if form.method == "olive" else parts["scales"].T
    if zeros is None:
        zeros = torch.full((matrix.rows, matrix.groups), 1 << (bits - 1), dtype=torch.uint8)
    elif form.zero_offset:
        zeros = zeros + form.zero_offset & (1 << bits) - 1
    groups = parts.get("g_idx", torch.arange(matrix.columns) // matrix.group_size)
    return Codes(codes.contiguous(), scales.contiguous(), zeros.contiguous(), groups.long())


def _items(packed: "Tensor", bits: Bits) -> "Tensor":
    """Return what int32 `[A, B]` holds, the lowest bits first: uint8 `[A, B, 32 / bits]`."""
    import torch

    lowest_first = packed.contiguous().view(torch.uint8).view(*packed.shape, 4)
    return unpacked(lowest_first) if bits == 4 else lowest_first


def olive_parts(codes: Codes, bits: Bits) -> "dict[str, Tensor]":
    """Return the tensors of a matrix whose groups are in order as Olive writes them, which the builder takes as is."""
    if bits == 8:
        return {"qweight": codes.codes, "scales": codes.scales, "qzeros": codes.zeros}
    return {"qweight": packed(codes.codes), "scales": codes.scales, "qzeros": packed_zeros(codes.zeros)}
