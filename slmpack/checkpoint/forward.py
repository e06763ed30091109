"""The source itself: run by transformers in float32, with the weights of one module in memory at a time.

    weights in their files --a module's turn--> float32 --its forward, all texts at once--> forgotten

bfloat16 and float16 weights are exact in float32, so what comes out is what these weights say and nothing else. A run
in bfloat16 would round every activation to 8 bits, which would count as the package's loss: for SmolLM2-135M it changes
the likeliest token at 2 of 100 positions, and 8-bit weights change it at 4. Where a processor has instructions for
bfloat16, as AVX512-BF16, that run would take 0.4 times as long; elsewhere many times. All texts pass a module together,
so each weight is read once.
What is private to the process is the largest matrix in float32 and the activations, not the model. Buffers, such as the
scale of Gemma's embeddings, have the value that transformers gives them in the source's precision.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.mapped_rows import Maps
from slmpack.errors import QualityError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

READ_BYTES = 16 << 20  # of a weight at a time, on its way from the file to float32
LOGITS_BYTES = 256 << 20  # of float32 logits at a time
HEAD_ROWS = 8192

ProgressCallback = Callable[[int, int], object]
Change = Callable[["Module", str, "Tensor"], "Tensor"]


def load_source(folder: Path, dtype: str) -> Any:
    """Load a checkpoint as transformers does, in its own precision `dtype`: its weights stay in their files, mapped."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)


def tensor_names(model: Any) -> "dict[Module, dict[str, str]]":
    """Return what the checkpoint calls the weights and biases of every module, while they are still its files' own."""
    with Maps() as maps:
        return {
            module: {
                own: maps.rows_of(tensor.detach().reshape(1, -1), f"{path}.{own}").name
                for own, tensor in module.named_parameters(recurse=False)
            }
            for path, module in model.named_modules()
        }


def vocabulary_of(model: Any) -> int:
    """Return how many tokens the model gives logits for."""
    return int(model.get_output_embeddings().weight.shape[0])


def _unchanged(_module: "Module", _name: str, weight: "Tensor") -> "Tensor":
    return weight


def logits_of(
    model: Any,
    windows: Sequence[Sequence[int]],
    on_progress: ProgressCallback = lambda *_: None,
    change: Change = _unchanged,
) -> "Iterator[Tensor]":
    """Yield what the model says of the next token at every position that has one, float32 `[positions, vocabulary]`.

    Args:
        model: from `load_source`; it is of no other use afterwards.
        windows: token ids; each stands alone, and its last position is left out.
        on_progress: called with how many of the decoder's weights were used, and how many there are.
        change: what to use for a weight of the decoder: given its module, its name there, and the weight in float32,
            which may be overwritten if it is a matrix; it may be the file's own if it is not.

    Yields:
        Consecutive positions, as many as fit into 256 MB; the windows follow each other.

    Raises:
        QualityError: the architecture has no decoder apart from its head.
    """
    import torch

    decoder = model.base_model
    if decoder is model:
        raise QualityError(f"{type(model).__name__} without a decoder of its own", "a decoder and a head", "")
    with torch.inference_mode(), Maps() as maps:
        model.set_output_embeddings(float32_head(model.get_output_embeddings(), maps))
        run_in_float32(decoder, maps, on_progress, change)
        output = decoder(input_ids=_padded(windows), use_cache=False)
        predicting = [rows[: len(window) - 1] for rows, window in zip(output.last_hidden_state, windows, strict=True)]
        hidden = torch.cat(predicting)
        parts = torch.split(hidden, max(1, LOGITS_BYTES // (4 * vocabulary_of(model))))
        yield from logits_from(model, output, parts)


def logits_from(model: Any, output: Any, parts: "Iterable[Tensor]") -> "Iterator[Tensor]":
    """Yield the head's logits of each of `parts`, scaled or capped as the architecture does.

    Args:
        model: whose head is from `float32_head`; its decoder cannot be run again.
        output: what its decoder gave.
        parts: float32 `[positions, hidden]`, as the decoder's last hidden state has them.

    Yields:
        float32 `[positions, vocabulary]`.
    """
    import torch

    for decoder in (model.base_model, model.get_decoder()):  # OPT's head asks the latter
        decoder.forward = lambda *_, **__: output
    for part in parts:
        output["last_hidden_state"] = part[None]
        yield model(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=False).logits[0]


def _padded(windows: Sequence[Sequence[int]]) -> "Tensor":
    """Return int64 `[windows, sequence]`; padding comes last, where no position before it sees it."""
    import torch

    longest = max(map(len, windows))
    return torch.tensor([[*window, *[window[-1]] * (longest - len(window))] for window in windows])


def run_in_float32(decoder: Any, maps: Maps, on_progress: ProgressCallback, change: Change = _unchanged) -> None:
    """Let every module of `decoder` have its weights in float32 for as long as it runs."""
    import torch

    def own(module: Any) -> dict[str, "Tensor"]:
        return {name: weight for name, weight in module.named_parameters(recurse=False) if weight.is_floating_point()}

    owners = {module: own(module) for module in decoder.modules() if own(module)}
    tokens = decoder.get_input_embeddings()  # OPT looks its positions up by the attention mask
    total = sum(weight.numel() for weights in owners.values() for weight in weights.values())
    done = 0

    def before(module: Any, args: tuple[Any, ...]) -> None:
        for name, weight in owners[module].items():
            looks_up = module is tokens and args
            wide = _looked_up(weight, args[0]) if looks_up else _float32(weight, name, maps)
            setattr(module, name, torch.nn.Parameter(change(module, name, wide), requires_grad=False))

    def after(module: Any, _args: tuple[Any, ...], _output: object) -> None:
        nonlocal done
        for name, weight in owners[module].items():
            setattr(module, name, weight)
            done += weight.numel()
        on_progress(done, total)

    for module in owners:
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
    for module in decoder.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.float())


def _float32(weight: "Tensor", name: str, maps: Maps) -> "Tensor":
    """Return the weight in float32; a matrix is read from its file, past the map, whose pages would be ours."""
    import torch

    if weight.dim() != 2:
        return weight.float()
    rows, wide = maps.rows_of(weight, name), torch.empty(weight.shape)
    step = max(1, READ_BYTES // max(1, weight.shape[1] * weight.itemsize))
    for start in range(0, rows.count, step):
        stop = min(start + step, rows.count)
        wide[start:stop] = rows.read(start, stop)
    return wide


def _looked_up(weight: "Tensor", ids: "Tensor") -> "Tensor":
    """Return an embedding in float32 that has the rows of `ids`; the others are zero and take no memory."""
    import numpy as np
    import torch

    wide = torch.from_numpy(np.zeros(tuple(weight.shape), dtype=np.float32))  # the kernel's zero pages until written to
    ids_once = torch.unique(ids)
    wide[ids_once] = weight[ids_once].float()
    return wide


def float32_head(head: Any, maps: Maps) -> "torch.nn.Module":
    """Return the output layer `head` in float32, a slice of its weight at a time."""
    import torch

    class Float32Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = head.weight, head.bias

        def forward(self, hidden: "Tensor") -> "Tensor":
            rows = maps.rows_of(self.weight, "head")
            logits = hidden.new_empty((*hidden.shape[:-1], rows.count))
            for start in range(0, rows.count, HEAD_ROWS):
                part = slice(start, min(start + HEAD_ROWS, rows.count))
                bias = None if self.bias is None else self.bias[part].float()
                logits[..., part] = torch.nn.functional.linear(hidden, rows.read(part.start, part.stop).float(), bias)
            return logits

    return Float32Head()
