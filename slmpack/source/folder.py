"""Source digest: one sha256 over the files of a checkpoint folder that is the user's own, read once while untouched.

    <workspace>/stamps/source-<key>.json    file -> what the file system said of it, and its sha256

A run for several targets, and every later run, asks for the digest again; see `stamps` for what untouched means. The
snapshot that is made of the folder is digested by itself, so what changed in between is found there.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from slmpack.errors import WorkspaceError
from slmpack.machine.private import folder_in, replace_text
from slmpack.machine.stamps import SETTLED_NS, Stamp, settled_stamps
from slmpack.machine.store import sha256_of
from slmpack.progress import report
from slmpack.records import FileDigest, Record, digest_of, digest_of_files
from slmpack.source.files import checkpoint_files
from slmpack.source.mlflow_errors import final_errors


class Known(Record):
    """A file that was hashed before, and what the file system said of it then."""

    stamp: Stamp
    sha256: str


class KnownFiles(Record):
    """All of a folder's, by their path in it."""

    files: dict[str, Known]


def digest_folder(
    folder: Path,
    workspace: Path | None,
    settled_ns: int = SETTLED_NS,
    files_of: Callable[[Path], dict[str, Path]] = checkpoint_files,
) -> str:
    """Return the digest over the files that a snapshot of `folder` would hold.

    Args:
        folder: a checkpoint or an adapter.
        workspace: remembers what was hashed; with None everything is read.
        settled_ns: how long a file must have been untouched to be remembered.
        files_of: which files those are.

    Raises:
        WorkspaceError: there is no room to remember it.
    """
    files = files_of(folder)
    digests = _digests(files, folder, workspace, settled_ns)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return digest_of_files(FileDigest(name=name, sha256=digests[name], size_bytes=sizes[name]) for name in files)


def digest_file(path: Path, workspace: Path | None, settled_ns: int = SETTLED_NS) -> str:
    """Return the sha256 of one file that is the user's own, such as a GGUF file, as `digest_folder` reads it.

    Raises:
        WorkspaceError: there is no room to remember it.
    """
    return _digests({path.name: path}, path, workspace, settled_ns)[path.name]


def _digests(files: Mapping[str, Path], of: Path, workspace: Path | None, settled_ns: int) -> dict[str, str]:
    """Return the sha256 of every file, by its name; what is known of those of the path `of` is not read again."""
    stamps = settled_stamps(files, settled_ns)  # before hashing, so that a change meanwhile shows
    place = None if workspace is None else workspace / "stamps" / f"source-{digest_of(str(of))}.json"
    known = _read(place)
    digests = {
        name: known[name].sha256 for name, stamp in stamps.items() if name in known and known[name].stamp == stamp
    }
    digests |= _hash({name: path for name, path in files.items() if name not in digests})
    if place is not None:
        hashed = {name: Known(stamp=stamp, sha256=digests[name]) for name, stamp in stamps.items()}
        _write(place, KnownFiles(files=known | hashed))  # an adapter and its base may be in one folder
    return digests


def _hash(files: Mapping[str, Path]) -> dict[str, str]:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the GIL
        for name, sha256 in zip(files, pool.map(sha256_of, files.values()), strict=True):
            digests[name] = sha256
            report("resolve", sum(sizes[done] for done in digests), sum(sizes.values()), "bytes hashed")
    return digests


def _read(place: Path | None) -> dict[str, Known]:
    try:
        return {} if place is None else KnownFiles.model_validate_json(place.read_bytes()).files
    except (OSError, ValidationError):  # there is no such file, or it cannot be read
        return {}


def _write(place: Path, known: KnownFiles) -> None:
    with final_errors(WorkspaceError, "to remember what was hashed"):
        folder_in(place.parents[1], place.parent.name)
        replace_text(place, known.model_dump_json(indent=1))
