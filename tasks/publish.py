"""Publish: a proved model becomes a version, and its alias moves last."""

from prefect import runtime, task

from slmpack import publish
from slmpack.publish import PublishedLookup
from slmpack.records import LoggedModel, PublishedVersion, SmokeReport, ValidationReport
from tasks.policies import LOCAL, REMOTE


@task(task_run_name="find {name}@{alias}", **REMOTE)
def find_published(name: str, digest: str, alias: str) -> PublishedLookup | None:
    """Look for a healthy version of the same digest."""
    return publish.find_published(name, digest, alias)


@task(task_run_name="publish {model.name}", **REMOTE)
def publish_version(
    model: LoggedModel, validation: ValidationReport, smoke: SmokeReport, force: bool
) -> PublishedVersion:
    """Register the version and move the alias; retried, since the registry is remote and publishing idempotent."""
    trace = {"prefect_run": str(runtime.flow_run.id)}
    return publish.publish_version(model, validation, smoke, force=force, trace=trace)


@task(task_run_name="mark {model.name} refused", **LOCAL)
def mark_refused(model: LoggedModel, reason: str) -> None:
    """Leave the reason on the run and the logged model; nothing is registered."""
    publish.mark_refused(model, reason)
