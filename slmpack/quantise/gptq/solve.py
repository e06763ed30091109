"""GPTQ: the codes of a matrix chosen one column after the other, each making up for what the others lost before it.

What a linear layer loses is not the sum of what its weights lose: inputs go up and down together, so one weight's error
can be taken back by the weights of the inputs that are like its own. With H the mean of x x^T over the inputs x, and
D = W - Q, a token's mean squared error is the trace of D H D^T. Let H = L L^T, L lower triangular: it is the sum over
the columns j of

    (D L)_j^2 = (D_j L_jj + sum over i > j of D_i L_ij)^2

where no column after j sees column j's choice. So the last column is rounded first, and every other one is rounded to
the nearest code of

    target_j = W_j + (sum over i > j of D_i L_ij) / L_jj

Before a block's columns are, its scale and zero point are searched for what its targets would be if it lost nothing
itself, weighted by the diagonal of H (see `zero_point_search`). Weighted by L_jj^2, which is what a column's error
costs when the columns to come make up for it, the result is worse (SmolLM2-135M: mean KL .150, not .132).

Source: Frantar et al., GPTQ, arXiv:2210.17323, which goes from the first column to the last with the inverse of H. In
this direction the steps are the same and no inverse is needed: a third of the arithmetic on H, and half the memory.
"""

from typing import TYPE_CHECKING, NamedTuple

from slmpack.checkpoint.blocks import Quantised
from slmpack.errors import BuildError
from slmpack.quantise.scale_search import packed_blocks
from slmpack.quantise.zero_point_search import HIGHEST, search_zero_points

if TYPE_CHECKING:
    from torch import Tensor

# Of the diagonal's mean. SmolLM2-135M, mean KL on two texts: folded, .091 and .116 with .01, .079 and .110 with .1; not
# folded, .109 and .136 with .01, .109 and .138 with .03. As a part of each channel's own energy instead, not folded:
# .124 and .153 with .01, .108 and .140 with .1.
DAMPING = 0.1
MORE_DAMPING = 4.0  # times as much, where that was not enough
ATTEMPTS = 3


class Factor(NamedTuple):
    """What is known of a matrix' inputs.

    Attributes:
        lower: float32 `[K, K]`, the Cholesky factor of the damped mean of x x^T.
        energy: float32 `[K]`, the mean of x^2.
    """

    lower: "Tensor"
    energy: "Tensor"


def factorise(hessian: "Tensor", name: str, damping: float = DAMPING) -> Factor:
    """Return the Cholesky factor of `hessian` with more on its diagonal, so that there is one.

    Args:
        hessian: float32 or float64 `[K, K]`, the mean of x x^T; overwritten. Only its lower triangle is read.
        name: of the matrix, for errors.
        damping: of the diagonal's mean, that is added to it.

    Raises:
        BuildError: a number is not finite, or no damping helps.
    """
    import torch

    diagonal = hessian.diagonal()
    energy = diagonal.clone()
    if not bool(hessian.tril().isfinite().all()):
        raise BuildError(f"the inputs of {name} are not finite", "finite activations", "check the checkpoint's weights")
    mean = energy.mean() or torch.ones_like(energy[0])  # of zeros: a column then makes up for nothing
    for attempt in range(ATTEMPTS):
        diagonal.copy_(energy + damping * MORE_DAMPING**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            return Factor(lower.float(), energy.float())
    raise BuildError(
        f"the inputs of {name} have no covariance that can be factorised",
        "a positive definite one",
        "calibrate on another text, or take another --recipe",
    )


def solve(weights: "Tensor", factor: Factor, block_size: int) -> Quantised:
    """Quantise float32 `[N, K]`, K even, to 4 bits with a zero point a block; rows do not depend on each other.

    Raises:
        BuildError: the factor is of another number of columns.
    """
    import torch

    columns = weights.shape[1]
    if factor.energy.shape != (columns,):
        raise BuildError(
            f"a calibration of shape {list(factor.energy.shape)}",
            f"[{columns}], as the weight's rows",
            "calibrate this very model",
        )
    lost = weights.T.contiguous()  # a column of weights is a row here; it becomes what rounding lost of it
    blocks = [
        _solve_block(lost, factor, slice(start, min(start + block_size, columns)), block_size)
        for start in reversed(range(0, columns, block_size))
    ]
    codes, scales, zeros = (torch.cat(parts, dim=1) for parts in zip(*reversed(blocks), strict=True))
    return Quantised(codes, scales, zeros)


def _solve_block(lost: "Tensor", factor: Factor, part: slice, block_size: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Round one block of `lost`, float32 `[K, N]`, whose rows below are done; return its `Quantised`, `[N, 1]` each."""
    import torch

    block, own = lost[part], factor.lower[part, part]
    owed = factor.lower[part.stop :, part].T @ lost[part.stop :]
    free = block + torch.linalg.solve_triangular(own.T, owed, upper=True)
    _, scales, zeros = search_zero_points(free.T.contiguous(), factor.energy[part], block_size)
    assert zeros is not None
    codes = _round_columns(block, own, owed, scales[:, 0], zeros[:, 0].float())
    codes = torch.nn.functional.pad(codes, (0, 0, 0, block_size - len(codes)))
    return packed_blocks(codes.unsqueeze(-1), 4, padding=0), scales, zeros


def _round_columns(block: "Tensor", own: "Tensor", owed: "Tensor", scales: "Tensor", zeros: "Tensor") -> "Tensor":
    """Return the codes of a block, float32 `[columns, N]`, and leave in `block` what they lose.

    Args:
        own: `[columns, columns]`, the block's part of the factor.
        owed: `[columns, N]`, what each column is to make up for, of those outside the block.
        scales: `[N]`, as are `zeros`.
    """
    import torch

    codes, steps = torch.empty_like(block), torch.where(scales == 0, scales, scales.reciprocal())
    for at in reversed(range(len(block))):
        made_up = torch.addmv(owed[at], block[at + 1 :].T, own[at + 1 :, at]).div_(own[at, at])
        made_up.add_(block[at]).mul_(steps).add_(zeros).round_().clamp_(0, HIGHEST)
        codes[at] = made_up
        block[at].sub_(made_up.sub_(zeros).mul_(scales))
    return codes
