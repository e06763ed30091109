"""Recall: from the URI of a logged model to its records, on a machine that need not be the one that made it.

    slmpack.json, by URI --> what it is, and what it was made from
    the source           --> its snapshot (`origin`)
    the logged files     --> the package: in place, or downloaded to packages/<digest of its files>/
                         --> read back, all of them, before any of their code runs

`transformers` models need no source: their package is the checkpoint itself, byte for byte.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, SourceError, UsageError
from slmpack.log.artifacts import Artifacts
from slmpack.log.health import damage_of
from slmpack.log.log import MANIFEST_TAG
from slmpack.log.origin import locate_snapshot
from slmpack.log.provenance import PROVENANCE, Provenance, model_of
from slmpack.log.read_back import CHECKPOINT_FOLDER, logged_digests, read_back
from slmpack.log.requirements import requirements_for
from slmpack.log.signed import require_signed
from slmpack.log.staging import PACKAGE_FOLDER
from slmpack.log.tags import MODEL_ID, VERSION_OF_LOGGED
from slmpack.log.trust import require_trusted_artifacts
from slmpack.log.versions import version_of
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.store import MANIFEST, Manifest, store_folder
from slmpack.records import FileDigest, LoggedModel, Record, Target, digest_of_files
from slmpack.source.absence import Absence, absence_of
from slmpack.source.mlflow_errors import final_errors, is_absent, one_line
from slmpack.source.model_uris import model_form

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel as MlflowModel

logger = logging.getLogger(__name__)

_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID"


class LoggedRecord(Record):
    """A logged model as MLflow and its own `slmpack.json` tell of it; none of it is checked yet.

    Attributes:
        location: where its files are.
    """

    uri: str
    model_id: str
    run_id: str
    location: str
    provenance: Provenance


def check_uri(uri: str) -> re.Match[str]:
    """Refuse what can never name a logged model, before the first request.

    Raises:
        UsageError: `uri` is not one of MLflow's forms, or not one that names a single model.
    """
    match = model_form(uri)
    if match is None:
        raise UsageError(f"{uri!r} names no single logged model", _FORMS, "write one of those")
    return match


def find_logged(uri: str) -> LoggedRecord:
    """Return the record of the logged model that `uri` names; no file but `slmpack.json` is read.

    Raises:
        UsageError: `uri` can never name one.
        SourceError: MLflow has no such model.
        CheckError: slmpack did not log it, or it is not whole.
    """
    with final_errors(CheckError, f"to read {uri}"):
        logged = _logged_model(uri)
        artifacts = Artifacts(str(logged.artifact_location))
        names = artifacts.top_names()
        if PROVENANCE not in names and MANIFEST_TAG in logged.tags:
            damage = damage_of(logged.model_id) or f"it has no {PROVENANCE}"
            raise CheckError(
                f"{uri} cannot be used: {damage}",
                "all the files that were logged",
                "package its source again: slmpack package SOURCE",
            )
        if PROVENANCE not in names or MANIFEST_TAG not in logged.tags:
            raise _stranger(uri, f"no {PROVENANCE} beside its MLmodel")
        with artifacts.file(PROVENANCE) as file:
            provenance = _read_provenance(uri, file)
    return LoggedRecord(
        uri=uri,
        model_id=logged.model_id,
        run_id=str(logged.source_run_id),
        location=artifacts.location,
        provenance=provenance,
    )


def _read_provenance(uri: str, file: Path) -> Provenance:
    try:
        return Provenance.model_validate_json(read_bounded(file))
    except (OSError, ValueError) as error:
        raise CheckError(
            f"{PROVENANCE} of {uri} cannot be read",
            "one that this release of slmpack writes",
            "verify with the release that logged it, or package its source again",
        ) from error


def restore_model(uri: str, workspace: Path, *, trust_code: bool = False) -> LoggedModel:
    """Return the record of the logged model that `uri` names, its package and its source's snapshot on this machine.

    Args:
        uri: the logged model.
        workspace: where what has to be fetched goes.
        trust_code: take a model whose code is not slmpack's.

    Raises:
        UsageError: `uri` can never name a logged model.
        SourceError: MLflow has no such model, or the source it was made from is gone.
        CheckError: slmpack did not log it, a file is not the one that was logged, or the source is not on this
            machine or not what it was.
        TrustError: its code is not slmpack's, or the trust policy does not accept who signed it.
        WorkspaceError: there is no room for what has to be fetched.
    """
    found = find_logged(uri)
    _compare_versions(found.provenance)
    is_checkpoint = found.provenance.package.target is Target.TRANSFORMERS
    snapshot = None if is_checkpoint else locate_snapshot(uri, found.provenance, workspace)
    with final_errors(CheckError, f"to read {uri}"):
        package = _package_path(found, CHECKPOINT_FOLDER if is_checkpoint else PACKAGE_FOLDER, workspace)
    model = model_of(found.provenance, found.model_id, found.run_id, package=package, snapshot=snapshot or package)
    for check in read_back(model):
        logger.info("%s: %s", check.name, check.found)
    if not trust_code:  # after it: a damaged wrapper is reported as damage
        require_trusted_artifacts(uri, found.location)
    _require_signed(found, model)
    return model


def _require_signed(found: LoggedRecord, model: LoggedModel) -> None:
    """Refuse a version that the trust policy does not accept; what was never published is signed when it is proved."""
    from mlflow import MlflowClient

    name = check_uri(found.uri)["name"]
    if name is None and VERSION_OF_LOGGED not in MlflowClient().get_logged_model(found.model_id).tags:
        return
    require_signed(found.uri, name or found.provenance.name, found.location, logged_digests(model))


def _logged_model(uri: str) -> "MlflowModel":
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    match = check_uri(uri)
    client = MlflowClient()
    try:
        model_id = match["id"]
        if model_id is None:
            version = version_of(match["name"], match["version"], match["alias"])
            source = model_form(version.source or "")  # of one that a person registered
            model_id = version.tags.get(MODEL_ID) or (source and source["id"])
        if not model_id:
            raise _stranger(uri, "no logged model behind it")
        logged = client.get_logged_model(model_id)
    except MlflowException as error:
        if not is_absent(error):
            raise
        absence = absence_of(uri) or Absence(one_line(error), _FORMS, "check MLFLOW_TRACKING_URI and the name")
        raise SourceError(f"MLflow has no {uri}: {absence.found}", absence.known, absence.advice) from error
    if str(logged.status) != "READY":
        raise CheckError(f"{uri} is {logged.status}", "READY: a model that was logged to its end", "log it again")
    return logged


def _stranger(uri: str, found: str) -> CheckError:
    return CheckError(f"{uri} has {found}", "a model that slmpack logged", "package its source: slmpack package SOURCE")


def _compare_versions(provenance: Provenance) -> None:
    """Say where proofs run on other versions than the model requires; only its clean environment has those for sure."""
    here = requirements_for(provenance.package.target)
    if different := sorted(set(provenance.requirements) - set(here)):
        installed = ", ".join(sorted(set(here) - set(provenance.requirements)))
        logger.warning("the model requires %s; this machine proves it on %s", ", ".join(different), installed)


def _package_path(found: LoggedRecord, folder: str, workspace: Path) -> Path:
    """Return the folder of the package's files: in place, where reading back compares them, or downloaded."""
    artifacts, package = Artifacts(found.location), found.provenance.package
    if artifacts.folder is not None:
        return artifacts.folder / folder

    def make(into: Path) -> dict[str, str | int | None]:
        artifacts.copy(folder, into)
        for path in (into / folder).iterdir():
            path.rename(into / path.name)
        shutil.rmtree(into / Path(folder).parts[0])
        (into / MANIFEST).unlink(missing_ok=True)  # the store writes its own
        return {"target": package.target, "recipe": package.recipe}

    path = store_folder(workspace, "packages", digest_of_files(package.files), make)
    if complaint := _unfaithful(found.uri, Manifest.read(path).files, package.files):
        shutil.rmtree(path)  # its key promises other content
        raise complaint
    return path


def _unfaithful(uri: str, found: tuple[FileDigest, ...], expected: tuple[FileDigest, ...]) -> CheckError | None:
    """Return the error for a downloaded package that lacks a file as it was logged."""
    different = sorted(file.name for file in set(expected) - set(found))
    if not different:
        return None
    return CheckError(
        f"{uri} serves {different[0]} with other content or not at all",
        "the file as it was built",
        "log the model again, and find out who changes files in the artifact store",
    )
