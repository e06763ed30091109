"""Files of chats: which they are, and their lines.

    data.jsonl            or .json: one chat a line, UTF-8, with or without a byte order mark
    folder/*.jsonl        all of them, by name; hidden files and other kinds beside them are left alone

What is no text is refused by its name before a line is read: it would only be so many bad lines.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from slmpack.errors import DataError
from slmpack.machine.bounded_file import IrregularFileError, open_regular

SUFFIXES = (".jsonl", ".json")
HEAD_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 23  # a chat of two million tokens: more than any context takes
_EXPECTED = f"UTF-8 text, one JSON object a line ({' or '.join(SUFFIXES)})"
# Source: the formats' own specifications.
_KINDS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip file",
    b"\x1f\x8b": "compressed (gzip)",
    b"\x28\xb5\x2f\xfd": "compressed (zstandard)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ\x00": "compressed (xz)",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}


def files_of(path: Path) -> list[Path]:
    """Return the files of chats at `path`, a file or a folder, in the order in which they are read.

    Raises:
        DataError: there is nothing, no file of that kind, or one that is no text.
    """
    if not path.exists():
        raise DataError(f"there is no {path}", "a file or a folder of chats", "check the path")
    files = [path] if not path.is_dir() else sorted(_files_in(path))
    if not files:
        others = sorted(file.name for file in path.iterdir())[:3]
        raise DataError(
            f"{path} holds {', '.join(others) or 'nothing'}",
            f"files that end in {' or '.join(SUFFIXES)}",
            "put the chats there, one JSON object a line",
        )
    for file in files:
        _require_text(file)
    return files


def _files_in(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _require_text(path: Path) -> None:
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        advice = "name a file or a folder" if isinstance(error, IrregularFileError) else "allow it to be read"
        raise DataError(f"{path} cannot be read ({error.strerror})", _EXPECTED, advice) from error
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    if kind is None and b"\0" in head:
        kind = "binary"
    if kind is not None:
        raise DataError(f"{path.name} is {kind}", _EXPECTED, "export the chats as JSON Lines")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path.name} is a {path.suffix or 'file without a suffix'}", _EXPECTED, "rename it if it is")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        raise DataError(f"{path.name} is one JSON list", _EXPECTED, f"type: jq -c '.[]' {path.name} > chats.jsonl")


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield number, from 1, and content of every line that is not blank; None for one over `MAX_LINE_BYTES`."""
    with open_regular(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                yield number, None
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line
