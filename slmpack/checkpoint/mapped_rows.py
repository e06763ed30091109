"""Mapped: read a tensor's rows from its checkpoint file when they are needed, and hold none of them.

transformers maps the files of a checkpoint into memory, and what is touched of a map counts as this process's memory
until the kernel takes it back. So rows are read from the file: a tensor that is still the file's own bytes has an
address inside of such a map, and the kernel tells which file and where in it. A tensor that was converted while it was
loaded, or written to since, is read from memory.
"""

import os
import re
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slmpack.checkpoint.headers import raw_header

if TYPE_CHECKING:
    from torch import Tensor

# Source: man 5 proc_pid_maps and proc_pid_smaps; "Anonymous" counts what was written to since it was mapped.
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+\s*(.*)")
_ANONYMOUS = re.compile(r"Anonymous:\s+(\d+) kB")


class Place(NamedTuple):
    """Bytes of a file."""

    path: str
    offset: int


class Named(NamedTuple):
    """A tensor of a safetensors file: its name, and where in the file its first byte is."""

    name: str
    offset: int


class _Map(NamedTuple):
    start: int
    end: int
    place: Place


class Maps:
    """The files that are mapped into this process and unchanged, as they are now; what is read of is opened once."""

    def __init__(self, smaps: Path = Path("/proc/self/smaps")) -> None:
        self._maps = sorted(_unchanged(smaps.read_text())) if smaps.exists() else []
        self._starts = [found.start for found in self._maps]
        self._files: dict[str, int] = {}

    def __enter__(self) -> "Maps":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    def rows_of(self, tensor: "Tensor", name: str) -> "Rows":
        """Return the rows of a matrix `[N, K]`, from its file if they are that file's own bytes, else from memory.

        Args:
            name: what to call it where it has no name in a file.
        """
        place = self._place_of(tensor)
        if place is None:
            return Rows(tensor, name)
        if place.path not in self._files:
            self._files[place.path] = os.open(place.path, os.O_RDONLY)
        return Rows(tensor, name, place, self._files[place.path])

    def _place_of(self, tensor: "Tensor") -> Place | None:
        at = bisect_right(self._starts, tensor.data_ptr()) - 1
        if at < 0 or not tensor.is_contiguous():
            return None
        found = self._maps[at]
        if tensor.data_ptr() + tensor.nbytes > found.end:
            return None
        return Place(found.place.path, found.place.offset + tensor.data_ptr() - found.start)


class Rows:
    """A matrix `[N, K]`, read some rows at a time, from any number of threads."""

    def __init__(self, tensor: "Tensor", name: str, place: Place | None = None, file: int | None = None) -> None:
        self.count, self.columns = tensor.shape
        self.place = place
        self._tensor, self._name, self._file = tensor, name, file

    @cached_property
    def _named(self) -> Named | None:
        return None if self.place is None else tensor_at(self.place)

    @property
    def name(self) -> str:
        """What the checkpoint calls the tensor that these rows are of."""
        return self._named.name if self._named else self._name

    @property
    def first(self) -> int:
        """Which row of that tensor is the first one here."""
        if self.place is None or self._named is None:
            return 0
        return (self.place.offset - self._named.offset) // (self.columns * self._tensor.itemsize)

    def read_ahead(self) -> None:
        """Let the kernel fetch all of it from the disk meanwhile."""
        if self._file is not None and self.place is not None:
            os.posix_fadvise(self._file, self.place.offset, self._tensor.nbytes, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, stop: int) -> "Tensor":
        """Return rows `start` to `stop`, `[rows, K]`, of the checkpoint's dtype; not to be written to."""
        import torch

        if self._file is None or self.place is None:
            return self._tensor[start:stop]
        rows = torch.empty((stop - start, self.columns), dtype=self._tensor.dtype)
        into = rows.view(torch.uint8).numpy().data.cast("B")
        offset = self.place.offset + start * self.columns * rows.itemsize
        while into:
            got = os.preadv(self._file, [into], offset)
            if not got:
                raise OSError(f"{self.place.path} ends before the tensor does")
            into, offset = into[got:], offset + got
        return rows


def tensor_at(place: Place) -> Named | None:
    """Return the tensor that a safetensors file has at a place; None for another kind of file."""
    try:
        header, data = raw_header(Path(place.path))
    except ValueError:
        return None
    for name, tensor in header.items():
        begin, end = tensor.get("data_offsets", (0, 0))
        if begin <= place.offset - data < end:
            return Named(name, begin + data)
    return None


def _unchanged(smaps: str) -> list[_Map]:
    found: list[_Map] = []
    for line in smaps.splitlines():
        if match := _HEADER.fullmatch(line):
            start, end, offset = (int(number, 16) for number in match.groups()[:3])
            found.append(_Map(start, end, Place(match[4], offset)))
        elif (match := _ANONYMOUS.match(line)) and int(match[1]) and found:
            found[-1] = found[-1]._replace(place=Place("", 0))
    return [each for each in found if each.place.path.startswith("/") and not each.place.path.endswith(" (deleted)")]
