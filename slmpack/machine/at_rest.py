"""At rest: files of somebody else's must not change while they are read, or what is made of them has another digest.

    source folder --link--> snapshot --read by a child--> package, reference, calibration, ... --> stored by the digest

A snapshot links to weights where they are. `derive_folder` compares the snapshot with its manifest before and after the
child reads it, and what the file system says of every linked file as well, so that weights that were swapped and put
back are found too: every change of a file sets its change time (see `stamps`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slmpack.errors import SlmpackError, SourceError, WorkspaceError
from slmpack.machine.stamps import Stamp, stamp_of
from slmpack.machine.store import Facts, damage_since, lock, store_folder
from slmpack.records import Snapshot

_AT_REST, _AGAIN = "files at rest", "start again"


def linked_files(folder: Path) -> list[Path]:
    """Return the files elsewhere that links below `folder` point to."""
    return sorted(path.resolve() for path in folder.rglob("*") if path.is_symlink() and path.is_file())


class Watch:
    """Files that are being read, and what the file system said of each when that began.

    Args:
        what: what to call the source that they are of.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun: dict[Path, Stamp | None] = {}

    def add(self, files: Iterable[Path]) -> None:
        """Watch more files; to be called before they are hashed."""
        self._begun |= {path: _stamp(path) for path in files}

    def complaint(self) -> SourceError | None:
        """Return the error for the first file that was touched since; None if none was."""
        moved = next((path for path, stamp in self._begun.items() if stamp is None or stamp != _stamp(path)), None)
        if moved is None:
            return None
        return SourceError(f"{moved.name} of {self._what} changed while it was read", _AT_REST, _AGAIN)


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except OSError:  # it is gone
        return None


@contextmanager
def at_rest(files: Iterable[Path], what: str) -> Iterator[None]:
    """Refuse what came of reading `files` if one of them was touched meanwhile, also if reading it failed.

    Args:
        files: somebody else's.
        what: what to call the source that they are of.

    Raises:
        SourceError: one was.
    """
    watch = Watch(what)
    watch.add(files)
    try:
        yield
    except SlmpackError as error:
        if complaint := watch.complaint():
            raise complaint from error
        raise
    if complaint := watch.complaint():
        raise complaint


@contextmanager
def unchanged(snapshot: Snapshot) -> Iterator[None]:
    """Hold a snapshot against its manifest before and after it is read; untouched files are not hashed for that.

    Raises:
        SourceError: a file is not the one that was fetched, or was touched meanwhile.
        WorkspaceError: the snapshot is gone.
    """
    with at_rest(linked_files(snapshot.path), snapshot.source.text):
        _require_whole(snapshot)
        yield
        _require_whole(snapshot)


def derive_folder(snapshot: Snapshot, workspace: Path, kind: str, key: str, make: Callable[[Path], Facts]) -> Path:
    """Return the folder `<workspace>/<kind>/<key>` as `store_folder` does, of something that is made of `snapshot`.

    What was made while a file of the snapshot changed is thrown away.

    Args:
        key: depends on the snapshot's digest.
        make: reads the snapshot.

    Raises:
        SourceError: a file is not the one that was fetched, or was touched meanwhile.
        WorkspaceError: the snapshot is gone.
    """

    def make_at_rest(into: Path) -> Facts:
        with unchanged(snapshot):
            return make(into)

    return store_folder(workspace, kind, key, make_at_rest)


def _require_whole(snapshot: Snapshot) -> None:
    if not snapshot.path.is_dir():
        raise WorkspaceError("the source's snapshot is gone from the workspace", "its folder", "fetch it again")
    workspace, kind, key = snapshot.path.parents[1], snapshot.path.parent.name, snapshot.path.name
    with lock(workspace, f"{kind}-{key}"):
        reason = damage_since(workspace, kind, key)
    if reason is not None:
        raise SourceError(f"{snapshot.source.text} is not what was fetched: {reason}", _AT_REST, _AGAIN)
