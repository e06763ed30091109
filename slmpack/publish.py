"""Publish: a proved model becomes a version of a registered model, and its alias moves last.

MLflow is all that publishers on several machines share, and it has no compare-and-swap. So:

    create a version that carries the digest -> search the digest -> the lowest number wins -> losers delete their own
    winner: figures -> the holder of the alias is told who supersedes it -> alias moves -> `slmpack.published` is set

Every step may be done twice. A version without `slmpack.published` was left by a publisher that was killed: the next
one with the same digest completes it. One with it is never moved again, so that a rollback stays.
"""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from slmpack.errors import PublishError
from slmpack.records import (
    Interface,
    LoggedModel,
    PublishedVersion,
    Record,
    SmokeReport,
    Speed,
    Target,
    ValidationReport,
)
from slmpack.registry import check_alias, check_name, final_errors, is_absent, require_registry
from slmpack.requirements import runtime_versions

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "PublishedLookup", "alias_of", "check_name", "find_published", "mark_refused", "publish_version",
    "require_registry",
]  # fmt: skip

logger = logging.getLogger(__name__)

DIGEST = "slmpack.digest"
MODEL_ID = "slmpack.model_id"
PUBLISHED = "slmpack.published"  # the alias that was moved to the version, when it was for the first time


class PublishedLookup(Record):
    """A healthy version that was published before.

    Attributes:
        alias: the alias that was moved to it then; a rollback may have given it to another version since.
        recipe: as in the version's tag; None for a target that is not quantised.
    """

    name: str
    version: int
    alias: str
    digest: str
    model_id: str
    run_id: str
    target: Target
    recipe: str | None
    size_bytes: int


def alias_of(target: Target, interface: Interface) -> str:
    """Return the alias of a target: `cpu-int4`, or `cpu-int4-prompt` for the prompt interface."""
    return str(target) if interface is Interface.CHAT else f"{target}-{interface}"


def find_published(name: str, digest: str, alias: str) -> PublishedLookup | None:
    """Return the newest version of `name` with that digest that was published under `alias` and still is whole.

    Raises:
        UsageError: MLflow would refuse the name or the alias.
    """
    check_name(name)
    check_alias(alias)
    if _holder(name, alias) is None:  # deleted, or gone with the version that had it
        return None
    for version in reversed(_versions(name, DIGEST, digest)):
        if version.tags.get(PUBLISHED) == alias and _is_whole(version):
            recipe = version.tags["slmpack.recipe"]
            return PublishedLookup(
                name=name,
                version=int(version.version),
                alias=alias,
                digest=digest,
                model_id=version.tags[MODEL_ID],
                run_id=version.tags["slmpack.mlflow_run"],
                target=Target(version.tags["slmpack.target"]),
                recipe=None if recipe == "none" else recipe,
                size_bytes=int(version.tags["slmpack.size_bytes"]),
            )
    return None


def publish_version(
    model: LoggedModel, validation: ValidationReport, smoke: SmokeReport, *, force: bool, trace: dict[str, str]
) -> PublishedVersion:
    """Register the proved model and move its alias to it; the same call again changes nothing more.

    Args:
        force: make a version of this very model even if one of the same digest is published.
        trace: where this comes from, such as the id of a Prefect run; becomes tags of the version.

    Returns:
        The version that has the alias; of another logged model where one of the same digest came first.

    Raises:
        PublishError: a report is about another model, or the registry refuses.
        UsageError: the registry would refuse the name.
    """
    if validation.model != model or smoke.model != model:
        other = validation.model if validation.model != model else smoke.model
        raise PublishError(f"a report about {other.uri}", f"reports about {model.uri}", "prove the model itself")
    check_name(model.name)
    alias = alias_of(model.package.target, model.interface)
    with final_errors(PublishError, f"to publish {model.name}"):
        _log_figures(model, smoke.speed)
        _require_registered_model(model.name)
        version = _claim_version(model, _tags_of(model, smoke.speed, trace, force), force)
        if version.tags.get(PUBLISHED) is None or _holder(model.name, alias) is None:
            _complete(version, alias)
        _close_run(model, int(version.version))
    logger.info("published %s version %s as %s", model.name, version.version, alias)
    return _published(model, version, alias)


def mark_refused(model: LoggedModel, reason: str) -> None:
    """Leave on the run and the logged model why they were not published; nothing is registered."""
    from mlflow import MlflowClient

    with final_errors(PublishError, f"to mark {model.uri} as refused"):
        client = MlflowClient()
        text = " ".join(reason.split())[:1000]
        client.set_logged_model_tags(model.model_id, {"slmpack.refused": text})
        client.set_tag(model.run_id, "slmpack.refused", text)
        client.set_terminated(model.run_id, "FAILED")


def _tags_of(model: LoggedModel, speed: Speed, trace: dict[str, str], force: bool) -> dict[str, str]:
    """Return what the version says of itself, all of it from its first moment on."""
    package = model.package
    source = package.snapshot.source
    is_public = "://" in source.text or source.text.startswith(("models:", "runs:"))
    facts: dict[str, object] = {
        "source": source.text if is_public else source.name,
        "revision": source.revision,
        "licence": package.snapshot.licence or "unknown",
        "target": package.target,
        "recipe": package.recipe or "none",
        "interface": model.interface,
        "digest": model.digest,
        "size_bytes": package.size_bytes,
        "model_id": model.model_id,
        "mlflow_run": model.run_id,
        "forced": str(force).lower(),
    }
    facts |= {f"version.{name}": found for name, found in (package.versions | runtime_versions(package.target)).items()}
    facts |= {name: f"{value:.6g}" for name, value in _figures(speed).items()}
    return {f"slmpack.{key}": str(value) for key, value in (trace | facts).items()}


def _figures(speed: Speed) -> dict[str, float]:
    return {name: float(value) for name, value in speed.model_dump().items()}


def _log_figures(model: LoggedModel, speed: Speed) -> None:
    """Log the figures to the run and the logged model; at the run's own time, so that a second call adds nothing."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    moment = client.get_run(model.run_id).info.start_time
    metrics = [
        Metric(name, value, moment, 0, model_id=model.model_id, run_id=model.run_id)
        for name, value in _figures(speed).items()
    ]
    client.log_batch(model.run_id, metrics=metrics)


def _require_registered_model(name: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _claim_version(model: LoggedModel, tags: dict[str, str], force: bool) -> "ModelVersion":
    """Return the one version of the digest (with `force`: of the logged model), made if there is none."""
    from mlflow import MlflowClient

    key, value = (MODEL_ID, model.model_id) if force else (DIGEST, model.digest)
    if not _whole_versions(model.name, key, value):
        MlflowClient().create_model_version(
            model.name, model.uri, model.run_id, tags=tags, model_id=model.model_id, await_creation_for=0
        )
    found = _whole_versions(model.name, key, value)
    if not found:
        raise PublishError(f"the version of {model.uri} was deleted while it was published", "", "publish again")
    winner, *others = found
    for other in others:
        # one that is not ours was left by a loser that was killed, or its owner is about to delete it
        if PUBLISHED not in other.tags and other.tags["slmpack.forced"] == "false":
            logger.info("version %s of the same digest came before version %s", winner.version, other.version)
            _delete(other)
    return winner


def _versions(name: str, key: str, value: str) -> list["ModelVersion"]:
    """Return the versions of `name` with that tag, lowest number first."""
    from mlflow import MlflowClient

    client, token, found = MlflowClient(), None, []
    while token != "":
        page = client.search_model_versions(f"name = '{name}' AND tags.`{key}` = '{value}'", page_token=token)
        found += list(page)
        token = page.token or ""
    return sorted(found, key=lambda version: int(version.version))


def _whole_versions(name: str, key: str, value: str) -> list["ModelVersion"]:
    return [version for version in _versions(name, key, value) if _is_whole(version)]


def _is_whole(version: "ModelVersion") -> bool:
    """Tell whether the version's model is still there: it can be found, and its MLmodel can be listed."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model_id = version.tags.get(MODEL_ID)
    if model_id is None:  # deleted while MLflow read it: tags come with a query of their own
        return False
    try:
        logged = MlflowClient().get_logged_model(model_id)
        listed = get_artifact_repository(logged.artifact_location).list_artifacts()
    except MlflowException as error:
        if is_absent(error):
            return False
        raise
    return str(logged.status) == "READY" and any(entry.path == "MLmodel" for entry in listed)


def _delete(version: "ModelVersion") -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().delete_model_version(version.name, version.version)
    except MlflowException as error:
        if not is_absent(error):
            raise


def _complete(version: "ModelVersion", alias: str) -> None:
    """Move the alias to the version; the tag that says so comes last."""
    from mlflow import MlflowClient

    client = MlflowClient()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = _holder(version.name, alias)
    if holder is not None and holder.version != version.version:
        told = {"held_until": now, "superseded_by": str(version.version), "held_alias": alias}
        for key, value in told.items():
            client.set_model_version_tag(holder.name, holder.version, f"slmpack.{key}", value)
    client.set_model_version_tag(version.name, version.version, "slmpack.held_since", now)
    client.set_registered_model_alias(version.name, alias, version.version)
    client.set_model_version_tag(version.name, version.version, PUBLISHED, alias)


def _holder(name: str, alias: str) -> "ModelVersion | None":
    """Return the version that has the alias now."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if is_absent(error):
            return None
        raise


def _close_run(model: LoggedModel, version: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    client.set_logged_model_tags(model.model_id, {"slmpack.version": str(version)})
    client.set_tag(model.run_id, "slmpack.version", version)
    client.set_terminated(model.run_id, "FINISHED")


def _published(model: LoggedModel, version: "ModelVersion", alias: str) -> PublishedVersion:
    """Describe the version; one that came first is of its own logged model and run."""
    model_id = version.tags[MODEL_ID]
    run_id = version.tags["slmpack.mlflow_run"]
    proved = model.model_copy(update={"model_id": model_id, "uri": f"models:/{model_id}", "run_id": run_id})
    return PublishedVersion(
        model=proved, name=model.name, version=int(version.version), alias=alias, digest=model.digest
    )
