"""Source files: which files of a folder that somebody else wrote a snapshot takes, each looked at before it is opened.

    regular           no named pipe, socket or device, which are refused and never waited for
    inside            a link may point to a file of the same folder, and in the Hub client's cache to its blob:
                      snapshots/COMMIT/config.json -> ../../blobs/9fe6...
    of a size         that what its name says can have

Anything else would be copied into what is published: a licence that is a link to somebody's private key.
`checkpoint.relevant_files` is for folders of our own, in which weights are links to a source's.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from slmpack.checkpoint.headers import INDEX, is_weights, read_index
from slmpack.checkpoint.inspect import is_small, relevant_names
from slmpack.errors import SourceError
from slmpack.machine.bounded_file import LargeFileError, limit_of, require_regular, require_size
from slmpack.source.adapter import is_adapter_file

MOST_SMALL_FILES = 256
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def checkpoint_files(folder: Path, inside: Path | None = None) -> dict[str, Path]:
    """Return the files that a snapshot of a checkpoint needs, their path in the folder to their path on disk.

    Args:
        folder: somebody else's.
        inside: the folder that no link may leave; None: `folder`.

    Raises:
        SourceError: one is not regular, lies outside, or is too large; or the index of the shards is not usable.
    """
    needed = _checked(folder, inside, lambda name: is_small(name) or name == INDEX)
    names = relevant_names(_entries(folder).keys(), lambda: read_index(folder / INDEX, str(folder / INDEX)))
    return dict(sorted((needed | _checked(folder, inside, lambda name: name in names and is_weights(name))).items()))


def adapter_files(folder: Path) -> dict[str, Path]:
    """Return the files of an adapter that matter, as `checkpoint_files` does.

    Raises:
        SourceError: one is not regular, lies outside, or is too large.
    """
    return _checked(folder, None, is_adapter_file)


def require_own(path: Path, root: Path) -> None:
    """Refuse a file that is not regular, lies outside `root`, or is too large for what it is called.

    Raises:
        SourceError: it is.
    """
    _require_inside(path, root.resolve())
    try:
        require_regular(path) if is_weights(path.name) else require_size(path, limit_of(path.name))
    except OSError as error:
        raise _refused(str(path), str(error.strerror), is_large=isinstance(error, LargeFileError)) from error


def require_small_sizes(sizes: dict[str, int], where: str) -> None:
    """Refuse files that are larger than what they are called can be, before they are downloaded.

    Args:
        sizes: in bytes, by the files' paths in the repository.
        where: what to call that.

    Raises:
        SourceError: one is.
    """
    for name, size in sorted(sizes.items()):
        most = limit_of(Path(name).name)
        if not is_weights(name) and size > most:
            raise _refused(f"{name} of {where}", f"it has {size:,} bytes, more than {most:,}")


def _checked(folder: Path, inside: Path | None, is_needed: Callable[[str], bool]) -> dict[str, Path]:
    root = (inside or folder).resolve()
    found = {name: path for name, path in _entries(folder).items() if is_needed(name)}
    _require_few(folder, found)
    for path in found.values():
        require_own(path, root)
    return found


def _entries(folder: Path) -> dict[str, Path]:
    """Return all but folders in a folder and in those below it; what links to nothing, or may not be seen, is left out.

    Raises:
        SourceError: it cannot be listed, or changes meanwhile.
    """
    try:
        paths = {path.relative_to(folder).as_posix(): path for path in [*folder.glob("*"), *folder.glob("*/*")]}
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be listed ({error.strerror})", "a folder that holds one model", "name such a folder"
        ) from error
    # Path's own raise for what may not be seen.
    return {
        name: path
        for name, path in sorted(paths.items())
        if os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112
    }


def _require_few(folder: Path, names: Collection[str]) -> None:
    small = sum(not is_weights(name) for name in names)
    if small > MOST_SMALL_FILES:
        raise SourceError(
            f"{folder} has {small:,} licences, templates and settings",
            f"at most {MOST_SMALL_FILES}",
            "name a folder that holds one model",
        )


def _require_inside(path: Path, root: Path) -> None:
    place = path.resolve()
    if not (place.is_relative_to(root) or place.parent == _blobs_of(root)):
        raise SourceError(f"{path} leads to {place}", f"a file in {root}", "put a copy of it in the link's place")


def _blobs_of(root: Path) -> Path | None:
    """Return where files of a snapshot in the Hub client's cache lie. Source: its guide, "Understand caching"."""
    return root.parents[1] / _BLOBS if root.parent.name == _SNAPSHOTS else None


def _refused(file: str, found: str, *, is_large: bool = True) -> SourceError:
    expected = "the size that such a file can have" if is_large else "a regular file"
    return SourceError(f"{file} is not read, since {found}", expected, "correct the file, or name another source")


def place_files(files: Mapping[str, Path], into: Path, ours: Path) -> None:
    """Put files (path in the folder to path on disk) into `into`: small ones as copies, so that they stay as they are.

    Weights cost their bytes once: those below `ours` are moved, others are linked.
    """
    for name, path in files.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_weights(name):
            shutil.copyfile(path, target)
        elif path.resolve().is_relative_to(ours.resolve()):
            path.rename(target)
        else:
            target.symlink_to(path.resolve())
