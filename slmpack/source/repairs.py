"""Snapshot repairs: what is put right in a snapshot's copies of a checkpoint's small files, each with a sentence.

* An index of shards without `metadata` gets an empty one: transformers reads none without.
* Tokens that have no row and that nothing writes are taken out of the tokenizer, see `rowless_tokens`.

The source keeps its own digest, which is that of its own files; a snapshot that was repaired has another one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmpack.checkpoint.headers import INDEX, read_weights
from slmpack.checkpoint.inspect import TOKENIZER, rows_of_tokens
from slmpack.checkpoint.rowless_tokens import find_rowless, without_idle
from slmpack.machine.json_file import read_json, write_json

FACT = "repairs of the source"  # of a snapshot's manifest: a sentence a line


class Repairs:
    """What is to be written into a folder: the content of its files, and a sentence for each repair."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.sentences: tuple[str, ...] = ()
        for sentence, files in _repairs(folder):
            self.files |= files
            self.sentences += (sentence,)

    def write(self) -> None:
        for name, content in self.files.items():
            (self.folder / name).unlink()  # never through a link
            write_json(self.folder / name, content)


def _repairs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    if index is not None and not isinstance(index.get("metadata"), dict):
        yield (
            f"{INDEX} has the metadata without which transformers does not read it",
            {INDEX: {**index, "metadata": {}}},
        )
    rows = rows_of_tokens(read_weights(folder))
    if rows is not None and (folder / TOKENIZER).is_file():
        sentence, files = without_idle(folder, find_rowless(folder, rows))
        if sentence is not None:
            yield sentence, files
