"""Sensitivity run: one pass of the source, in which every group of matrices has 4 bits once.

The batch's first row is the source. Before each decoder layer it grows by a copy of that row for every group of the
layer, and where the group's matrices work, its own row is worked out with what 4 bits leave of them:

    row 0     source     source     source  ...  logits ---+
    row 1     4 bits     source     source  ...  logits ---+--> KL(row 0 || row 1)
    row 2                4 bits     source  ...  logits ---+--> KL(row 0 || row 2)

A row costs what a run of the source from its layer on does: with four groups a layer half of four runs a layer. Layers
work on some rows at a time, so that memory is one matrix and the activations of those; all rows' logits are never there
at once. The weights are those that will be quantised: folded, rounded, and folded back.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.blocks import dequantise_rows
from slmpack.checkpoint.forward import float32_head, logits_from, run_in_float32, tensor_names
from slmpack.checkpoint.mapped_rows import Maps
from slmpack.errors import BuildError
from slmpack.quantise.zero_point_search import search_zero_points

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from slmpack.quantise.awq.channel_pairs import Fold

BLOCK_SIZE = 32
TOKENS_AT_ONCE = 2048  # of all rows together, in a layer
PIECE_WEIGHTS = 1 << 19  # rounded at a time by a thread
LOGITS_BYTES = 64 << 20  # of float32 logits at a time; their log-probabilities are as many again

ProgressCallback = Callable[[int, int], object]


class UnfitError(Exception):
    """The architecture cannot be run so; its text is the reason."""


@dataclass(frozen=True)
class Int4:
    """What 4 bits make of a matrix.

    Attributes:
        energy: float32 `[K]` by the checkpoint's name of a matrix `[N, K]`, of its input before any fold.
        fold: what is folded into matrices before they are quantised.
    """

    energy: "Mapping[str, Tensor]"
    fold: "Fold"

    def rounded(self, name: str, rows: "Tensor", which: slice) -> "Tensor":
        """Return float32 `rows` `[rows, K]` of a matrix as they are after 4 bits, with the fold undone.

        Args:
            which: rows of all the matrix' they are.
        """
        import torch

        energy, columns = self.energy[name], self.fold.columns.get(name)
        factors = torch.ones(1, 1) if columns is None else columns.unsqueeze(0)
        if columns is not None:
            energy = energy / columns.square()
        if (by_row := self.fold.rows.get(name)) is not None:
            factors = factors * by_row[which].unsqueeze(1)
        quantised = search_zero_points(rows * factors, energy, BLOCK_SIZE)
        return dequantise_rows(quantised, rows.shape[1], 4, BLOCK_SIZE) / factors


class _Batch:
    """The rows that a layer works on: `first` and following of all."""

    def __init__(self) -> None:
        self.first = 0


def measure_losses(
    model: Any,
    window: Sequence[int],
    groups: Sequence[tuple[str, ...]],
    int4: Int4,
    on_progress: ProgressCallback = lambda *_: None,
) -> tuple[float, ...]:
    """Return for each group the mean over the tokens of KL(source || source with this group in 4 bits), in nats.

    Args:
        model: from `load_source`; it is of no other use afterwards.
        window: token ids.
        groups: names of the checkpoint's tensors, the layers in order.
        on_progress: called with how many layers are done, and how many there are.

    Raises:
        UnfitError: the architecture is not a list of layers that work on `[batch, tokens, hidden]`.
        BuildError: an activation that is not finite.
    """
    import torch

    decoder = model.base_model
    layers = _layers_of(decoder)
    batch, row_of = _Batch(), {tensor: row for row, group in enumerate(groups, 1) for tensor in group}
    found = _round_rows(model, row_of, batch, int4)
    _require_all(groups, found)
    for done, (layer, names) in enumerate(zip(layers, found, strict=True), 1):
        _grow(layer, len({row_of[name] for name in names}), batch, partial(on_progress, done, len(layers)))
    with torch.inference_mode(), Maps() as maps:
        model.set_output_embeddings(float32_head(model.get_output_embeddings(), maps))
        run_in_float32(decoder, maps, lambda *_: None)
        output = _run(decoder, window)
        if output.last_hidden_state.shape[0] != 1 + len(groups):
            raise UnfitError(f"{type(decoder).__name__} gives something else than its rows")
        return _losses(model, output, [" and ".join(group) for group in groups])


def _layers_of(decoder: Any) -> "list[Module]":
    import torch

    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UnfitError(f"{type(decoder).__name__} has no list of layers")
    return list(layers)


def _round_rows(model: Any, row_of: Mapping[str, int], batch: _Batch, int4: Int4) -> list[list[str]]:
    """Let each matrix have 4 bits for its group's row; return the names of those in each layer."""
    import torch

    names, found = tensor_names(model), []
    for layer in _layers_of(model.base_model):
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        rounded = {module: name for module in linears if (name := names[module]["weight"]) in row_of}
        for module, name in rounded.items():
            module.register_forward_hook(_rounds(name, row_of[name], batch, int4))
        found.append(list(rounded.values()))
    return found


def _require_all(groups: Sequence[tuple[str, ...]], found: Sequence[Sequence[str]]) -> None:
    """Refuse groups that are not what the layers have, one layer after the other."""
    expected = [name for group in groups for name in group]
    rows = [name for names in found for name in sorted(names, key=expected.index)]
    if rows != expected:
        missing = next((name for name in expected if name not in rows), expected[0])
        raise UnfitError(f"{missing} is no Linear of a layer of its own")


def _rounds(name: str, row: int, batch: _Batch, int4: Int4) -> "Callable[[Any, Any, Tensor], None]":
    """Return a forward hook that works out one row of a Linear's output again."""
    import torch

    def after(linear: Any, args: tuple[Any, ...], output: "Tensor") -> None:
        inputs = args[0]
        if not bool(torch.isfinite(inputs).all()):
            raise BuildError(
                f"the inputs of {name} are not finite", "finite activations", "check the checkpoint's weights"
            )
        if inputs.dim() != 3:
            raise UnfitError(f"{name} works on {list(inputs.shape)}, which is not a batch of tokens")
        at = row - batch.first
        if not 0 <= at < len(inputs):
            return
        weight = _in_threads(partial(int4.rounded, name), linear.weight)
        output[at] = torch.nn.functional.linear(inputs[at], weight, linear.bias)

    return after


def _in_threads(rounded: "Callable[[Tensor, slice], Tensor]", weight: "Tensor") -> "Tensor":
    """Return a matrix rounded, some rows to a thread: they do not share the arithmetic of one, which waits for both."""
    import torch

    step, threads = max(1, PIECE_WEIGHTS // weight.shape[1]), torch.get_num_threads()
    parts = [slice(start, start + step) for start in range(0, len(weight), step)]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="round") as pool:
            return torch.cat(list(pool.map(lambda part: rounded(weight[part], part), parts)))
    finally:
        torch.set_num_threads(threads)


def _grow(layer: Any, more: int, batch: _Batch, on_layer: Callable[[], object]) -> None:
    """Let a layer work on `more` copies of the first row beside its own input, some rows at a time."""
    import torch

    own = layer.forward

    def forward(hidden: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
        if hidden.dim() != 3:
            raise UnfitError(f"{type(layer).__name__} works on {list(hidden.shape)}, which is not a batch of tokens")
        grown = torch.cat([hidden, hidden[:1].expand(more, -1, -1)])
        step = max(1, TOKENS_AT_ONCE // hidden.shape[1])
        for start in range(0, len(grown), step):
            batch.first = start
            worked = own(grown[start : start + step], *args, **kwargs)
            if not isinstance(worked, torch.Tensor):
                raise UnfitError(f"{type(layer).__name__} gives a {type(worked).__name__}")
            grown[start : start + step] = worked
        on_layer()
        return grown

    layer.forward = forward


def _run(decoder: Any, window: Sequence[int]) -> Any:
    import torch

    try:
        return decoder(input_ids=torch.tensor([window]), use_cache=False)
    except RuntimeError as error:  # such as a layer that asks an earlier one, whose batch was smaller
        raise UnfitError(f"{type(decoder).__name__} cannot run with a batch that grows ({error})") from error


def _losses(model: Any, output: Any, names: Sequence[str]) -> tuple[float, ...]:
    """Return the mean KL of each row to the first; the head runs on some tokens at a time, all their rows."""
    import torch

    hidden = output.last_hidden_state.transpose(0, 1)
    tokens, rows, _ = hidden.shape
    vocabulary = model.get_output_embeddings().weight.shape[0]
    parts = torch.split(hidden, max(1, LOGITS_BYTES // (4 * vocabulary * rows)))
    total = torch.zeros(rows, dtype=torch.float64)
    for logits in logits_from(model, output, (part.flatten(0, 1) for part in parts)):
        log_probabilities = torch.log_softmax(logits.view(-1, rows, vocabulary), dim=-1)
        source = log_probabilities[:, :1]
        likely = source.exp()
        for row in range(1, rows):
            total[row] += (likely * (source - log_probabilities[:, row : row + 1])).sum(dtype=torch.float64)
    for name, loss in zip(names, total[1:], strict=True):
        if not bool(torch.isfinite(loss)):
            raise BuildError(
                f"with {name} in 4 bits the logits are not finite",
                "finite activations",
                "check the checkpoint's weights",
            )
    return tuple((total[1:] / tokens).clamp_(min=0.0).tolist())
