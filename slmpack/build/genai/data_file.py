"""Data file: `model.onnx.data`, written by some threads, each a few rows of some weight at a time.

    checkpoint --rows--> float32 --codes and scales--> their places in model.onnx.data

Where every tensor begins is known before the first one is made, so the threads need not wait for each other: each
takes the next job, reads its rows, and writes what it made of them. A job's rows are few enough to stay in a core's
cache. Threads share tensors and not the arithmetic of one: a barrier after every operation is what makes OpenMP
several times slower when a neighbour takes a core.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slmpack.checkpoint.blocks import Bits, Quantised, packed_zeros, quantise_rows
from slmpack.checkpoint.finite import require_finite
from slmpack.checkpoint.mapped_rows import Rows
from slmpack.progress import report
from slmpack.quantise.lossless import exact_rows
from slmpack.quantise.plan import StoredRows
from slmpack.quantise.scale_search import search_rows
from slmpack.quantise.zero_point_search import search_zero_points

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor

JOB_WEIGHTS = 1 << 19  # in float32 2 MB: a core's cache
READ_AHEAD_WEIGHTS = 1 << 28  # of bfloat16 512 MB: a second of a slow disk


@dataclass(frozen=True)
class Part:
    """Some rows of one tensor of the checkpoint, and what they are multiplied with before anything else.

    Attributes:
        rows: `[count, K]`.
        row_factors: float32 `[count]`, or None.
        column_factors: float32 `[K]`, or None.
    """

    rows: Rows
    row_factors: "Tensor | None" = None
    column_factors: "Tensor | None" = None

    def read(self, start: int, stop: int) -> "Tensor":
        """Return rows `start` to `stop`, of the checkpoint's dtype if nothing is multiplied; not to be written to."""
        rows = self.rows.read(start, stop)
        if self.column_factors is not None:
            rows = rows.float() * self.column_factors
        if self.row_factors is not None:
            rows = rows.float() * self.row_factors[start:stop, None]
        return rows


class Entry(Protocol):
    """What fills some tensors of the file from the rows of a matrix.

    Attributes:
        parts: matrices `[N_i, K]`, one below the other.
    """

    @property
    def parts(self) -> tuple[Part, ...]: ...

    def pieces(self, part: Part, start: int, stop: int, to: int) -> Iterator[tuple[int, "Tensor"]]:
        """Yield what rows `start` to `stop` of a part become, which are row `to` and following of the whole.

        An offset, and what goes there.
        """
        ...


@dataclass(frozen=True)
class QuantisedEntry:
    """A weight in blocks of `bits`.

    Attributes:
        dtype: what it is cast to before, and what its scales are.
        zeros_offset: where its zero points go, None if it has none.
        energy: float32 `[K]`, how much the error of each column counts; None: as the stock builder has it.
        stored: by the name of a part's tensor, what it was quantised to before.
        is_lossless: the weights are whole multiples already.
        missed: names of the tensors of which that was not true, added while they are written.
    """

    parts: tuple[Part, ...]
    bits: Bits
    block_size: int
    dtype: "torch.dtype"
    codes_offset: int
    scales_offset: int
    zeros_offset: int | None = None
    energy: "Tensor | None" = None
    stored: Mapping[str, StoredRows] = field(default_factory=dict)
    is_lossless: bool = False
    missed: set[str] = field(default_factory=set)

    def pieces(self, part: Part, start: int, stop: int, to: int) -> Iterator[tuple[int, "Tensor"]]:
        quantised = self._quantise(part, start, stop)
        scales = quantised.scales.to(self.dtype)
        yield self.codes_offset + to * quantised.codes[0].nbytes, quantised.codes
        yield self.scales_offset + to * scales[0].nbytes, scales
        if self.zeros_offset is not None and quantised.zeros is not None:
            zeros = packed_zeros(quantised.zeros)
            yield self.zeros_offset + to * zeros[0].nbytes, zeros

    def _quantise(self, part: Part, start: int, stop: int) -> Quantised:
        if part.rows.name in self.stored:
            first = part.rows.first
            return self.stored[part.rows.name].read(first + start, first + stop)
        weights = part.read(start, stop)
        if self.is_lossless:
            if (exact := exact_rows(weights.float(), self.bits, self.block_size)) is not None:
                return exact
            self.missed.add(part.rows.name)
        weights = weights.to(self.dtype, copy=True)
        if self.energy is None:
            return quantise_rows(weights, self.bits, self.block_size)
        if self.zeros_offset is None:
            return search_rows(weights, self.energy, self.bits, self.block_size)
        return search_zero_points(weights, self.energy, self.block_size)


@dataclass(frozen=True)
class FloatEntry:
    """A matrix cast to `dtype` and nothing else."""

    parts: tuple[Part, ...]
    dtype: "torch.dtype"
    offset: int

    def pieces(self, part: Part, start: int, stop: int, to: int) -> Iterator[tuple[int, "Tensor"]]:
        cast = part.read(start, stop).to(self.dtype)
        yield self.offset + to * cast[0].nbytes, cast


@dataclass(frozen=True)
class Job:
    """Rows `start` to `stop` of one part of an entry, which are row `to` and following of the whole."""

    entry: Entry
    part: Part
    start: int
    stop: int
    to: int

    def run(self, file: int) -> int:
        """Make and write the rows; return how many weights they had.

        Raises:
            BuildError: one of them is not finite.
        """
        for offset, tensor in self.entry.pieces(self.part, self.start, self.stop, self.to):
            require_finite(tensor, self.part.rows.name)  # a block with a NaN or an infinity has it for a scale
            write_at(file, tensor, offset)
        return (self.stop - self.start) * self.part.rows.columns


def write_at(file: int, tensor: "Tensor", offset: int) -> None:
    """Write the bytes of a tensor to a place in an open file."""
    import torch

    data = tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def write_data(
    path: Path,
    size_bytes: int,
    entries: Sequence[Entry],
    small: "Sequence[tuple[int, ir.TensorProtocol]]",
    threads: int,
) -> None:
    """Write the whole file.

    Args:
        path: made or overwritten.
        size_bytes: of the whole file, which entries and small tensors fill.
        small: offsets and tensors that are written as they are.
        threads: how many jobs are worked on at once.

    Raises:
        BuildError: a weight that is not finite.
    """
    total = sum(part.rows.count * part.rows.columns for entry in entries for part in entry.parts)
    with path.open("wb") as file, ThreadPoolExecutor(threads, thread_name_prefix="quantise") as pool:
        file.truncate(size_bytes)
        for offset, tensor in small:
            _write_small(file.fileno(), tensor, offset)
        done, jobs = 0, _jobs(entries)
        running = {pool.submit(job.run, file.fileno()) for job in islice(jobs, 2 * threads)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            before, done = done, done + sum(future.result() for future in ended)
            running |= {pool.submit(job.run, file.fileno()) for job in islice(jobs, len(ended))}
            if not running or done * 100 // total > before * 100 // total:
                report("build", done, total, "weights quantised")


def _write_small(file: int, tensor: "ir.TensorProtocol", offset: int) -> None:
    import torch

    if tensor.dtype.is_floating_point():
        require_finite(torch.from_numpy(tensor.numpy().astype("float32")), tensor.name or "a tensor")
    os.pwrite(file, tensor.tobytes(), offset)


def _jobs(entries: Sequence[Entry]) -> Iterator[Job]:
    """Cut the entries into jobs, and advise the kernel early enough of what will be read."""
    ahead = iter([part.rows for entry in entries for part in entry.parts])
    requested = yielded = 0
    for entry in entries:
        to = 0
        for part in entry.parts:
            rows = part.rows
            while requested < yielded + READ_AHEAD_WEIGHTS and (following := next(ahead, None)):
                following.read_ahead()
                requested += following.count * following.columns
            step = max(1, JOB_WEIGHTS // rows.columns)
            for start in range(0, rows.count, step):
                yield Job(entry, part, start, min(start + step, rows.count), to + start)
            yielded += rows.count * rows.columns
            to += rows.count
