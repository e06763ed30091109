"""Bounded files: files that somebody else wrote, opened only if they are regular and read only up to a size.

    open_regular     a named pipe, a socket or a device is refused, never waited for
    read_bounded     at most so many bytes are read into memory
    parse_json       at most so many values, nested no deeper than anything that means something

What is refused is an `OSError` whose `strerror` says what was found, or a `ValueError`: a caller that translates the
errors of `open` and of `json.loads` translates these as well.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MIB = 1 << 20
SMALL_BYTES = 16 * MIB  # of a configuration, a template, a licence, a model card
# Of what grows with the vocabulary or with the number of tensors. The largest known: Gemma 3's tokenizer.json with
# 33 MB; the index of DeepSeek-V3 with 9 MB.
_LARGER_BYTES = {
    "tokenizer.json": 128 * MIB,
    "tokenizer.model": 128 * MIB,
    "vocab.json": 128 * MIB,
    "merges.txt": 128 * MIB,
    "model.safetensors.index.json": 64 * MIB,
}
BYTES_PER_VALUE = 16  # a file of JSON may have a value for so many of the bytes that it may be long
MOST_DEPTH = 64  # post-processors of tokenizers, the deepest known, have 10
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class IrregularFileError(OSError):
    """A path that is no regular file; `strerror` says what it is."""


class LargeFileError(OSError):
    """A file that is too large to be what its name says; `strerror` has both sizes."""


def limit_of(name: str) -> int:
    """Return how many bytes a small file of a checkpoint may have, by its name."""
    return _LARGER_BYTES.get(name, SMALL_BYTES)


def irregular_kind(mode: int) -> str | None:
    """Return what a path with the file mode `mode` is in words; None for a regular file or a folder."""
    return _KINDS.get(stat.S_IFMT(mode))


def require_regular(path: Path) -> int:
    """Return the size of a regular file in bytes, links followed.

    Raises:
        OSError: there is none, or the path is something else.
    """
    return _size_of(path, path.stat())


def _size_of(path: Path, found: os.stat_result) -> int:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind := irregular_kind(found.st_mode):
        raise IrregularFileError(errno.EINVAL, f"it is {kind}", str(path))
    return found.st_size


def require_size(path: Path, most_bytes: int) -> None:
    """Refuse a file that is not regular or has more than `most_bytes`, before anything of it is read.

    Raises:
        OSError: it is.
    """
    _require_at_most(path, require_regular(path), most_bytes)


def _require_at_most(path: Path, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise LargeFileError(errno.EFBIG, f"it has {size:,} bytes, more than {most_bytes:,}", str(path))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; opening never waits for a writer, and never wakes a device.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    require_regular(path)  # first, since opening some devices does something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _size_of(path, os.fstat(handle))  # again: it may be another by now
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bounded(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a regular file into memory.

    Args:
        most_bytes: what it may have; None: what its name allows, see `limit_of`.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger; nothing of a larger one is read.
    """
    most_bytes = limit_of(path.name) if most_bytes is None else most_bytes
    with open_regular(path) as file:
        _require_at_most(path, os.fstat(file.fileno()).st_size, most_bytes)
        content = file.read(most_bytes + 1)  # it may grow meanwhile
    _require_at_most(path, len(content), most_bytes)
    return content


def parse_json(content: bytes, most_bytes: int = SMALL_BYTES) -> Any:
    """Return the value of JSON text in UTF-8.

    Args:
        most_bytes: what the text may have, by which its number of values is bounded.

    Raises:
        ValueError: it is none, has too many values, or nests them too deep.
    """
    most_values = most_bytes // BYTES_PER_VALUE
    opened = content.count(b"{") + content.count(b"[")
    if (values := opened + content.count(b",")) > most_values:
        raise ValueError(f"about {values:,} values, more than {most_values:,}")
    try:
        value = json.loads(content.decode())
    except RecursionError:
        raise _too_deep() from None
    if opened > MOST_DEPTH:
        _require_shallow(value)
    return value


def _require_shallow(value: Any) -> None:
    """Refuse a value that what walks through it by recursion could not walk through."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MOST_DEPTH):
        level = [
            each
            for outer in level
            for each in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(each, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"values nested more than {MOST_DEPTH} deep")
