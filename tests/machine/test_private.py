"""The workspace is its owner's alone, and no link in it is written through."""

import os
import stat
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from slmpack.errors import WorkspaceError
from slmpack.machine.private import (
    append_log,
    empty_log,
    open_lock,
    open_log,
    replace_text,
    require_private,
    workspace_of,
)
from slmpack.machine.store import lock, log_folder
from slmpack.retrain.lock import retrain_alone

OTHER_USER = 65534


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user's that somebody would like to see emptied."""
    path = tmp_path / "precious"
    path.write_text("a thesis")
    return path


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path: Path, precious: Path) -> None:
    place = tmp_path / "workspace"
    (place / "locks").mkdir(parents=True)
    (place / "locks" / "key.lock").symlink_to(precious)
    with pytest.raises(WorkspaceError, match=r"key\.lock is a link; .*; remove it"), lock(place, "key"):
        pass
    assert precious.read_text() == "a thesis"


def test_a_lock_keeps_what_is_in_its_file(tmp_path: Path, precious: Path) -> None:
    place = tmp_path / "workspace"
    (place / "locks").mkdir(parents=True)
    os.link(precious, place / "locks" / "key.lock")
    with lock(place, "key"):
        pass
    assert precious.read_text() == "a thesis"


def test_the_lock_of_a_retraining_that_is_a_link_is_refused(tmp_path: Path, precious: Path, mlflow_store: Path) -> None:
    with retrain_alone("name", tmp_path / "workspace"):
        (file,) = (tmp_path / "workspace" / "locks").iterdir()
    file.unlink()
    file.symlink_to(precious)
    with pytest.raises(WorkspaceError, match="is a link"), retrain_alone("name", tmp_path / "workspace"):
        pass
    assert precious.read_text() == "a thesis"


@pytest.mark.parametrize("write", [open_log, append_log, empty_log, open_lock])
def test_a_log_or_lock_that_is_a_link_a_pipe_or_a_folder_is_refused_without_waiting(
    write: object, tmp_path: Path, precious: Path
) -> None:
    assert callable(write)
    (tmp_path / "link").symlink_to(precious)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, found in (("link", "a link"), ("pipe", "no file"), ("folder", "no file")):
        with pytest.raises(WorkspaceError, match=f"{name} is {found}"):
            write(tmp_path / name)
    assert precious.read_text() == "a thesis"


def test_a_log_is_emptied_or_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for expected in ("a", "a"):
        with open_log(log) as file:
            file.write(b"a")
        assert log.read_text() == expected
    with append_log(log) as file:
        file.write(b"b")
    assert log.read_text() == "ab"


def test_what_is_renamed_into_place_is_not_written_through_a_link_aside(tmp_path: Path, precious: Path) -> None:
    (tmp_path / f"stamps.json.{os.getpid()}").symlink_to(precious)
    replace_text(tmp_path / "stamps.json", "{}")
    assert (precious.read_text(), (tmp_path / "stamps.json").read_text()) == ("a thesis", "{}")


def test_a_workspace_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        log_folder(tmp_path / "parent" / "workspace")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "parent" / "workspace").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_workspace_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(WorkspaceError, match=f"may be written by other users; .*chmod go-w {tmp_path}"):
        workspace_of(tmp_path)
    tmp_path.chmod(0o755)
    assert workspace_of(tmp_path) == tmp_path


def test_the_default_workspace_takes_the_permission_of_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "slmpack").mkdir()
    (tmp_path / "slmpack").chmod(0o775)
    assert stat.S_IMODE(workspace_of(None).stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize(
    ("owner", "mode", "refused"), [(0, 0o777, False), (0, 0o1777, True), (OTHER_USER - 1, 0o755, True)]
)
def test_of_anothers_workspaces_a_user_takes_only_roots_and_none_that_is_for_all(
    owner: int, mode: int, refused: bool
) -> None:
    with TemporaryDirectory() as made:  # pytest's own folders can be entered by root only
        folder = Path(made)
        folder.chmod(mode)
        os.chown(folder, owner, -1)
        os.seteuid(OTHER_USER)
        try:
            with pytest.raises(WorkspaceError) if refused else nullcontext():
                require_private(folder)
        finally:
            os.seteuid(0)
