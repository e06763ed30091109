"""Fold scales: how much each channel of a pair is scaled, so that 4 bits lose least.

A scale is a power of the energy's root over the weights' magnitude: a channel with large inputs gets finer steps at the
cost of those that share its blocks, and more so where its weights are small. The power is chosen for each 32 channels,
which share the readers' blocks, as the one of a few that loses least after the search for scales and zero points:

    loss = sum over rows i and channels j of  energy[j] * (weight[i, j] - folded and quantised[i, j] / scale[j])^2

The power 0 is no fold, and is one of those tried. Pairs do not depend on each other: what one does to a matrix's rows
changes its blocks' scales and no code. Of large matrices some rows stand for all.

SmolLM2-135M, all in 4 bits with zero points, mean KL on two texts: .154 and .200 without a fold; .119 and .168 with one
power for a pair and without the weights' magnitudes; .111 and .164 with a power for each block; .116 and .163 with the
magnitudes; .106 and .161 with both. Two powers, of the energy and of the magnitude apart, give .109 and .161 in twice
the time. Differences below .01 are noise.

Source: Lin et al., AWQ: Activation-aware Weight Quantization, arXiv:2306.00978, section 3.2: one power for each pair,
of the mean magnitude of the inputs. Where a block's step follows its weights' magnitudes, the scales that lose least
are the square roots of energy's root over magnitude: a power of 1/2.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from slmpack.checkpoint.blocks import dequantise_rows
from slmpack.checkpoint.mapped_rows import Rows
from slmpack.progress import report
from slmpack.quantise.awq.channel_pairs import Pair
from slmpack.quantise.zero_point_search import search_zero_points

if TYPE_CHECKING:
    from torch import Tensor

POWERS = (0.0, 0.2, 0.3, 0.4, 0.5)
LARGEST_SCALE = 64.0  # and its inverse is the smallest: norms and biases stay far from where float16 ends
SAMPLED_ROWS = 512  # of a matrix, evenly
BLOCK_SIZE = 32


class Choice(NamedTuple):
    """What was chosen for a pair.

    Attributes:
        scales: float32 `[channels]`; ones where nothing was better.
        loss: with them, of the sampled rows, in terms of the whole matrices.
        unfolded: the same loss without a fold.
    """

    scales: "Tensor"
    loss: float
    unfolded: float


def choose_scales(
    pairs: Sequence[Pair], rows: Mapping[str, Rows], energies: "Mapping[str, Tensor]", threads: int
) -> list[Choice]:
    """Return the choice for each pair.

    Args:
        pairs: all of whose readers are among `rows`.
        rows: the checkpoint's matrices, by its names.
        energies: float32 `[K]` by those names; a pair with a reader that has none is not folded.
        threads: how many pairs are worked on at once.
    """
    choices = []
    with ThreadPoolExecutor(threads, thread_name_prefix="fold") as pool:
        for choice in pool.map(lambda pair: _choose(pair, rows, energies), pairs):
            choices.append(choice)
            report("build", len(choices), len(pairs), "folds chosen")
    return choices


def _choose(pair: Pair, rows: Mapping[str, Rows], energies: "Mapping[str, Tensor]") -> Choice:
    import torch

    if not all(name in energies for name in pair.readers):  # nothing but zeros was seen there
        return Choice(torch.ones(pair.channels), 0.0, 0.0)
    energy = energies[pair.readers[0]]
    sampled = [(_sample(rows[name]), rows[name].count) for name in pair.readers]
    squares = sum((_squares(weights, count) for weights, count in sampled), torch.zeros(()))
    blocks = blocks_of(pair)
    ratios = per_channel(pair, energy), per_channel(pair, squares)
    tried = torch.stack([scales_of(*ratios, blocks, power) for power in POWERS])
    losses = torch.stack([_loss(pair, sampled, energy, scales) for scales in tried])
    of_blocks = losses.new_zeros(len(POWERS), int(blocks[-1]) + 1).index_add(1, blocks, losses)
    best = of_blocks.argmin(0)
    return Choice(
        scales=tried.gather(0, best[blocks].unsqueeze(0)).squeeze(0),
        loss=float(of_blocks.amin(0).sum()),
        unfolded=float(of_blocks[0].sum()),
    )


def blocks_of(pair: Pair) -> "Tensor":
    """Return the number of each channel's block, int64 `[channels]`, from 0: channels whose readers share scales.

    All are one block where heads that several read are cut by blocks in different places.
    """
    import torch

    places = torch.arange(pair.channels)
    aligned = pair.repeats == 1 or pair.channels // pair.heads % BLOCK_SIZE == 0
    return places // BLOCK_SIZE if aligned else torch.zeros_like(places)


def per_channel(pair: Pair, columns: "Tensor") -> "Tensor":
    """Return the mean over the columns `[K]` that read each channel, `[channels]`."""
    return columns.view(pair.heads, pair.repeats, -1).mean(1).flatten()


def to_columns(pair: Pair, scales: "Tensor") -> "Tensor":
    """Return the scale of every column of a reader, `[K]`, of `[channels]`."""
    return scales.view(pair.heads, 1, -1).expand(-1, pair.repeats, -1).flatten()


def scales_of(energy: "Tensor", squares: "Tensor", blocks: "Tensor", power: float) -> "Tensor":
    """Return float32 `[channels]`, whose geometric mean over a block is 1; a channel without energy or weights has 1.

    Args:
        energy: float32 `[channels]`.
        squares: of the weights, the mean or the sum, float32 `[channels]`.
        blocks: of each channel, int64 `[channels]`.
        power: what the magnitudes' ratio is raised to.
    """
    import torch

    alive = (energy > 0) & (squares > 0)
    ratios = torch.where(alive, energy.double() / squares.double(), 1.0)
    logarithms = ratios.log() * (power / 2)
    sums = logarithms.new_zeros(2, int(blocks[-1]) + 1)
    totals, counts = sums.index_add(1, blocks, torch.stack((logarithms, alive.double())))
    means = totals / counts.clamp(min=1)
    scales = (logarithms - means[blocks]).exp().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    return torch.where(alive, scales, 1.0).float()


def _sample(rows: Rows) -> "Tensor":
    """Return some rows, evenly distributed, float32 `[at most 512, K]`."""
    import torch

    samples = min(rows.count, SAMPLED_ROWS)
    places = [at * rows.count // samples for at in range(samples)]
    return torch.cat([rows.read(place, place + 1) for place in places]).float()


def _squares(weights: "Tensor", count: int) -> "Tensor":
    """Return what the squares of `count` rows add up to in each column, by some of them."""
    return weights.square().mean(0) * count


def _loss(pair: Pair, sampled: "Sequence[tuple[Tensor, int]]", energy: "Tensor", scales: "Tensor") -> "Tensor":
    """Return what is lost at each channel, float64 `[channels]`."""
    import torch

    columns = to_columns(pair, scales)
    total = torch.zeros(len(columns), dtype=torch.float64)
    for weights, count in sampled:
        quantised = search_zero_points(weights * columns, energy / columns.square(), BLOCK_SIZE)
        error = dequantise_rows(quantised, weights.shape[1], 4, BLOCK_SIZE).div_(columns).sub_(weights)
        total += error.square_().mean(0).mul_(energy).double() * count
    return per_channel(pair, total) * pair.repeats
