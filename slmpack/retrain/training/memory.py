"""What a training takes in memory, known from a checkpoint's headers before anything is loaded.

the model            its weights, float32 (or bfloat16 under an adapter)
what is trained      weight, gradient and Adam's two moments, float32
gradient checkpoints the hidden state before each layer, for every token of a part
one layer, again     inputs and outputs of its matrices, computed once more on the way back
or the logits        of every token of a part, for the whole vocabulary, several times over, if they are more

A part is what is read at a time: a batch, or on a CPU as many of its chats as keep the last three small. So long
chats or a large vocabulary cost time and not memory, and a batch of any size takes what its parts take.
"""

import ctypes
from collections.abc import Sequence
from contextlib import suppress

from slmpack.checkpoint.sizes import ModelSizes
from slmpack.errors import TrainError
from slmpack.machine.memory import require_memory
from slmpack.records import Record
from slmpack.retrain.training.checkpoints import adapter_parameters

LIBRARY_BYTES = 500_000_000  # Python with torch, transformers and peft
OPTIMIZED_BYTES = 16  # a weight, its gradient, two moments
LOGIT_BYTES = 12.0  # a token and an entry of the vocabulary: three float32 copies
KEPT_COPIES = 1.3  # of the inputs and outputs of a layer's matrices, of every layer that keeps them
WORKED_COPIES = 3.0  # of those of the layer that is on its way back: values, gradients, temporaries
MARGIN = 1.05
COMFORTABLE = 0.75  # of what is free; a more precise way takes no more
PART_BYTES = 2 << 30  # of what a part's tokens take, where layers are computed again
WORTH_READING = 64  # tokens; a smaller max_length would leave all chats out
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGE_BLOCK_BYTES = 1 << 20
M_MMAP_THRESHOLD = -3  # Source: malloc.h of glibc, mallopt(3)


class Plan(Record):
    """How the memory is used: the base's precision, and whether layers are computed again on the way back."""

    dtype: str
    recomputes: bool


def trained_parameters(sizes: ModelSizes, rank: int) -> int:
    """Return how many weights are trained: an adapter's, or with rank 0 all."""
    return adapter_parameters(sizes.matrices, rank) if rank else sizes.parameters


def chats_at_a_time(sizes: ModelSizes, batch_size: int, longest: int) -> int:
    """Return how many chats of a batch a CPU reads at a time: a divisor of the batch, at least 1.

    By the sizes alone and not by the memory that is free, so that the sums are the same on every run.

    Args:
        longest: tokens of the longest chat.
    """
    most = PART_BYTES / (longest * _token_bytes(sizes, kept_layers=1))
    return max(chats for chats in range(1, batch_size + 1) if batch_size % chats == 0 and chats <= max(1, most))


def predicted_bytes(sizes: ModelSizes, rank: int, tokens: int, weight_bytes: int, kept_layers: int) -> int:
    """Predict the peak private memory of a training on a CPU, in bytes.

    Measured 2026-11-25 (unique set size): SmolLM2-135M with an adapter and with all weights, parts of 472 to 2,046
    tokens, and an adapter beside Phi-3's shape with 4, 8 and 32 layers, 127 to 511 tokens. 1.10 to 1.36 times what was
    measured, for Phi-3 with 4 layers in bfloat16 1.47 times (its embedding is hardly read); never below. The table is
    in docs/retraining.md.

    Args:
        rank: of the adapter; 0: all weights are trained.
        tokens: of what is read at a time, padding included.
        weight_bytes: of a weight of the model while it is trained: 4, or 2 under an adapter.
        kept_layers: how many layers' inputs and outputs are kept for the way back: all, or 1 with gradient
            checkpointing.
    """
    trains = _fixed_bytes(sizes, rank, weight_bytes) + tokens * _token_bytes(sizes, kept_layers)
    return int(MARGIN * max(trains, _loading_bytes(sizes, weight_bytes)))


def _loading_bytes(sizes: ModelSizes, weight_bytes: int) -> float:
    """Return what it takes until the last weight is there: in another precision they are beside the mapped files."""
    weights = weight_bytes * sizes.parameters
    return LIBRARY_BYTES + weights + (sizes.stored_bytes if weights != sizes.stored_bytes else 0)


def _fixed_bytes(sizes: ModelSizes, rank: int, weight_bytes: int) -> float:
    frozen = weight_bytes * sizes.parameters if rank else 0
    return LIBRARY_BYTES + frozen + OPTIMIZED_BYTES * trained_parameters(sizes, rank)


def _token_bytes(sizes: ModelSizes, kept_layers: int) -> float:
    one_layer = 4 * sum(rows + columns for rows, columns in sizes.matrices.values()) / max(1, sizes.layers)
    kept = 4 * sizes.layers * sizes.hidden + KEPT_COPIES * kept_layers * one_layer
    return kept + max(LOGIT_BYTES * sizes.vocabulary, WORKED_COPIES * one_layer)


def choose_plan(sizes: ModelSizes, rank: int, chats: int, longest: int, dtypes: Sequence[str], free_bytes: int) -> Plan:
    """Choose the base's precision, and whether layers are computed again on the way back, by the memory that is free.

    Computing them again takes a third longer and gives the same numbers, so half of what is free is left to others
    before that is saved; a quarter of it, before the base is rounded.

    Args:
        chats: how many are read at a time.
        longest: tokens of the longest chat.
        dtypes: what the base may be in, the best first.

    Raises:
        TrainError: too little memory for any.
    """

    def needed(plan: Plan) -> int:
        kept = 1 if plan.recomputes else sizes.layers
        return predicted_bytes(sizes, rank, chats * longest, FLOAT_BYTES[plan.dtype], kept)

    fast = Plan(dtype=dtypes[0], recomputes=False)
    if needed(fast) <= free_bytes / 2:
        return fast
    *better, least = (Plan(dtype=dtype, recomputes=True) for dtype in dtypes)
    for plan in better:
        if needed(plan) <= COMFORTABLE * free_bytes:
            return plan
    room = _room_tokens(sizes, rank, FLOAT_BYTES[least.dtype], free_bytes)
    what_for = f"training ({chats} x {longest:,} tokens at a time)"
    require_memory(needed(least), free_bytes, what_for, TrainError, _advice(rank, chats, longest, room))
    return least


def _room_tokens(sizes: ModelSizes, rank: int, weight_bytes: int, free_bytes: int) -> int:
    """Return how many tokens fit at a time where layers are computed again."""
    if predicted_bytes(sizes, rank, 0, weight_bytes, kept_layers=1) > free_bytes:
        return 0
    room = free_bytes / MARGIN - _fixed_bytes(sizes, rank, weight_bytes)
    return int(room / _token_bytes(sizes, kept_layers=1))


def _advice(rank: int, chats: int, longest: int, room: int) -> str:
    """Say which setting to lower, and to what; `room` is how many tokens fit at a time."""
    ways = ["use a machine with more memory"]
    if not rank:
        ways.insert(0, "train an adapter (rank above 0)")
    if room >= longest:
        ways.insert(0, f"lower batch_size to {room // longest}")
    elif room >= WORTH_READING:
        ways.insert(0, f"lower max_length to {room}" + (" and batch_size to 1" if chats > 1 else ""))
    return ", or ".join(ways)


def give_large_blocks_back() -> None:
    """Have this process return large blocks to the kernel when they are freed.

    Otherwise glibc keeps those below 32 MB in its heap, in holes between what lives longer. SmolLM2, 2,044 tokens at a
    time, layers computed again: 4.0 GB, and 2.1 GB in this way, which takes up to 17 % more processor time.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
