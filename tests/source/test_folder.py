"""Source digest: a user's folder is read once while nobody touches it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmpack.checkpoint.inspect import relevant_files
from slmpack.machine.store import digest_files
from slmpack.progress import logger
from slmpack.records import digest_of_files
from slmpack.source.folder import digest_folder


class Read(logging.Handler):
    """Collects how many bytes a digest said it would read."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.totals.add(record.progress.total)  # type: ignore[attr-defined]


@pytest.fixture
def read() -> Iterator[Read]:
    handler = Read()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "notes.txt").write_text("not part of a checkpoint")
    return folder


def test_is_that_of_the_snapshot_that_is_made_of_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    expected = [each for each in digest_files(checkpoint, "test") if each.name in relevant_files(checkpoint)]
    for workspace in (None, tmp_path / "workspace", tmp_path / "workspace"):
        assert digest_folder(checkpoint, workspace, settled_ns=0) == digest_of_files(expected)


def test_reads_untouched_files_once(checkpoint: Path, tmp_path: Path, read: Read) -> None:
    first = digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0)
    assert read.totals == {1002}
    read.totals.clear()
    assert digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0) == first
    assert read.totals == set()


def test_a_changed_byte_is_found_even_if_the_modification_time_was_put_back(checkpoint: Path, tmp_path: Path) -> None:
    first = digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0)
    weights = checkpoint / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(bytes(999) + b"\1")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0) != first


def test_a_file_that_was_written_just_now_is_not_remembered(checkpoint: Path, tmp_path: Path, read: Read) -> None:
    digest_folder(checkpoint, tmp_path / "workspace", settled_ns=10**15)
    read.totals.clear()
    digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0)
    assert read.totals == {1002}


def test_what_is_remembered_and_damaged_is_read_again(checkpoint: Path, tmp_path: Path, read: Read) -> None:
    first = digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0)
    (known,) = (tmp_path / "workspace" / "stamps").iterdir()
    known.write_text("{")
    read.totals.clear()
    assert digest_folder(checkpoint, tmp_path / "workspace", settled_ns=0) == first
    assert read.totals == {1002}
