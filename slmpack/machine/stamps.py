"""Stamps: which files were hashed before and are untouched since, so that they need not be read again.

    <workspace>/stamps/<kind>-<key>.json    path in the folder -> what the file system said before the file was hashed

A folder of gigabytes is looked at for every recipe, target and run; hashing all of it each time would be most of the
work. What a stamp promises: nobody has written to the file, changed its mode, renamed or replaced it since its sha256
was right, because each of these sets the change time (ctime), which no call lets a program choose; putting the
modification time back sets it, too. What it does not: a disk that gives back other bytes than were written, somebody
who can write to the disk itself or set the machine's clock back. Those are found where bytes are proof: a model's
wrapper hashes the package whenever it is loaded, and publishing reads every file back before the alias moves.

A file that changed within the last seconds gets no stamp, since the clock of change times ticks in steps: another
change within the same step would leave no trace.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from slmpack.machine.private import replace_text
from slmpack.records import Record

SETTLED_NS = 3 * 10**9  # FAT has steps of 2 s, most other file systems of 1 to 10 ms


class Stamp(Record):
    """What the file system says of a file; a link is what it points to. Times in nanoseconds."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class Stamps(Record):
    """The stamps of a folder's files, by their path in it; `manifest` is the sha256 of what their digests were in."""

    manifest: str
    files: dict[str, Stamp]


def stamps_of(folder: Path, settled_ns: int = SETTLED_NS) -> dict[str, Stamp]:
    """Return the stamps of the files below `folder` that did not change within the last `settled_ns`.

    To be taken before hashing, so that a change meanwhile shows.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return settled_stamps(files, settled_ns)


def settled_stamps(files: Mapping[str, Path], settled_ns: int = SETTLED_NS) -> dict[str, Stamp]:
    """Return the stamps of `files`, by their names, as `stamps_of` does."""
    latest = time.time_ns() - settled_ns
    stamps = {name: stamp_of(path) for name, path in files.items()}
    return {name: stamp for name, stamp in stamps.items() if stamp.changed_ns < latest}


def stamp_of(path: Path) -> Stamp:
    """Return what the file system says of a file now; a link is what it points to."""
    found = path.stat()
    return Stamp(
        device=found.st_dev,
        inode=found.st_ino,
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        changed_ns=found.st_ctime_ns,
    )


def untouched_since(file: Path, stamps: Mapping[str, Stamp], manifest: str) -> frozenset[str]:
    """Return the names whose stamp is the one that `keep_stamps` left in `file` for this manifest."""
    try:
        stored = Stamps.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # none were left, or what is left of them is no use
        return frozenset()
    if stored.manifest != manifest:
        return frozenset()
    return frozenset(name for name, stamp in stamps.items() if stored.files.get(name) == stamp)


def keep_stamps(file: Path, stamps: Mapping[str, Stamp], manifest: str) -> None:
    """Leave the stamps of files that were found to have the sha256 that the manifest says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, Stamps(manifest=manifest, files=dict(stamps)).model_dump_json(indent=1))
