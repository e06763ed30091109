"""Watch: which registered models have a new source, such as last night's fine-tune.

A registered model may hold sources and the packages that were made of them. A package is no news, or it would trigger
its own packaging: it has the tag `slmpack.digest` from its first moment on, since `claim` makes version and tags in one
step, and the MLmodel of one that was registered by hand names slmpack. A source that was announced has the tag
`slmpack.announced`; without the tag it is announced again.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slmpack.errors import SourceError
from slmpack.log.mlflow_server import check_name
from slmpack.log.tags import DIGEST
from slmpack.records import Record
from slmpack.source import logged_model
from slmpack.source.mlflow_errors import final_errors, is_absent

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

WATCH = "slmpack.watch"  # of a registered model: "true" has it watched
ANNOUNCED = "slmpack.announced"  # of a version: when, and as which version


class SourceVersion(Record):
    """A version of a registered model that can be packaged."""

    name: str
    version: int

    @property
    def source(self) -> str:
        return f"models:/{self.name}/{self.version}"


class WatchResult(Record):
    """What became of one watched model.

    Attributes:
        announced: the source that is new; None if nothing is.
        reason: what went wrong, else None.
    """

    name: str
    announced: str | None = None
    reason: str | None = None


def find_watched(names: list[str]) -> list[str]:
    """Return the registered models to look at: `names` without doubles, or all whose tag asks for it."""
    from mlflow import MlflowClient

    if names:
        return list(dict.fromkeys(names))
    client, token, found = MlflowClient(), None, []
    while token != "":
        page = client.search_registered_models(f"tags.`{WATCH}` = 'true'", page_token=token)
        found += [str(model.name) for model in page]
        token = page.token or ""
    return found


def find_new_version(name: str) -> SourceVersion | None:
    """Return the newest source among the versions of `name`; None if it was announced, or if there is none.

    Sources older than that are superseded: nobody needs packages of them any more. They are not tagged, since they
    were not announced: if the newest is deleted, the one before it is the newest, and is announced.

    Raises:
        UsageError: it is no name that a package could have.
        SourceError: it is not registered, or MLflow refuses to tell.
    """
    check_name(name)
    with final_errors(SourceError, f"to show the versions of {name}"):
        _require_registered(name)
        for version in _newest_first(name):
            found = SourceVersion(name=name, version=int(version.version))
            if version.tags.get(ANNOUNCED, "").endswith(_as(found)):
                return None
            if DIGEST not in version.tags and _is_source(found):
                return found
    return None


def mark_announced(found: SourceVersion) -> None:
    """Leave on the version that it was announced, and when; the same call again changes the time only.

    Raises:
        SourceError: the version is gone, or MLflow refuses to tag it.
    """
    from mlflow import MlflowClient

    now = datetime.now(UTC).isoformat(timespec="seconds")
    with final_errors(SourceError, f"to tag {found.source}"):
        MlflowClient().set_model_version_tag(found.name, str(found.version), ANNOUNCED, now + _as(found))


def failed_look(name: str, error: Exception) -> WatchResult:
    """Describe a model that could not be looked at, or not be announced."""
    return WatchResult(name=name, reason=" ".join(str(error).split()) or type(error).__name__)


def summary_of(looks: list[WatchResult]) -> str:
    """Say what was announced and what went wrong: "2 models, 1 announced: models:/tuned/4; MLflow has no ..."."""
    if not looks:
        return f"no registered model has the tag {WATCH} with value true"
    announced = [look.announced for look in looks if look.announced is not None]
    summary = f"{len(looks)} model{'s' if len(looks) > 1 else ''}, {len(announced)} announced"
    reasons = [look.reason for look in looks if look.reason is not None]
    return "; ".join([": ".join(filter(None, (summary, ", ".join(announced)))), *reasons])


def _as(found: SourceVersion) -> str:
    """Say which version was announced: a copy under another name has the tag too, but was not."""
    return f" as {found.source}"


def _require_registered(name: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if not is_absent(error):
            raise
        raise SourceError(
            f"MLflow has no registered model {name!r}", "one to watch", "register it, or watch another"
        ) from error


def _newest_first(name: str) -> Iterator["ModelVersion"]:
    """Yield the versions, the highest number first; each page is requested when the caller comes to it."""
    from mlflow import MlflowClient

    client, token = MlflowClient(), None
    while token != "":
        page = client.search_model_versions(
            f"name = '{name}'", max_results=50, order_by=["version_number DESC"], page_token=token
        )
        yield from page
        token = page.token or ""


def _is_source(found: SourceVersion) -> bool:
    """Tell whether the version is a whole transformers model that slmpack did not make."""
    import mlflow

    try:
        pinned = logged_model.pin(found.source)
    except SourceError as error:
        logger.info("not announced: %s", error)
        return False
    return "slmpack" not in (mlflow.models.get_model_info(pinned.location).metadata or {})
