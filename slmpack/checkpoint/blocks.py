"""Quantise: the rows of a weight, to codes of 4 or 8 bits and a scale a block, as ONNX Runtime does it, to the bit.

A weight `[N, K]` has N output channels. Each row is cut into blocks of consecutive weights that share one scale:

    row ----> | block 0 | block 1 | ... | last block, padded with zeros |
              code = round(weight / scale) + 2^(bits - 1),  scale = extreme of the block / -2^(bits - 1)

The extreme is the weight of the largest magnitude, its sign kept: it has the code 0 and is exact. Halves are rounded
up. What is padded has the code 0, which nobody reads.

Source: onnxruntime/core/mlas/lib/q4_dq.cpp, `BlockwiseQuantizer::quantizeMetaSymmetric` and `quantizeAndTranspose`.
What the result is used for: docs/ContribOperators.md of microsoft/onnxruntime, MatMulNBits.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Bits = Literal[4, 8]


class Quantised(NamedTuple):
    """Some rows of a quantised weight.

    Attributes:
        codes: uint8 `[rows, blocks, block_size * bits / 8]`; of 4 bits two in a byte, the first in its lower half.
        scales: `[rows, blocks]`, of the weights' dtype.
        zeros: uint8 `[rows, blocks]`, the code that means zero; None: 2^(bits - 1) everywhere.
    """

    codes: "Tensor"
    scales: "Tensor"
    zeros: "Tensor | None" = None


def blocks_a_row(columns: int, block_size: int) -> int:
    """Return how many blocks a row of `columns` weights takes; the last one may be padded."""
    return -(-columns // block_size)


def quantise_rows(weights: "Tensor", bits: Bits, block_size: int) -> Quantised:
    """Quantise float32 or float16 `[rows, K]`, K even, which may be overwritten; rows do not depend on each other."""
    import torch

    rows, columns = weights.shape
    dtype, weights = weights.dtype, weights.float()
    padding = blocks_a_row(columns, block_size) * block_size - columns
    if padding:
        weights = torch.nn.functional.pad(weights, (0, padding))
    weights = weights.view(rows, -1, block_size)
    half, highest = 1 << (bits - 1), (1 << bits) - 1
    scales = extremes(weights).div_(-half).to(dtype).float()  # codes are of the scale that is stored
    steps = torch.where(scales == 0, scales, scales.reciprocal())
    codes = weights.mul_(steps.unsqueeze(-1)).add_(half).add_(0.5).clamp_(0, highest).to(torch.uint8)  # rounds down
    if padding:
        codes[:, -1, block_size - padding :] = 0
    return Quantised(_packed(codes) if bits == 4 else codes, scales.to(dtype))


def dequantise_rows(quantised: Quantised, columns: int, bits: Bits, block_size: int) -> "Tensor":
    """Return what the codes of rows of `columns` weights mean, float32 `[rows, columns]`."""
    codes = unpacked(quantised.codes) if bits == 4 else quantised.codes
    zeros = 1 << (bits - 1) if quantised.zeros is None else quantised.zeros.unsqueeze(-1).float()
    weights = (codes.float() - zeros) * quantised.scales.unsqueeze(-1).float()
    return weights.reshape(len(weights), -1)[:, :columns]


def unpacked(codes: "Tensor") -> "Tensor":
    """Return 4-bit codes one a byte, uint8 `[..., 2 * bytes]`."""
    import torch

    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def packed(codes: "Tensor") -> "Tensor":
    """Return 4-bit codes, uint8 `[..., 2 * bytes]`, two a byte, the first in its lower half."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def packed_zeros(zeros: "Tensor") -> "Tensor":
    """Return 4-bit zero points as MatMulNBits reads them: uint8 `[rows, ceil(blocks / 2)]`, lower half first."""
    import torch

    return packed(torch.nn.functional.pad(zeros, (0, zeros.shape[-1] % 2)))


def extremes(blocks: "Tensor") -> "Tensor":
    """Return the last axis' value of the largest magnitude; of two that differ in sign only, the negative one."""
    import torch

    highest, lowest = blocks.amax(-1), blocks.amin(-1)
    extremes = torch.where(highest > -lowest, highest, lowest)
    return torch.where(extremes == 0, blocks[..., 0], extremes)  # of zeros the first, which may be negative


def _packed(codes: "Tensor") -> "Tensor":
    """Put two 4-bit codes into one byte: as a 16-bit number the second one is 4 bits away from its place."""
    import torch

    pairs = codes.view(torch.int16)
    return (pairs >> 4 | pairs).to(torch.uint8)
