"""Zero-point search: each block's scale and zero point chosen so that little is lost where the inputs are large.

Weights of a block seldom reach as far up as down, and a scale alone spends codes on what is not there. With a zero
point of its own, which is one of the codes, a block of 32 weights takes 20.5 bytes in place of 20, and runs as fast:
ONNX Runtime's kernels for 4 bits read it with the scale. (A zero point that is no whole number would be exact for more
blocks, and takes those kernels away: one row of inputs then takes 500 times as long.)

    weights --ends of the block, drawn in a little--> scale, zero point --> codes --least squares--> scale --> codes

The result has the smallest energy-weighted error, as in `scale_search`; what that finds is one of those tried.
"""

from itertools import product
from typing import TYPE_CHECKING

from slmpack.checkpoint.blocks import Quantised, dequantise_rows
from slmpack.quantise.scale_search import blocks_first, packed_blocks, search_rows

if TYPE_CHECKING:
    from torch import Tensor

HIGHEST = 15
MIDDLE = 8  # what a block without a zero point of its own has
# By how much of its range a block's lower and upper end are drawn in before the range is cut into 15 steps. Of ten
# matrices of SmolLM2-135M, their error relative to the symmetric search's .0063: .00505 with these, .00500 with 17
# pairs of five ends and a quarter more time, .00493 with 49 pairs of seven, .00513 with nine pairs of three.
ENDS = (-0.02, 0.04, 0.10, 0.16)
PIECE_WEIGHTS = 1 << 17  # in float32 512 KB: the few tensors of its size that are worked on stay near a core


def search_zero_points(weights: "Tensor", energy: "Tensor", block_size: int) -> Quantised:
    """Quantise float32 or float16 `[rows, K]`, K even, to 4 bits; a row comes out as it does alone, but for rounding.

    A block whose channels all have no energy, or with a weight that is not finite, is as `quantise_rows` has it.

    Args:
        energy: float32 `[K]`, the mean square of what each column is multiplied with; not negative, finite.

    Raises:
        BuildError: the energy is of another number of channels.
    """
    import torch

    pieces = torch.split(weights, max(1, PIECE_WEIGHTS // weights.shape[1]))
    parts = [_search(piece, energy, block_size) for piece in pieces]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Quantised(
        torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]), torch.cat(zeros)
    )


def _search(weights: "Tensor", energy: "Tensor", block_size: int) -> Quantised:
    import torch

    columns = weights.shape[1]
    symmetric = search_rows(weights, energy, 4, block_size)
    blocks = blocks_first(weights.float(), block_size)
    counts = blocks_first(energy.float().unsqueeze(0), block_size)
    scales, zeros = _best_range(blocks, counts)
    scales = _refit(blocks, counts, scales, zeros).to(weights.dtype)
    codes = _codes(blocks, scales.float(), zeros)
    loss = (codes - zeros).mul_(scales.float()).sub_(blocks).square_().mul_(counts).sum(0)
    by_scales = blocks_first(dequantise_rows(symmetric, columns, 4, block_size), block_size)
    better = loss < by_scales.sub_(blocks).square_().mul_(counts).sum(0)  # not where a number is not finite
    packed = packed_blocks(codes, 4, padding=-columns % block_size)
    middle = torch.full_like(zeros, MIDDLE)
    return Quantised(
        torch.where(better.unsqueeze(-1), packed, symmetric.codes),
        torch.where(better, scales, symmetric.scales),
        torch.where(better, zeros, middle).to(torch.uint8),
    )


def _best_range(blocks: "Tensor", counts: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return the scale and the zero point, float32 `[rows, blocks]` each, that explain most of the blocks' energy."""
    import torch

    lowest, highest = blocks.amin(0).clamp_(max=0), blocks.amax(0).clamp_(min=0)
    width = highest - lowest
    most = torch.zeros_like(width)
    scales, zeros = torch.zeros_like(width), torch.full_like(width, MIDDLE)
    for lower, upper in product(ENDS, ENDS):
        step = width * ((1 - lower - upper) / HIGHEST)
        zero = (lowest + width * lower).div_(step).neg_().round_().clamp_(0, HIGHEST)
        covariance, variance = _fit(blocks, counts, step, zero)
        gain = covariance.square() / variance
        better = gain > most
        most = torch.where(better, gain, most)
        scales, zeros = torch.where(better, covariance / variance, scales), torch.where(better, zero, zeros)
    return scales, zeros


def _fit(blocks: "Tensor", counts: "Tensor", scales: "Tensor", zeros: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return least squares of the codes with these scales: the best scale for them is the first over the second."""
    steps = _codes(blocks, scales, zeros).sub_(zeros)
    weighted = steps * counts
    variance = steps.mul_(weighted).sum(0)
    return weighted.mul_(blocks).sum(0), variance


def _refit(blocks: "Tensor", counts: "Tensor", scales: "Tensor", zeros: "Tensor") -> "Tensor":
    import torch

    covariance, variance = _fit(blocks, counts, scales, zeros)
    return torch.where(variance > 0, covariance / variance, scales)


def _codes(blocks: "Tensor", scales: "Tensor", zeros: "Tensor") -> "Tensor":
    """Return the nearest codes, float32, as `blocks`."""
    import torch

    inverse = torch.where(scales == 0, scales, scales.reciprocal())
    return (blocks * inverse).add_(zeros).round_().clamp_(0, HIGHEST)
