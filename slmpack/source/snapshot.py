"""Snapshot: the record of a stored snapshot, made of the facts in its manifest, and those facts made of a record."""

import json
from pathlib import Path
from typing import Any

from slmpack.checkpoint.blocks import Bits
from slmpack.checkpoint.original import original_gguf
from slmpack.machine.store import Manifest
from slmpack.records import ModelSource, Original, Record, Snapshot
from slmpack.source.repairs import FACT as REPAIRS

ORIGINAL = "original"  # an `Original` as JSON
# What manifests of earlier releases have in its place: a quantised checkpoint's form and a GGUF file's storages, JSON.
OLDER_FORM, OLDER_STORAGES = "quantised", "gguf_storages"


class OlderForm(Record):
    """What `OLDER_FORM` holds; its fields are `form`, `bits`, `unsupported_reason` and `version` of an `Original`."""

    label: str
    bits: Bits
    obstacle: str | None
    version: int


def snapshot_of(source: ModelSource, path: Path, manifest: Manifest) -> Snapshot:
    """Return the record of a snapshot that is in the workspace."""
    others = (ORIGINAL, OLDER_FORM, OLDER_STORAGES, REPAIRS)
    facts: dict[str, Any] = {name: fact for name, fact in manifest.facts.items() if name not in others}
    repairs = str(manifest.facts.get(REPAIRS) or "").splitlines()
    own = {"source": source, "path": path, "files": manifest.files}
    return Snapshot.model_validate(facts | own | {"repairs": repairs, "original": original_of(manifest)})


def original_of(manifest: Manifest) -> Original | None:
    """Return what a stored snapshot was in its source, written by this or an earlier release."""
    facts = manifest.facts
    if fact := facts.get(ORIGINAL):
        return Original.model_validate_json(str(fact))
    if fact := facts.get(OLDER_FORM):
        older = OlderForm.model_validate_json(str(fact))
        return Original(form=older.label, bits=older.bits, unsupported_reason=older.obstacle, version=older.version)
    if fact := facts.get(OLDER_STORAGES):
        return original_gguf(json.loads(str(fact)))
    return None


def facts_of(snapshot: Snapshot) -> dict[str, str | int | None]:
    """Return the facts that a manifest has of a snapshot, from which `snapshot_of` makes its record again."""
    facts: dict[str, str | int | None] = snapshot.model_dump(exclude={"source", "path", "files", "original", "repairs"})
    if snapshot.repairs:
        facts[REPAIRS] = "\n".join(snapshot.repairs)
    return facts | original_fact(snapshot.original)


def original_fact(original: Original | None) -> dict[str, str | int | None]:
    """Return the fact that a manifest has of an original, none if there is none."""
    return {} if original is None else {ORIGINAL: original.model_dump_json()}
