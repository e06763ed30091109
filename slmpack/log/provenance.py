"""Provenance: what another machine has to know of a logged model to prove it again, in a file beside its MLmodel.

slmpack.json    the records from the source to the logged model, without a path of the machine that made it

The manifest of the logged model lists the file, so it is as safe from changes as the weights are.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from slmpack.checkpoint.original import original_gguf
from slmpack.records import (
    Exporter,
    FileDigest,
    Interface,
    LoggedModel,
    ModelSource,
    Original,
    Package,
    Recipe,
    Record,
    Snapshot,
    SourceKind,
    Target,
    digest_of,
)

PROVENANCE = "slmpack.json"


class SourceFacts(Record):
    """A source as other machines may read it; `location` is None where it is a path of the machine that fetched it.

    Attributes:
        base: of an adapter, the model that it was merged into.
    """

    kind: SourceKind
    text: str
    location: str | None
    revision: str
    member: str | None
    name: str
    licence: str | None
    base: "SourceFacts | None" = None  # not there in what 0.1 logged before it


class SnapshotFacts(Record):
    """A snapshot without its folder."""

    digest: str
    files: tuple[FileDigest, ...]
    architecture: str
    dtype: str
    parameters: int
    layers: int
    context_length: int
    licence: str | None
    repairs: tuple[str, ...] = ()  # not there in what 0.1 logged before it
    original: Original | None = None  # as `repairs`
    base_template: str | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, value: Any) -> Any:
        """Take the GGUF storages from where 0.1 logged them before there was an original."""
        if not isinstance(value, dict) or "stored_types" not in value:
            return value
        value = dict(value)
        storages = value.pop("stored_types")
        return value | ({"original": original_gguf(storages)} if storages else {})


class PackageFacts(Record):
    """A package without its folder."""

    target: Target
    recipe: Recipe | None
    files: tuple[FileDigest, ...]
    versions: dict[str, str]
    digest: str
    build_peak_bytes: int
    repairs: tuple[str, ...]
    quantisation: tuple[str, ...] = ()  # not there in what 0.1 logged before it
    exporter: Exporter = "onnxruntime-genai"  # as `quantisation`


class Provenance(Record):
    """What `slmpack.json` holds; its fields mean what they mean in the records."""

    layout: Literal[1] = 1
    name: str
    interface: Interface
    requirements: tuple[str, ...]
    digest: str
    package: PackageFacts
    snapshot: SnapshotFacts
    source: SourceFacts


def provenance_of(
    package: Package, interface: Interface, name: str, requirements: tuple[str, ...], digest: str
) -> Provenance:
    """Return what may travel of the records of a model that is about to be logged."""
    snapshot = package.snapshot
    return Provenance(
        name=name,
        interface=interface,
        requirements=requirements,
        digest=digest,
        package=PackageFacts.model_validate(package.model_dump(exclude={"snapshot", "path"})),
        snapshot=SnapshotFacts.model_validate(
            snapshot.model_dump(exclude={"source", "path"}) | {"digest": snapshot.digest}
        ),
        source=_facts_of(snapshot.source),
    )


def provenance_digest(provenance: Provenance) -> str:
    """Return what the record says as one digest: a release that has a field more, with a default, gives the same."""
    return digest_of(provenance.model_dump(mode="json", exclude_defaults=True))


def _facts_of(source: ModelSource) -> SourceFacts:
    shown = {"text": source.shown, "location": None if source.is_local else source.location}
    base = _facts_of(source.base) if source.base else None
    return SourceFacts.model_validate(source.model_dump() | shown | {"base": base})


def source_of(provenance: Provenance) -> ModelSource:
    """Return the source's record; a path that did not travel is replaced by the source's name."""
    return source_of_facts(provenance.source)


def source_of_facts(facts: SourceFacts) -> ModelSource:
    """Return the record of a source or of its base, as `source_of` does."""
    base = source_of_facts(facts.base) if facts.base else None
    return ModelSource.model_validate(facts.model_dump() | {"location": facts.location or facts.name, "base": base})


def snapshot_in(folder: Path, provenance: Provenance) -> Snapshot:
    """Return the record of the snapshot that a logged model was made from, in a folder of this machine."""
    facts = provenance.snapshot.model_dump(exclude={"digest"})
    return Snapshot.model_validate(facts | {"source": source_of(provenance), "path": folder})


def model_of(provenance: Provenance, model_id: str, run_id: str, *, package: Path, snapshot: Path) -> LoggedModel:
    """Return the logged model's record, with the folders that `package` and `snapshot` have on this machine."""
    built = provenance.package.model_dump() | {"snapshot": snapshot_in(snapshot, provenance), "path": package}
    return LoggedModel(
        package=Package.model_validate(built),
        interface=provenance.interface,
        name=provenance.name,
        model_id=model_id,
        uri=f"models:/{model_id}",
        run_id=run_id,
        requirements=provenance.requirements,
        digest=provenance.digest,
    )
