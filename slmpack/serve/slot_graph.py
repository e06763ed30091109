"""The package's own graph over a table of slots: continuous batching by plain ONNX Runtime.

ONNX Runtime GenAI's generator cannot take a row into a running batch. The graph that it runs can: its
GroupQueryAttention has a length of its own for each row (the row's sum in `attention_mask`), and writes keys and values
into the buffer it reads them from, where past and present are bound to the same memory. So one buffer a layer,

    float32 [slots, kv_heads, context, head_size]

is a table whose rows are conversations. A part of a prompt runs over one row, a step of decoding over a range of rows.

    advance(slot, [n tokens]) -> logits [vocabulary] behind the last of them
    step({slot: token})       -> logits [vocabulary] a slot

Seen with onnxruntime 1.31.1 on CPUs; `slmpack.serve.probe` says at every start whether it still holds.
"""

import ctypes
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]

KV_BYTES = 4  # float32
# An idle thread waits busily for so long. Without it two threads are no faster than one at a time for a small model
# (10.8 ms a step, 7.2 with it); without an end, which is the default, they take 15.5 beside a busy neighbour, with this
# one 13.1. Measured on 2 cores, onnxruntime 1.31.1, on 2026-11-27.
SPIN_MICROSECONDS = 20
STEP_OF_LENGTH = 32  # the mask of a step has so many columns more when it grows: its shape seldom changes


class GraphShape:
    """What genai_config.json says of the decoder.

    Attributes:
        layers, kv_heads, head_size, vocabulary: of the model.
    """

    def __init__(self, folder: Path) -> None:
        model = json.loads((folder / "genai_config.json").read_bytes())["model"]
        decoder = model["decoder"]
        self.file = folder / decoder["filename"]
        self.layers = int(decoder["num_hidden_layers"])
        self.kv_heads = int(decoder["num_key_value_heads"])
        self.head_size = int(decoder["head_size"])
        self.vocabulary = int(model["vocab_size"])
        self.inputs: dict[str, str] = decoder["inputs"]
        self.outputs: dict[str, str] = decoder["outputs"]

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, bytes."""
        return 2 * self.layers * self.kv_heads * self.head_size * KV_BYTES


class SlotGraph:
    """One session and its table of keys and values.

    Args:
        folder: the package.
        slots: rows of the table.
        context: tokens a row holds at most.
        threads: of one operator.

    Attributes:
        lengths: tokens that each slot holds, int64 `[slots]`.
        highest: what they were at most: memory that was written to stays taken.
    """

    def __init__(self, folder: Path, slots: int, context: int, threads: int) -> None:
        import onnxruntime

        self.shape = GraphShape(folder)
        self.slots, self.context = slots, context
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        self._session = onnxruntime.InferenceSession(self.shape.file, options, providers=["CPUExecutionProvider"])
        rows = (slots, self.shape.kv_heads, context, self.shape.head_size)
        self._tables = [lazy_table(rows) for _ in range(2 * self.shape.layers)]
        self._names = [
            (self.shape.inputs[f"past_{kind}_names"] % layer, self.shape.outputs[f"present_{kind}_names"] % layer)
            for layer in range(self.shape.layers)
            for kind in ("key", "value")
        ]
        self._bindings: dict[tuple[int, int], Any] = {}
        self.lengths = np.zeros(slots, np.int64)
        self.highest = np.zeros(slots, np.int64)
        self._part_logits = np.empty(0, np.float32)
        self._step_logits = np.empty((slots, 1, self.shape.vocabulary), np.float32)

    @property
    def taken_tokens(self) -> int:
        """Tokens for whose keys and values memory was taken."""
        return int(self.highest.sum())

    def reserve(self, slot: int, length: int) -> None:
        """Do nothing: a row takes memory when it is written to."""

    def advance(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to a slot; return the logits behind the last of them, float32 `[vocabulary]`.

        The array is overwritten by the next call.
        """
        count, length = len(tokens), int(self.lengths[slot])
        total = length + count
        if total > self.context:
            raise ValueError(f"slot {slot} holds {length} tokens of {self.context}; {count} more do not fit")
        ids = np.ascontiguousarray(tokens, np.int64)[None]
        logits = self._logits_of(count)
        self._run(slot, 1, ids, np.ones((1, total), np.int64), logits)
        self._grow(slot, total)
        last: Logits = logits[0, -1]
        return last

    def _logits_of(self, count: int) -> Logits:
        """Return room for the logits of a part; what is large is not allocated each time, which takes milliseconds."""
        size = count * self.shape.vocabulary
        if len(self._part_logits) < size:
            self._part_logits = np.empty(size, np.float32)
        return self._part_logits[:size].reshape(1, count, self.shape.vocabulary)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each of some slots; return the logits behind it, float32 `[vocabulary]` a slot.

        The arrays are overwritten by the next step.
        """
        first, last = min(tokens), max(tokens)
        rows = last - first + 1
        active = np.array(sorted(tokens), np.int64)
        ids = np.zeros((rows, 1), np.int64)
        lengths = np.zeros(rows, np.int64)
        ids[active - first, 0] = [tokens[int(slot)] for slot in active]
        lengths[active - first] = self.lengths[active]
        columns = min(self.context, math.ceil((int(lengths.max()) + 1) / STEP_OF_LENGTH) * STEP_OF_LENGTH)
        mask = (np.arange(columns)[None, :] <= lengths[:, None]).astype(np.int64)
        # A row between them that holds a conversation runs with a single token, which is written to its first place.
        held = np.array(
            [slot for slot in range(first, last) if slot not in tokens and self.lengths[slot] > 0], np.int64
        )
        saved = [table[held, :, 0].copy() for table in self._tables] if len(held) else []
        logits = self._step_logits[:rows]
        self._run(first, rows, ids, mask, logits)
        for table, firsts in zip(self._tables, saved, strict=False):
            table[held, :, 0] = firsts
        for slot in active:
            self._grow(slot, self.lengths[slot] + 1)
        return {int(slot): logits[slot - first, 0] for slot in active}

    def cut(self, slot: int, length: int) -> None:
        """Forget what a slot holds behind its first `length` tokens."""
        self.lengths[slot] = min(length, int(self.lengths[slot]))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`, and nothing else."""
        for table in self._tables:
            table[target, :, :length] = table[source, :, :length]
        self._grow(target, length)

    def _grow(self, slot: int, length: int) -> None:
        self.lengths[slot] = length
        self.highest[slot] = max(self.highest[slot], length)

    def _run(self, first: int, rows: int, ids: Any, mask: Any, logits: Any) -> None:
        binding = self._binding(first, rows)
        for name, array in (("input_ids", ids), ("attention_mask", mask)):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _binding(self, first: int, rows: int) -> Any:
        """Return the binding of a range of rows: keys and values are read from where they are written to."""
        if (found := self._bindings.get((first, rows))) is not None:
            return found
        binding = self._session.io_binding()
        shape = (rows, self.shape.kv_heads, self.context, self.shape.head_size)
        for table, (past, present) in zip(self._tables, self._names, strict=True):
            place = table[first:].ctypes.data
            binding.bind_input(past, "cpu", 0, np.float32, shape, place)
            binding.bind_output(present, "cpu", 0, np.float32, shape, place)
        self._bindings[first, rows] = binding
        return binding


def lazy_table(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return zeros, float32, that take memory once they are written to.

    Huge pages would take it two megabytes at a time, and stall for them: 937 MB where 378 are used.
    """
    memory = mmap.mmap(-1, math.prod(shape) * ctypes.sizeof(ctypes.c_float))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)
