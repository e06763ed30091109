"""Codes: a quantised checkpoint becomes a plain one, and what the builder can take of it lies in codes/<key>/.

Both are made in a process of their own (see `dequantise`), and made again where another release made them.
"""

import shutil
from functools import partial
from pathlib import Path

from slmpack.checkpoint.headers import INDEX, is_weights
from slmpack.checkpoint.inspect import CONFIG, inspect_checkpoint, relevant_files
from slmpack.checkpoint.original import CODES, OLDER_CODES
from slmpack.errors import SourceError
from slmpack.machine.child import run_in_child
from slmpack.machine.json_file import read_json
from slmpack.machine.store import Manifest, damage_since, digest_files, lock, log_folder, require_space, store_folder
from slmpack.records import ModelSource, Original
from slmpack.source import dequantise
from slmpack.source.files import place_files
from slmpack.source.pinned import naming, unfaithful
from slmpack.source.snapshot import original_fact, original_of

DEQUANTISE_LIMIT_SECONDS = 3600.0


def drop_outdated(workspace: Path, key: str) -> None:
    """Remove a snapshot of quantised weights that another release made, or that lacks what the builder takes."""
    path = workspace / "snapshots" / key
    with lock(workspace, f"snapshots-{key}"):
        try:
            original = original_of(Manifest.read(path))
        except (OSError, ValueError):  # there is none, or it is damaged, which is found next
            return
        if original is None or not original.is_checkpoint:
            return
        if original.version == dequantise.VERSION and (original.unsupported_reason or _is_whole(workspace, key)):
            return
        shutil.rmtree(path)


def _is_whole(workspace: Path, key: str) -> bool:
    """Say whether the workspace has what the builder takes of a quantised checkpoint; it removes what is damaged."""
    with lock(workspace, f"{CODES}-{key}"):
        _move_older_codes(workspace, key)
        if damage_since(workspace, CODES, key) is None:
            return True
        shutil.rmtree(workspace / CODES / key, ignore_errors=True)
        return False


def _move_older_codes(workspace: Path, key: str) -> None:
    """Move what an earlier release stored under another name to where it belongs."""
    older, place = workspace / OLDER_CODES / key, workspace / CODES / key
    if older.exists() and not place.exists():
        place.parent.mkdir(exist_ok=True)
        older.rename(place)


def dequantise_snapshot(
    source: ModelSource, into: Path, workspace: Path, key: str, *, is_repaired: bool
) -> dict[str, str | int | None]:
    """Make a plain checkpoint of a quantised one in `into`, and put what the builder takes into codes/<key>/."""
    if not read_json(into / CONFIG).get("quantization_config"):
        return {}
    original, codes = (into.with_name(f"{into.name}.{what}") for what in ("original", CODES))
    try:
        for folder in (original, codes):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
        into.rename(original)
        with naming(source, original):
            facts = inspect_checkpoint(original)  # before gigabytes are read
            if not is_repaired and (complaint := unfaithful(source, original, digest_files(original, "fetch"))):
                raise complaint
            require_space(original.parent, facts.parameters * 5, "the dequantised checkpoint")  # 4 plain, 1 of codes
            record = _run_dequantise(original, into, codes, log_folder(workspace) / f"dequantise-{key[:12]}.log")
        if record.unsupported_reason is None:
            store_folder(workspace, CODES, key, partial(_move, codes))
        return original_fact(record)
    finally:
        for folder in (original, codes):
            shutil.rmtree(folder, ignore_errors=True)


def _run_dequantise(original: Path, plain: Path, codes: Path, log: Path) -> Original:
    for folder in (plain, codes):
        folder.mkdir()
        small = {name: path for name, path in relevant_files(original).items() if not is_weights(name)}
        place_files(small, folder, ours=folder)
        (folder / INDEX).unlink(missing_ok=True)
    record, _ = run_in_child(
        dequantise.dequantise_checkpoint,
        dequantise.DequantiseRequest(original=original, plain=plain, codes=codes),
        log=log,
        limit_seconds=DEQUANTISE_LIMIT_SECONDS,
        failure=SourceError,
        doing="the dequantisation",
    )
    return record


def _move(made: Path, into: Path) -> dict[str, str | int | None]:
    for path in made.iterdir():
        path.rename(into / path.name)
    return {}
