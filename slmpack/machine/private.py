"""Private: the workspace belongs to one user, and what is written into it is written there and nowhere else.

A user who can write into the workspace can exchange what is published, so it is made for its owner alone. File names in
it are predictable; none is followed where it is a link, and nothing is emptied before it was looked at. So locks are
files that are opened here, and not those of the package filelock.
"""

import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from slmpack.errors import UsageError, WorkspaceError
from slmpack.machine.surroundings import default_workspace, require_writable, typed_path

PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0


def workspace_of(given: Path | None) -> Path:
    """Return the absolute path of a workspace, of the default one with None.

    Raises:
        WorkspaceError: it cannot be written or made, or others may write it.
    """
    folder = typed_path(given or default_workspace())
    require_writable(folder)
    require_private(folder, is_default=given is None)
    return folder


def require_private(folder: Path, *, is_default: bool = False) -> None:
    """Refuse a workspace that others may write; one that is not there yet is made by `folder_in`.

    The volume of a container often belongs to root and may be written by everybody; such a one is accepted unless it
    is a place for all users, as /tmp is.

    Args:
        is_default: it is the place that slmpack itself chose, where the permission is taken away instead.

    Raises:
        WorkspaceError: it belongs to another user, or others may write it.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    user, is_open = os.geteuid(), bool(found.st_mode & OTHERS_WRITE)
    if found.st_uid == user and is_open and is_default:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
        return
    if found.st_uid == ROOT and user != ROOT:
        is_open = bool(found.st_mode & stat.S_ISVTX)
    if is_open:
        raise WorkspaceError(
            f"{folder} may be written by other users",
            "a workspace of one user",
            f"name another --workspace, or type: chmod go-w {folder}",
        )
    if found.st_uid not in (user, ROOT) and user != ROOT:
        raise WorkspaceError(
            f"{folder} belongs to another user (uid {found.st_uid})",
            "a workspace of one user",
            "name another --workspace",
        )


def folder_in(workspace: Path, *names: str) -> Path:
    """Return a folder of the workspace, made if need be; a workspace is made for its owner alone."""
    if not workspace.exists():
        workspace.parent.mkdir(parents=True, exist_ok=True)
        workspace.mkdir(mode=PRIVATE, exist_ok=True)  # another process may have been faster
    folder = workspace.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_lock(path: Path) -> int:
    """Open a file to lock it, made if need be; return its descriptor. Its content stays.

    Raises:
        WorkspaceError: it is a link, or no regular file.
    """
    return _open_regular(path, os.O_RDWR | os.O_CREAT)


def try_lock(handle: int) -> bool:
    """Take the lock of an open file unless another process has it; the kernel frees it when its holder ends."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(handle: int) -> None:
    """Take the lock of an open file, waiting for its holder."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def open_log(path: Path) -> IO[bytes]:
    """Open a log for writing, emptied and unbuffered.

    Raises:
        WorkspaceError: it is a link, or no regular file.
    """
    handle = _open_regular(path, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(handle, 0)
    return os.fdopen(handle, "wb", buffering=0)


def append_log(path: Path) -> IO[bytes]:
    """Open a log for more lines, unbuffered.

    Raises:
        WorkspaceError: it is a link, or no regular file.
    """
    return os.fdopen(_open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab", buffering=0)


def empty_log(path: Path) -> None:
    """Make a log, or empty it.

    Raises:
        WorkspaceError: it is a link, or no regular file.
    """
    open_log(path).close()


def require_secret(path: Path, shown: str) -> None:
    """Refuse a file with a secret that others may read or write; a group may read it, as a pod's of Kubernetes does.

    Args:
        shown: what the file is, for the error.

    Raises:
        UsageError: they may.
        OSError: there is no such file.
    """
    mode = path.stat().st_mode
    if mode & (OTHERS_WRITE | stat.S_IROTH):
        raise UsageError(
            f"others may read or write {shown} (mode {stat.S_IMODE(mode):04o})",
            "a file that its owner alone may write, and no other user may read",
            f"type: chmod 600 {path}",
        )


def replace_text(path: Path, text: str) -> None:
    """Write a file aside and rename it into place, so that a reader finds all of it or what was there before."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")  # another process may do the same
    aside.unlink(missing_ok=True)
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _open_regular(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise _irregular(path, "a link") from error
        if path.exists() and not path.is_file():  # a folder, or a pipe that nobody reads
            raise _irregular(path, "no file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _irregular(path, "no file")
    os.set_blocking(handle, True)  # it was opened so only not to wait for a pipe's other end
    return handle


def _irregular(path: Path, found: str) -> WorkspaceError:
    return WorkspaceError(f"{path} is {found}", "a file of slmpack's own", "remove it; nothing of use is in it")
