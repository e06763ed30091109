"""Content-addressed folders: whole or not there, verified, shared between processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slmpack import progress
from slmpack.errors import WorkspaceError
from slmpack.machine.stamps import keep_stamps, stamps_of, untouched_since
from slmpack.machine.store import Manifest, damage, damage_since, require_space, store_folder


def fill(into: Path) -> dict[str, str | int | None]:
    (into / "weights").write_text("1 2 3")
    (into / "inner").mkdir()
    (into / "inner" / "config.json").write_text("{}")
    return {"layers": 2}


def test_makes_a_folder_once_and_remembers_its_facts(tmp_path: Path) -> None:
    made = []

    def make(into: Path) -> dict[str, str | int | None]:
        made.append(into)
        return fill(into)

    first = store_folder(tmp_path, "packages", "key", make)
    again = store_folder(tmp_path, "packages", "key", make)
    assert first == again
    assert len(made) == 1
    assert Manifest.read(first).facts == {"layers": 2}
    assert [file.name for file in Manifest.read(first).files] == ["inner/config.json", "weights"]


def test_stored_files_are_read_only(tmp_path: Path) -> None:
    folder = store_folder(tmp_path, "packages", "key", fill)
    assert (folder / "weights").stat().st_mode & 0o222 == 0


def test_leaves_nothing_when_making_fails(tmp_path: Path) -> None:
    def fail(into: Path) -> dict[str, str | int | None]:
        (into / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_folder(tmp_path, "packages", "key", fail)
    assert not (tmp_path / "packages" / "key").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("weights", "1 2 4", "weights was changed"),
        ("weights", None, "weights is missing"),
        ("new", "", "new was added"),
    ],
)
def test_finds_damage_and_makes_the_folder_again(tmp_path: Path, name: str, content: str | None, found: str) -> None:
    folder = store_folder(tmp_path, "packages", "key", fill)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    assert damage(folder) == found
    assert damage(store_folder(tmp_path, "packages", "key", fill)) is None


def test_a_link_is_digested_by_its_target_and_left_writable(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1 2 3")

    def link(into: Path) -> dict[str, str | int | None]:
        (into / "weights").symlink_to(weights)
        return {}

    folder = store_folder(tmp_path, "snapshots", "key", link)
    assert os.access(weights, os.W_OK)
    weights.write_text("1 2 4")
    assert damage(folder) == "weights was changed"


HOLDER = """
import sys, time
from pathlib import Path
from slmpack.machine.store import store_folder
def make(into):
    (into / "half").write_text("half")
    print("holding", flush=True)
    time.sleep(600)
store_folder(Path(sys.argv[1]), "packages", "key", make)
"""


def test_a_killed_holder_blocks_nobody_and_leaves_no_half_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        holder.send_signal(signal.SIGKILL)
    folder = store_folder(tmp_path, "packages", "key", fill)
    assert damage(folder) is None
    assert not (folder / "half").exists()


def test_two_makers_at_once_make_one_folder(tmp_path: Path) -> None:
    made = []
    both = threading.Barrier(2)

    def make(into: Path) -> dict[str, str | int | None]:
        made.append(into)
        return fill(into)

    def store() -> None:
        both.wait()
        store_folder(tmp_path, "packages", "key", make)

    threads = [threading.Thread(target=store) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_refuses_work_that_cannot_fit_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"bytes are free in .*; a package needs 1,000,000,000,000,000,000 bytes"):
        require_space(tmp_path, 10**18, "a package")


# ---------------------------------------------------------------------------------------------- what is not read again

OLD_FILE = Path(json.__file__)  # changed long ago: before a change counts as settled, seconds have to pass


def link_to_old_file(into: Path) -> dict[str, str | int | None]:
    (into / "weights").symlink_to(OLD_FILE)
    return {}


@contextmanager
def hashed_bytes() -> Iterator[list[int]]:
    """Collect the sizes of the files that are hashed to verify a folder."""
    sizes = [0]

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = record.progress  # type: ignore[attr-defined]
            if told.stage == "verify":
                sizes.append(told.done)

    listener = Listener()
    progress.logger.addHandler(listener)
    try:
        yield sizes
    finally:
        progress.logger.removeHandler(listener)


def test_a_file_that_nobody_touched_is_not_read_again(tmp_path: Path) -> None:
    store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    with hashed_bytes() as again:
        store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    (tmp_path / "stamps" / "snapshots-key.json").write_text("cut off")
    with hashed_bytes() as without:
        store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    assert (max(again), max(without)) == (0, OLD_FILE.stat().st_size)


def test_a_file_that_changed_just_now_is_read_again(tmp_path: Path) -> None:
    for _ in range(2):
        with hashed_bytes() as sizes:
            store_folder(tmp_path, "packages", "key", fill)
    assert max(sizes) == len("1 2 3") + len("{}")


def test_another_file_behind_a_link_is_found(tmp_path: Path) -> None:
    folder = store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(Path(logging.__file__))
    with hashed_bytes() as sizes:
        again = store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    assert max(sizes) == Path(logging.__file__).stat().st_size
    assert (again / "weights").resolve() == OLD_FILE.resolve()


def test_a_byte_that_was_flipped_shows_even_if_the_time_was_put_back(tmp_path: Path) -> None:
    folder, kept = tmp_path / "folder", tmp_path / "stamps.json"
    folder.mkdir()
    weights = folder / "weights"
    weights.write_text("1 2 3")
    before = stamps_of(folder, settled_ns=0)
    keep_stamps(kept, before, "manifest")
    assert untouched_since(kept, before, "manifest") == {"weights"}
    assert untouched_since(kept, before, "another manifest") == frozenset()
    while weights.stat().st_ctime_ns == before["weights"].changed_ns:  # until the clock of change times ticks
        weights.write_text("1 2 4")
        os.utime(weights, ns=(before["weights"].modified_ns, before["weights"].modified_ns))
    after = stamps_of(folder, settled_ns=0)
    assert after["weights"].modified_ns == before["weights"].modified_ns
    assert untouched_since(kept, after, "manifest") == frozenset()


def test_a_manifest_that_was_forged_makes_everything_be_read(tmp_path: Path) -> None:
    folder = store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    manifest = folder / "manifest.json"
    manifest.chmod(0o644)
    (digest,) = (file.sha256 for file in Manifest.read(folder).files)
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    with hashed_bytes() as sizes:
        assert damage(store_folder(tmp_path, "snapshots", "key", link_to_old_file)) is None
    assert max(sizes) == OLD_FILE.stat().st_size


def test_damage_is_told_as_often_as_somebody_looks(tmp_path: Path) -> None:
    folder = store_folder(tmp_path, "snapshots", "key", link_to_old_file)
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(Path(logging.__file__))
    told = [damage_since(tmp_path, "snapshots", "key") for _ in range(2)]
    assert told == ["weights was changed"] * 2  # whoever looked first may have been killed before it was made again
