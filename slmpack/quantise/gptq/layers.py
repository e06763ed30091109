"""GPTQ in a model: every matrix of the decoder is solved while the source runs, and the source goes on with the codes.

    inputs x --mean of x x^T--> factor (once for q, k and v) --solve--> codes --> `keep`
       +----------------------> the layer's output, by what the codes mean

A layer therefore sees the inputs that it will have in the package; with the source's own the mean KL is the same but
for noise (SmolLM2-135M, two texts: .109 and .136 so, .115 and .137 with the source's own).

What is private to the process is one matrix, what its inputs' covariance takes, and the activations, not the model.
"""

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from slmpack.checkpoint.blocks import Quantised, dequantise_rows
from slmpack.progress import report
from slmpack.quantise.awq.channel_pairs import Fold
from slmpack.quantise.calibrate import matrix_names, run_source
from slmpack.quantise.gptq.solve import Factor, factorise, solve

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_SIZE = 32
COVARIANCE_COLUMNS = 512  # at a time: what is above the diagonal is of no use
MILLION = 10**6


def solve_model(
    model: Any,
    windows: Sequence[Sequence[int]],
    fold: Fold,
    keep: Callable[[str, Quantised], object],
    leave: Container[str] = (),
) -> list[str]:
    """Solve every Linear of the decoder, in the order in which they run.

    Args:
        model: from `load_source`; it is of no other use afterwards.
        windows: token ids, all as many.
        keep: called with each matrix' name in the checkpoint, and what became of it.
        leave: names of matrices that stay as they are.

    Returns:
        The names.

    Raises:
        BuildError: an activation that is not finite, or an architecture without a decoder apart from its head.
    """
    names: dict[Any, str] = matrix_names(model)
    del names[model.get_output_embeddings()]
    names = {module: name for module, name in names.items() if name not in leave}
    total = sum(module.weight.numel() for module in names)
    done: dict[str, int] = {}
    inputs = _Inputs()

    def solve_and_run(module: Any, x: "Tensor") -> "Tensor":
        import torch

        name, weight = names[module], module.weight
        if name not in done and x.numel():  # an expert that no token was routed to has no inputs
            factor = inputs.factor_of(x, fold.columns.get(name), name)
            solved, weight = _solve_folded(weight, factor, fold, name)
            keep(name, solved)
            done[name] = weight.numel()
            report("build", sum(done.values()) // MILLION, max(total // MILLION, 1), "million weights solved")
        return torch.nn.functional.linear(x, weight, module.bias)

    for module in names:
        module.forward = lambda x, module=module: solve_and_run(module, x)
    run_source(model, windows)
    return list(done)


class _Seen(NamedTuple):
    """The inputs of the last matrix: the next one may have the same."""

    inputs: "Tensor"
    columns: "Tensor | None"
    factor: Factor


class _Inputs:
    """Factors of inputs, each made once, however many matrices share it."""

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def factor_of(self, inputs: "Tensor", columns: "Tensor | None", name: str) -> Factor:
        """Return the factor of `inputs` `[..., K]`, divided by a fold's `columns`, for the matrix `name`."""
        seen = self._seen
        if seen is None or seen.inputs is not inputs or not _same(seen.columns, columns):
            seen = self._seen = None  # the memory of the last inputs is free before more is allocated
            self._seen = seen = _Seen(inputs, columns, factorise(covariance(inputs, columns), name))
        return seen.factor


def _same(one: "Tensor | None", other: "Tensor | None") -> bool:
    import torch

    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def covariance(inputs: "Tensor", columns: "Tensor | None") -> "Tensor":
    """Return the mean of x x^T over `inputs` `[..., K]`, divided by `columns` `[K]`; float32 `[K, K]`.

    Only its lower triangle is filled, which is all that `factorise` reads.
    """
    import torch

    rows = inputs.flatten(0, -2)
    count, width = rows.shape
    found = torch.zeros(width, width)
    for start in range(0, width, COVARIANCE_COLUMNS):
        stop = min(start + COVARIANCE_COLUMNS, width)
        torch.mm(rows[:, start:stop].T, rows[:, :stop], out=found[start:stop, :stop])
    found.div_(count)
    return found if columns is None else found.div_(columns).div_(columns.unsqueeze(1))


def _solve_folded(weight: "Tensor", factor: Factor, fold: Fold, name: str) -> "tuple[Quantised, Tensor]":
    """Return the folded weight's codes, and what they mean to the unfolded source, float32 `[N, K]`."""
    weights = weight.data
    columns, rows = fold.columns.get(name), fold.rows.get(name)
    if columns is not None:
        weights = weights * columns
    if rows is not None:
        weights = weights * rows.unsqueeze(1)
    solved = solve(weights, factor, BLOCK_SIZE)
    meant = dequantise_rows(solved, weights.shape[1], 4, BLOCK_SIZE)
    if rows is not None:
        meant.div_(rows.unsqueeze(1))
    return solved, meant if columns is None else meant.div_(columns)
