"""Transfer: a fetched source for other machines, through MLflow. They need neither the source's site nor its token.

    snapshot --logged, never registered--> models:/m-ID --downloaded, compared, stored--> the same snapshot elsewhere
       +----- `models:/m-ID#DIGEST`, by Prefect, as a parameter of the run there ------------+

Nobody signs what is handed over. Its record, which lists the digests of its files, is compared with the digest that the
run was given: who may write to MLflow's artifact store alone cannot exchange it.

The same source is logged once: it is found again by a tag. The storages of a GGUF file's matrices go along, so that the
other machine loses as little of them as this one. A GPTQ, AWQ or Olive checkpoint is more than its plain snapshot:
where the source can be reached from anywhere, each machine fetches that very revision itself.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from slmpack.errors import CheckError, SourceError
from slmpack.log.artifacts import Artifacts
from slmpack.log.checkpoint import log_checkpoint
from slmpack.log.log import PREFECT_RUN, ready_models
from slmpack.log.provenance import Provenance, provenance_digest, provenance_of, snapshot_in, source_of
from slmpack.log.read_back import CHECKPOINT_FOLDER
from slmpack.log.restore import LoggedRecord, find_logged
from slmpack.log.staging import link_or_copy
from slmpack.machine.store import Manifest, store_folder
from slmpack.records import ModelSource, Record, Snapshot, SourceKind, digest_of_files
from slmpack.signing.policy import find_policy
from slmpack.source.fetch import snapshot_key
from slmpack.source.snapshot import facts_of, snapshot_of

CHECKPOINT_TAG = "checkpoint"


class SharedCheckpoint(Record):
    """What another machine is given to fetch a source: its text, and where its files are in MLflow.

    Attributes:
        source: as the user wrote it, or pinned; never a path of this machine.
        checkpoint: `models:/m-ID#DIGEST`, the digest of its record; None where each machine fetches the source itself.
    """

    source: str
    checkpoint: str | None


def find_checkpoint(source: ModelSource, workspace: Path) -> SharedCheckpoint | None:
    """Return the checkpoint of this very content that was shared before; nothing is fetched for that.

    It is held against the snapshot in the workspace, if that has it. If it has not, nobody here knows what is right: a
    machine with a trust policy takes nothing then.
    """
    if source.kind is SourceKind.MLFLOW:
        return SharedCheckpoint(source=source.location, checkpoint=None)
    for model in ready_models({f"slmpack.{CHECKPOINT_TAG}": snapshot_key(source)}):
        with suppress(CheckError, SourceError):  # it is damaged or gone: the source is shared again
            provenance = find_logged(f"models:/{model.model_id}").provenance
            if _is_known(source, provenance, workspace):
                return SharedCheckpoint(source=source.shown, checkpoint=_reference(model.model_id, provenance))
    return None


def _is_known(source: ModelSource, provenance: Provenance, workspace: Path) -> bool:
    """Say whether a shared checkpoint may be taken for what this machine would fetch."""
    path = workspace / "snapshots" / snapshot_key(source)
    if not path.exists():
        return find_policy() is None
    return digest_of_files(Manifest.read(path).files) == provenance.snapshot.digest


def _reference(model_id: str, provenance: Provenance) -> str:
    return f"models:/{model_id}#{provenance_digest(provenance)}"


def share_snapshot(snapshot: Snapshot, name: str, workspace: Path, trace: dict[str, str]) -> SharedCheckpoint:
    """Log the snapshot, so that other machines can take it from MLflow.

    Raises:
        SourceError: the snapshot is only a part of what was fetched, and the source is a path of this machine.
        LogError: MLflow would not take it.
    """
    source = snapshot.source
    if snapshot.is_dequantised:
        return SharedCheckpoint(source=pinned_text(source), checkpoint=None)
    tags = {key: value for key, value in trace.items() if key != PREFECT_RUN}  # it is nobody's package
    model = log_checkpoint(snapshot, name, workspace, tags | {CHECKPOINT_TAG: snapshot_key(source)})
    record = provenance_of(model.package, model.interface, model.name, model.requirements, model.digest)
    return SharedCheckpoint(source=source.shown, checkpoint=_reference(model.model_id, record))


def pinned_text(source: ModelSource) -> str:
    """Return the text of a source that gives this very content on any machine.

    Raises:
        SourceError: it is a path of this machine.
    """
    if source.is_local:
        raise SourceError(
            f"{source.text} is quantised and on this machine only",
            "a source that workers can reach",
            "put it on a Hub or log it to MLflow, or package it here",
        )
    match source.kind:
        case SourceKind.HUB:
            return f"hf://{source.location}@{source.revision}"
        case SourceKind.MLFLOW:
            return source.location
        case _:
            return source.text


def source_of_checkpoint(reference: str) -> ModelSource:
    """Return the source that a checkpoint in MLflow was fetched from, pinned as it was.

    Raises:
        SourceError: it is another checkpoint than the one that was shared.
    """
    return source_of(_find_shared(reference).provenance)


def _find_shared(reference: str) -> LoggedRecord:
    """Return the record of a shared checkpoint, compared with the digest in its reference.

    A reference of an earlier release has no digest; its record is not compared.

    Raises:
        SourceError: it is not the record that was shared.
    """
    uri, _, digest = reference.partition("#")
    found = find_logged(uri)
    if digest and (other := provenance_digest(found.provenance)) != digest:
        raise SourceError(
            f"{uri} is another checkpoint than the one that was handed over (its record has digest {other[:12]}...)",
            f"digest {digest[:12]}...",
            "see who may write to MLflow's artifacts, delete that logged model, then start again",
        )
    return found


def receive_snapshot(reference: str, workspace: Path) -> Snapshot:
    """Return the snapshot that `share_snapshot` logged, from the workspace if it has it, else from MLflow.

    Args:
        reference: `models:/m-ID#DIGEST`.
        workspace: where it is stored; nothing of other files stays there.

    Raises:
        SourceError: MLflow has no such model, its files are not those that were shared, or the source was
            quantised, and the model has only a part of it.
        CheckError: slmpack did not log it, or it is not whole.
        WorkspaceError: there is no room for it.
    """
    found = _find_shared(reference)
    provenance, source, original = found.provenance, source_of(found.provenance), found.provenance.snapshot.original
    if original is not None and original.is_checkpoint:
        raise SourceError(
            f"{found.uri} has the plain weights of {source.text}, without its codes ({original.form})",
            "the source of a whole snapshot",
            f"fetch {source.text} itself",
        )

    made: list[Path] = []

    def make(into: Path) -> dict[str, str | int | None]:
        made.append(into)
        _take_files(found.location, provenance, into)
        return facts_of(snapshot_in(into, provenance))

    path = store_folder(workspace, "snapshots", snapshot_key(source), make)
    manifest = Manifest.read(path)
    if digest_of_files(manifest.files) != provenance.snapshot.digest:
        if made:
            shutil.rmtree(path)  # the key stands for the source's own files: a later fetch would use these
        raise SourceError(
            f"{found.uri} holds other files than were fetched",
            f"digest {provenance.snapshot.digest[:12]}...",
            "delete that logged model, then start again",
        )
    return snapshot_of(source, path, manifest)


def _take_files(location: str, provenance: Provenance, into: Path) -> None:
    """Put the checkpoint's own files into the empty folder `into`: linked from a local store, else downloaded."""
    artifacts = Artifacts(location)
    if artifacts.folder is not None:
        for file in provenance.snapshot.files:
            link_or_copy(artifacts.folder / CHECKPOINT_FOLDER / file.name, into / file.name)
        return
    for file in provenance.snapshot.files:
        artifacts.copy(f"{CHECKPOINT_FOLDER}/{file.name}", into)
        (into / file.name).parent.mkdir(exist_ok=True)
        (into / CHECKPOINT_FOLDER / file.name).rename(into / file.name)
    shutil.rmtree(into / CHECKPOINT_FOLDER)
