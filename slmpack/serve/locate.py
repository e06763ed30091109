"""Locate: from a model's URI to its package on this disk, looked at and verified before anything of it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from slmpack.errors import SourceError
from slmpack.log.ask import model_folder
from slmpack.log.mlflow_server import require_registry
from slmpack.log.signed import require_signed_folder
from slmpack.log.staging import PACKAGE_FOLDER, WRAPPER
from slmpack.log.tags import PUBLISHED
from slmpack.log.trust import LARGEST_READ, METADATA, require_trusted_folder
from slmpack.log.versions import version_of
from slmpack.machine.bounded_file import read_bounded
from slmpack.records import Record
from slmpack.serve.downloads import remove_download
from slmpack.source.absence import absence_of
from slmpack.source.mlflow_errors import final_errors
from slmpack.source.model_uris import registered_form

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


class Located(Record):
    """One version on this disk.

    Attributes:
        uri: as the user named it.
        name: the registered model's; for a folder the folder's.
        version: its number; None for a model that is no version of a registered one.
        alias: the alias in `uri`.
        folder: of the logged model.
        config: the model config that it was logged with.
        digest, target: what the package was published by.
        proved: whether the registry has it as published by slmpack.
        created: seconds since 1970.
    """

    uri: str
    name: str
    version: str | None
    alias: str | None
    folder: Path
    config: dict[str, Any]
    digest: str | None
    target: str | None
    proved: bool
    created: int

    @property
    def package(self) -> Path:
        """The folder of the package."""
        return self.folder / PACKAGE_FOLDER


def locate(uri: str, *, trust_code: bool = False) -> Located:
    """Return where the model of `uri` lies, downloaded if its store is elsewhere.

    Raises:
        SourceError: there is no such model, or it has no package of slmpack's to serve.
        TrustError: its code is not slmpack's and is not trusted, or the trust policy does not accept who signed it.
        PublishError: MLflow cannot be reached.
    """
    version = _version_of(uri)
    folder = _folder_of(uri if version is None else f"models:/{version.name}/{version.version}")
    try:
        if not trust_code:
            require_trusted_folder(uri, folder)
        require_signed_folder(uri, folder)
        return _located(uri, version, folder)
    except Exception:
        remove_download(folder)  # a server that follows an alias would keep one of every version that it refuses
        raise


def _located(uri: str, version: "ModelVersion | None", folder: Path) -> Located:
    metadata = yaml.safe_load(read_bounded(folder / METADATA, LARGEST_READ))
    if not (folder / PACKAGE_FOLDER).is_dir() or not (folder / WRAPPER.name).is_file():
        raise SourceError(
            f"{uri} has no package for ONNX Runtime in it",
            "a model for the target cpu-int4, cpu-int8, cuda-int4 or cuda-fp16",
            "package it: slmpack package SOURCE --target cpu-int4",
        )
    facts = (metadata.get("metadata") or {}).get("slmpack") or {}
    config = dict(metadata["flavors"]["python_function"].get("config") or {})
    named = str(config.get("name") or folder.name)
    return Located(
        uri=uri,
        name=named if version is None else str(version.name),
        version=None if version is None else str(version.version),
        alias=uri.partition("@")[2] or None,
        folder=folder,
        config=config | {"name": named},
        digest=facts.get("digest"),
        target=facts.get("target"),
        proved=version is not None and PUBLISHED in version.tags,
        created=int((folder / METADATA).stat().st_mtime),
    )


def version_behind(uri: str) -> str | None:
    """Return the number of the version that `uri` names at this moment; None where it names no registered model."""
    version = _version_of(uri)
    return None if version is None else str(version.version)


def _version_of(uri: str) -> "ModelVersion | None":
    """Return MLflow's record of the version; None for a folder or a logged model."""
    if (form := registered_form(uri)) is None:
        return None
    require_registry(writes=False)
    try:
        return version_of(form["name"], form["version"], form["alias"])
    except Exception as error:
        raise _absent(uri, error) from error


def _folder_of(uri: str) -> Path:
    if ":" not in uri:
        return Path(uri).absolute()
    with final_errors(SourceError, f"to load {uri}"):
        return model_folder(uri)


def _absent(uri: str, error: Exception) -> SourceError:
    absence = absence_of(uri)
    if absence is not None:
        return SourceError(f"{uri} cannot be served: {absence.found}", absence.known, absence.advice)
    return SourceError(f"{uri} cannot be served: {error}", "a published model such as models:/NAME@cpu-int4")
