"""The header of a GGUF file: metadata and where the tensors lie, read without touching a weight.

    "GGUF" | version u32 | tensor count u64 | metadata count u64 | metadata | tensor table | padding | tensor data

Everything is little-endian; a string is its length (u64) and UTF-8 bytes; a value is its type (u32) and the value.
Unlike a general reader, every length is checked against the size of the file first, since the file may be anything.

Source: the GGUF specification, docs/gguf.md in ggml-org/ggml.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.machine.bounded_file import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_DIMENSIONS = 4
# Of a header, whose values become Python's objects. The largest known have 1.3 million values, those of the tokenizer
# of Gemma 3, and some thousand tensors.
MOST_VALUES = 1 << 22
MOST_TENSORS = 1 << 17
MOST_TEXT_BYTES = 1 << 27  # of all names and texts together
MOST_DEPTH = 4  # of arrays in arrays; 1 is what files have

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"GGML": "the GGML format that GGUF replaced",
    b"ggjt": "the GGJT format that GGUF replaced",
    b"FUGG": "a big-endian GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!DOCTYPE": "a web page",
}


@dataclass(frozen=True)
class TensorPlace:
    """One tensor: its shape in numpy's order, its storage (`Q4_1`, `F32`), where its data starts and how long it is."""

    name: str
    shape: tuple[int, ...]
    storage: str
    start: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The metadata, key to value, and the tensors in the file's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorPlace, ...]


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file `path`.

    Raises:
        SourceError: it is missing, another format, big-endian, of an unknown version, cut short or damaged.
    """
    try:
        with open_regular(path) as file:
            _require_gguf(path, file.read(24))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).header()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", "a GGUF file", "check the path") from error


def _require_gguf(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC:
        found = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
        raise SourceError(
            f"{path.name} is {found}" if found else f"{path.name} starts with {start[:4]!r}",
            "a GGUF file, which starts with b'GGUF'",
            "download it again or name another file",
        )
    if len(start) < 24:
        raise _cut_short(path)
    little, big = int.from_bytes(start[4:8], "little"), int.from_bytes(start[4:8], "big")
    if little not in VERSIONS:
        found = "big-endian" if big in VERSIONS else f"of GGUF version {little}"
        raise SourceError(f"{path.name} is {found}", "little-endian GGUF, version 2 or 3", "convert the model again")


def _cut_short(path: Path) -> SourceError:
    return SourceError(f"{path.name} ends within its header", "a whole GGUF file", "download it again")


class _Reader:
    """Reads values one after the other, never beyond the end of the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._position = 8  # after magic and version
        self._values = self._text_bytes = 0  # read so far

    def header(self) -> GgufHeader:
        tensors, entries = self._scalar("Q"), self._scalar("Q")
        if tensors > MOST_TENSORS:
            raise self._damaged(f"has {tensors:,} tensors, more than {MOST_TENSORS:,}")
        self._count(entries)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"names {key} twice")
            metadata[key] = self._value(self._scalar("I"))
        table = [self._table_entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment <= 0:
            raise self._damaged(f"has general.alignment {alignment!r}")
        start = -(-self._position // alignment) * alignment
        return GgufHeader(self._path, metadata, tuple(self._place(*entry, start) for entry in table))

    def _count(self, values: int) -> None:
        """Refuse metadata of more values than any model has, before they are read."""
        self._values += values
        if self._values > MOST_VALUES:
            raise self._damaged(f"has more than {MOST_VALUES:,} values of metadata")

    def _damaged(self, found: str) -> SourceError:
        return SourceError(f"{self._path.name} {found}", "a well-formed GGUF file", "download it again")

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._content):
            raise _cut_short(self._path)
        taken = self._content[self._position : end]
        self._position = end
        return taken

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))
        return value

    def _string(self) -> str:
        size = self._scalar("Q")
        if size > len(self._content) - self._position:
            raise _cut_short(self._path)
        self._text_bytes += size
        if self._text_bytes > MOST_TEXT_BYTES:
            raise self._damaged(f"has more than {MOST_TEXT_BYTES:,} bytes of names and texts")
        raw = self._take(size)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"has a string that is not UTF-8: {raw[:20]!r}") from None

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"), depth + 1)
        raise self._damaged(f"has a metadata value of unknown type {kind}")

    def _array(self, kind: int, length: int, depth: int) -> list[Any]:
        if depth > MOST_DEPTH:
            raise self._damaged(f"has arrays nested more than {MOST_DEPTH} deep")
        self._count(length)
        if form := _SCALARS.get(kind):
            raw = self._take(length * struct.calcsize("<" + form))
            return list(struct.unpack(f"<{length}{form}", raw))
        return [self._value(kind, depth) for _ in range(length)]

    def _table_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if dimensions > MOST_DIMENSIONS:
            raise self._damaged(f"has a tensor {name} of {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]  # fastest first in the file
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _place(self, name: str, shape: tuple[int, ...], kind: int, offset: int, data_start: int) -> TensorPlace:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            storage = GGMLQuantizationType(kind)
        except ValueError:
            raise SourceError(
                f"tensor {name} of {self._path.name} has the unknown type {kind}",
                "a tensor type that the installed gguf package knows",
                "upgrade gguf or use another quantisation",
            ) from None
        values, size = GGML_QUANT_SIZES[storage]
        if shape and shape[-1] % values:
            raise self._damaged(f"has a tensor {name} with rows of {shape[-1]} in blocks of {values}")
        place = TensorPlace(name, shape, storage.name, data_start + offset, prod(shape) // values * size)
        if place.start + place.size_bytes > len(self._content):
            raise SourceError(
                f"{self._path.name} has {len(self._content):,} bytes",
                f"at least {place.start + place.size_bytes:,}, where tensor {name} ends",
                "download it again",
            )
        return place
