"""Origin: the checkpoint that a logged model was made from, on a machine that need not have made it.

a snapshot of the workspace that has its digest    regardless of where it was fetched from
else the source, fetched again as it was pinned    the Hub's commit, the release, the logged model's id
else a folder or file of its name                  in the working folder: its path elsewhere did not travel

Whichever it is, its digest is the one that was recorded when the package was made.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from slmpack.errors import CheckError, SourceError
from slmpack.log.provenance import Provenance, SourceFacts, source_of_facts
from slmpack.machine.store import MANIFEST, Manifest, damage_since, lock
from slmpack.records import ModelSource, SourceKind, digest_of_files
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.names import PARENTS, is_generic, model_name, name_of_path
from slmpack.source.resolve import adapter_source, base_source, resolve_source

logger = logging.getLogger(__name__)


def locate_snapshot(uri: str, provenance: Provenance, workspace: Path) -> Path:
    """Return the folder of the checkpoint that the package of the logged model `uri` was made from.

    Raises:
        SourceError: the source is gone or may not be read.
        CheckError: it is not on this machine, or not what it was.
        WorkspaceError: there is no room for it.
    """
    expected = provenance.snapshot.digest
    if (path := _stored_snapshot(expected, workspace)) is not None:
        return path
    source = _source(uri, provenance.source, workspace)
    snapshot = fetch_snapshot(source, workspace)
    if snapshot.digest != expected:
        advice = "it cannot be proved against another source"
        if source.base is not None:
            advice = "merge it with the releases of slmpack and peft that packaged it"
        elif source.kind in (SourceKind.GGUF, SourceKind.WHEEL):
            advice = "convert it with the releases of slmpack, gguf and transformers that packaged it"
        raise CheckError(
            f"{source.text} gives a checkpoint with digest {snapshot.digest[:12]}...",
            f"{expected[:12]}..., which {uri} was made from",
            advice,
        )
    return snapshot.path


def _stored_snapshot(digest: str, workspace: Path) -> Path | None:
    """Return the workspace's whole snapshot of that digest, regardless of where it was fetched from."""
    for manifest in sorted((workspace / "snapshots").glob(f"*/{MANIFEST}")):
        folder = manifest.parent
        with lock(workspace, f"snapshots-{folder.name}"):
            try:
                is_it = digest_of_files(Manifest.read(folder).files) == digest
            except (OSError, ValueError):
                continue
            if is_it and damage_since(workspace, "snapshots", folder.name) is None:
                return folder
    return None


def _source(uri: str, facts: SourceFacts, workspace: Path) -> ModelSource:
    """Return a source that can be fetched here: as it was pinned, or a path of the same content.

    Raises:
        CheckError: its path elsewhere did not travel, and there is none of its name and content here.
    """
    if facts.location is not None:
        return _pinned(source_of_facts(facts))
    if facts.base is None:
        return source_here(uri, facts, lambda path: resolve_source(str(path), workspace))
    base = _base(uri, facts.base, facts.name, workspace)  # regardless of what the adapter names today
    return source_here(uri, facts, lambda path: adapter_source(str(path), path, base, workspace))


def _base(uri: str, facts: SourceFacts, adapter: str, workspace: Path) -> ModelSource:
    if facts.location is not None:
        return _pinned(source_of_facts(facts))
    return source_here(uri, facts, lambda path: base_source(path, adapter, workspace))


def _pinned(source: ModelSource) -> ModelSource:
    """Return the source to fetch again: the Hub's client must not take the old commit for the branch of today."""
    if source.kind is not SourceKind.HUB:
        return source
    base = _pinned(source.base) if source.base else None
    return source.model_copy(update={"text": f"hf://{source.location}@{source.revision}", "base": base})


def source_here(uri: str, facts: SourceFacts, pin: Callable[[Path], ModelSource]) -> ModelSource:
    """Find a source that was a path of the machine that packaged it: by its name, in the working folder.

    Args:
        pin: resolves a path of that name.

    Raises:
        CheckError: there is none, or none with that content.
    """
    for path in _places_of(facts.name):
        try:
            source = pin(path.resolve())
        except SourceError as error:
            logger.info("%s is not the source: %s", path.name, error)
            continue
        if (source.kind, source.revision) == (facts.kind, facts.revision):
            return source
    what = f"{'folder' if facts.kind is SourceKind.FOLDER else '.gguf file'} {facts.name}"
    raise CheckError(
        f"{uri} was made from the {what}, which is not here",
        f"the {what} with digest {facts.revision[:12]}... in the working folder",
        "without it there is nothing to compare with, so it cannot be proved on this machine",
    )


def _places_of(name: str) -> Iterator[Path]:
    """Yield the paths in the working folder that may have given a source its name; its content decides.

    A name may come from a folder above, which need not have travelled with the checkpoint.
    """
    for path in sorted(Path.cwd().iterdir()):
        has_name = _ascii_of(name_of_path(path)) == _ascii_of(name)
        if has_name or is_generic(model_name(path.name)):
            yield path
        for depth in range(1, PARENTS + 1) if has_name and path.is_dir() else ():
            below = sorted(path.glob("/".join("*" * depth)))
            yield from (place for place in below if name_of_path(place) == name_of_path(path))


def _ascii_of(name: str) -> str:
    """Return what is the same of a name as it is made now and as it was when only ASCII letters stayed."""
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-._")
