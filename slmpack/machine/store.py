"""Content-addressed folders in the workspace.

    <workspace>/snapshots/<key>/   checkpoints           <workspace>/locks/    one flock file a key
    <workspace>/packages/<key>/    built packages        <workspace>/scratch/  folders not finished yet
    <workspace>/tunings/<key>/     tuned models          <workspace>/training/ checkpoints of trainings that run
    <workspace>/chats/<key>/       chats, some held out  <workspace>/logs/     what child processes wrote
    <workspace>/parities/<key>/    tokenizers compared   <workspace>/stamps/   what need not be hashed again
    <workspace>/codes/<key>/       checkpoints as they were quantised, beside plain snapshots of the same key
    <workspace>/exports/<key>/     float32 graphs from optimum, beside environments/<key>/, in which it runs
    <workspace>/bytecode/<key>/    what Python compiled of a clean environment's packages: no manifest, Python compares
    <workspace>/requirements/<key>.lock       requirements with hashes, as the package index had them within a day
    <workspace>/references/, chat-references/<key>/  sources' own logits and answers, on a text and on chats
    <workspace>/calibrations/, folds/, sensitivities/, gptq/<key>/  what was found out about a source for its recipes

A folder is made in `scratch/`, synced, made read-only and renamed into place, so a whole one is never half one.
Its `manifest.json` has every file's sha256 and what its maker wants to remember. A folder that is there is compared
with it before it is used: a file that was hashed before and is untouched since (`stamps`) is not read for that. flock
is given back by the kernel when its holder dies, so a killed run blocks nobody.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from slmpack.errors import WorkspaceError
from slmpack.machine.bounded_file import open_regular, read_bounded
from slmpack.machine.private import folder_in, open_lock, try_lock, wait_for_lock
from slmpack.machine.stamps import keep_stamps, stamps_of, untouched_since
from slmpack.progress import report
from slmpack.records import FileDigest, Record

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

Facts = dict[str, str | int | None]  # in a manifest, about its folder


class Manifest(Record):
    """What a stored folder holds, and what its maker wants to remember of it."""

    files: tuple[FileDigest, ...]
    facts: Facts

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a stored folder."""
        return cls.model_validate_json(read_bounded(folder / MANIFEST))


def log_folder(workspace: Path) -> Path:
    """Return the folder for the logs of child processes, made if need be."""
    return folder_in(workspace, "logs")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, stage: str, leave_out: frozenset[str] = frozenset()) -> tuple[FileDigest, ...]:
    """Digest every file below `folder` but its manifest, sorted by name; links count as what they point to.

    Args:
        folder: where the files are.
        stage: the name that the progress is reported under.
        leave_out: paths in the folder that are not to be read.
    """
    paths = sorted(path for path in _files_of(folder) if path.relative_to(folder).as_posix() not in leave_out)
    return digest_paths(folder, paths, stage)


def digest_paths(folder: Path, paths: Sequence[Path], stage: str) -> tuple[FileDigest, ...]:
    """Digest files below `folder`, in the order in which they are given.

    Args:
        folder: what the names in the digests begin at.
        paths: of the files.
        stage: the name that the progress is reported under.
    """
    total = sum(path.stat().st_size for path in paths)
    done = 0
    digests = []
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing releases the GIL
        for path, sha256 in zip(paths, pool.map(sha256_of, paths), strict=True):
            size = path.stat().st_size
            digests.append(FileDigest(name=path.relative_to(folder).as_posix(), sha256=sha256, size_bytes=size))
            done += size
            report(stage, done, total, "bytes hashed")
    return tuple(digests)


def _files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def damage(folder: Path, untouched: frozenset[str] = frozenset()) -> str | None:
    """Compare a stored folder with its manifest; return the first difference in words, None if there is none.

    Args:
        folder: the stored folder.
        untouched: paths in it that are known to have their sha256, and are not read.
    """
    try:
        expected = {file.name: file for file in Manifest.read(folder).files}
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    found = {file.name: file for file in digest_files(folder, "verify", untouched)}
    found |= {name: expected[name] for name in untouched & expected.keys()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} was added"
        if found[name] != expected[name]:
            return f"{name} was changed"
    return None


def damage_since(workspace: Path, kind: str, key: str) -> str | None:
    """Tell as `damage` does, of a stored folder whose lock the caller holds; untouched files are not read again."""
    folder, file = workspace / kind / key, _stamps_file(workspace, kind, key)
    if not (folder / MANIFEST).is_file():
        return damage(folder)
    stamps, manifest = stamps_of(folder), sha256_of(folder / MANIFEST)
    reason = damage(folder, untouched_since(file, stamps, manifest))
    if reason is None:
        keep_stamps(file, stamps, manifest)
    return reason


def _stamps_file(workspace: Path, kind: str, key: str) -> Path:
    return workspace / "stamps" / f"{kind}-{key}.json"


@contextmanager
def lock(workspace: Path, key: str) -> Iterator[None]:
    """Hold the lock of `key`, waiting for its holder; the kernel frees it when the holder dies."""
    handle = open_lock(folder_in(workspace, "locks") / f"{key}.lock")
    try:
        if not try_lock(handle):
            logger.info("waiting for another process that works on %s", key)
            wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def store_folder(workspace: Path, kind: str, key: str, make: Callable[[Path], Facts]) -> Path:
    """Return the folder `<workspace>/<kind>/<key>`, made by `make` unless a whole one is there.

    Args:
        workspace: where everything of one user lives.
        kind: one of the folders above.
        key: what the content depends on, as a file name.
        make: fills the empty folder it is given and returns the facts to remember in the manifest.
    """
    place = workspace / kind / key
    with lock(workspace, f"{kind}-{key}"):
        if place.exists():
            reason = damage_since(workspace, kind, key)
            if reason is None:
                return place
            logger.warning("%s in %s: making it again", reason, place)
            shutil.rmtree(place)
        scratch = workspace / "scratch" / f"{kind}-{key}"
        shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed: we hold its lock
        scratch.mkdir(parents=True)
        try:
            facts = make(scratch)
            stamps = stamps_of(scratch)  # of links to files that were there before: what we wrote ourselves changes yet
            _seal(scratch, facts, stage=kind)
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(place)
            _sync(place.parent)
            keep_stamps(_stamps_file(workspace, kind, key), stamps, sha256_of(place / MANIFEST))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return place


def _seal(folder: Path, facts: Facts, stage: str) -> None:
    """Write the manifest, sync every file and make it read-only; a link's target is not ours to change."""
    manifest = Manifest(files=digest_files(folder, stage), facts=facts)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    for path in folder.rglob("*"):
        _sync(path)
        if path.is_file() and not path.is_symlink():
            path.chmod(0o444)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(folder: Path, needed_bytes: int, what_for: str) -> None:
    """Refuse work that cannot fit, before it starts.

    Raises:
        WorkspaceError: the file system of `folder` has less than `needed_bytes` free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise WorkspaceError(
            f"{free:,} bytes are free in {folder}",
            f"{what_for} needs {needed_bytes:,} bytes",
            "free some space or name another --workspace",
        )
