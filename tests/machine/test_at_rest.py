"""At rest: what was made of files that changed meanwhile is thrown away."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from slmpack.build.build import build_package
from slmpack.errors import BuildError, SourceError, WorkspaceError
from slmpack.machine.at_rest import at_rest, derive_folder, linked_files
from slmpack.prove.quality.reference import source_reference
from slmpack.records import Recipe, Snapshot, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.gguf.convert import inspect_gguf
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fetched(tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Snapshot]:
    """A folder of the user's, a workspace, and the snapshot of one in the other; tests put back what they change."""
    folder, workspace = tmp_path_factory.mktemp("users") / "model", tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_phi3, folder)
    return folder / "model.safetensors", workspace, fetch_snapshot(resolve_source(str(folder), workspace), workspace)


def flip_last_byte(weights: Path) -> None:
    """Change a weight and keep what `ls` shows: the size, and the time of the last change."""
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 0x7F]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_keeps_what_is_made_of_files_at_rest(fetched: tuple[Path, Path, Snapshot]) -> None:
    _, workspace, snapshot = fetched
    made = derive_folder(snapshot, workspace, "references", "kept", lambda into: {"size": (into / "a").write_text("a")})
    assert (made / "a").read_text() == "a"


def test_throws_away_what_is_made_of_weights_that_change_meanwhile(fetched: tuple[Path, Path, Snapshot]) -> None:
    weights, workspace, snapshot = fetched
    assert linked_files(snapshot.path) == [weights]

    def make(into: Path) -> dict[str, str | int | None]:
        flip_last_byte(weights)
        return {}

    try:
        with pytest.raises(SourceError, match=r"model\.safetensors of .* changed while it was read"):
            derive_folder(snapshot, workspace, "references", "changed", make)
    finally:
        flip_last_byte(weights)
    assert not (workspace / "references" / "changed").exists()
    assert not list((workspace / "scratch").iterdir())


def test_finds_weights_that_were_swapped_and_put_back(fetched: tuple[Path, Path, Snapshot]) -> None:
    weights, workspace, snapshot = fetched

    def make(into: Path) -> dict[str, str | int | None]:
        time.sleep(0.05)  # beyond the step of the file system's clock
        flip_last_byte(weights)
        flip_last_byte(weights)
        return {}

    with pytest.raises(SourceError, match=r"model\.safetensors of .* changed while it was read"):
        derive_folder(snapshot, workspace, "references", "put back", make)
    assert not (workspace / "references" / "put back").exists()


def test_a_failure_over_files_that_changed_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"first")
    with pytest.raises(SourceError, match="weights of a source changed"), at_rest([tmp_path / "weights"], "a source"):
        (tmp_path / "weights").unlink()
        raise BuildError("the builder was killed")


def test_nothing_begins_with_weights_that_changed_after_they_were_fetched(
    fetched: tuple[Path, Path, Snapshot],
) -> None:
    weights, workspace, snapshot = fetched
    flip_last_byte(weights)
    try:
        for begin in (
            lambda: build_package(snapshot, Target.CPU_INT4, Recipe.STOCK_SMALL, workspace),
            lambda: source_reference(snapshot, "a text " * 300, workspace),
        ):
            with pytest.raises(SourceError, match="is not what was fetched"):
                begin()
    finally:
        flip_last_byte(weights)


def test_says_so_when_the_snapshot_is_gone(fetched: tuple[Path, Path, Snapshot], tmp_path: Path) -> None:
    gone = fetched[2].model_copy(update={"path": tmp_path / "snapshots" / "gone"})
    with pytest.raises(WorkspaceError, match="the source's snapshot is gone"):
        source_reference(gone, "a text " * 300, tmp_path)


def test_a_package_of_weights_that_change_while_it_is_built_is_not_kept(
    fetched: tuple[Path, Path, Snapshot],
) -> None:
    weights, workspace, snapshot = fetched
    ended = threading.Event()

    def change() -> None:
        while not list((workspace / "logs").glob("build-*.log")) and not ended.wait(0.05):
            pass
        flip_last_byte(weights)

    other = threading.Thread(target=change)
    other.start()
    try:
        with pytest.raises(SourceError, match="changed"):
            build_package(snapshot, Target.CPU_INT4, Recipe.STOCK_SMALL, workspace)
    finally:
        ended.set()
        other.join()
        flip_last_byte(weights)
    assert not (workspace / "packages").exists() or not list((workspace / "packages").iterdir())


def test_a_gguf_file_that_changed_after_it_was_resolved_is_not_converted(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_gguf, path)
    source = resolve_source(str(path), tmp_path / "workspace")
    flip_last_byte(path)
    assert inspect_gguf(path).layers == 30  # a whole file still
    with pytest.raises(SourceError, match=r"model\.gguf changed while it was read"):
        fetch_snapshot(source, tmp_path / "workspace")
    assert not (tmp_path / "workspace" / "snapshots").exists()
