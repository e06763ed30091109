"""Named version: from what a person writes to the version of the registry that it means.

models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID; NAME/VERSION and NAME@ALIAS where a version is all it can be
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slmpack.errors import CheckError, SourceError, UsageError
from slmpack.log.restore import check_uri
from slmpack.log.tags import VERSION_OF_LOGGED
from slmpack.log.versions import version_of
from slmpack.source.absence import Absence, absence_of
from slmpack.source.mlflow_errors import is_absent, one_line
from slmpack.source.names import name_of_logged

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
FORMS = "NAME@ALIAS, NAME/VERSION or the same after models:/"


def version_uri(text: str) -> str:
    """Return the URI of a version that was written with or without its scheme, before the first request.

    Raises:
        UsageError: it can never name a single version.
    """
    uri = text if text.startswith(SCHEME) else f"{SCHEME}{text}"
    try:
        check_uri(uri)
    except UsageError:
        raise UsageError(
            f"{text!r} names no single version", FORMS, f"`slmpack list{_name_in(text)}` shows what there is"
        ) from None
    return uri


def require_one_name(before: str, now: str) -> None:
    """Refuse two URIs that name versions of different models; a logged model's id does not tell.

    Raises:
        UsageError: they do.
    """
    old, new = check_uri(before)["name"], check_uri(now)["name"]
    if None not in (old, new) and old != new:
        raise UsageError(
            f"{before} and {now} are of different models, each measured against its own source",
            f"two versions of {old}, or two of {new}",
            f"`slmpack list {old}` and `slmpack list {new}` show them",
        )


def _name_in(text: str) -> str:
    name = text.removeprefix(SCHEME)
    return f" {name}" if name and not set(name) & set("/@#? `'\"") else ""


def named_version(uri: str) -> "ModelVersion":
    """Return the version; of a logged model, the one that it became.

    Raises:
        UsageError: `uri` can never name one.
        SourceError: MLflow has no such version.
        CheckError: the logged model was not published.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    match = check_uri(uri)
    try:
        if match["id"] is None:
            return version_of(match["name"], match["version"], match["alias"])
        logged = MlflowClient().get_logged_model(match["id"])
        number: Mapping[str, str] = logged.tags
        if VERSION_OF_LOGGED not in number:
            raise CheckError(f"{uri} is not published", "a version", f"publish it: slmpack verify {uri}")
        return version_of(name_of_logged(logged), number[VERSION_OF_LOGGED], None)
    except MlflowException as error:
        if not is_absent(error):
            raise
        absence = absence_of(uri) or Absence(one_line(error), "a version", "check MLFLOW_TRACKING_URI and the name")
        raise SourceError(f"MLflow has no {uri}: {absence.found}", absence.known, absence.advice) from error
