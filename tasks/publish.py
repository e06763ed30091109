"""Publish: a proved model becomes a version, and its alias moves last."""

from prefect import runtime, task
from prefect.artifacts import create_markdown_artifact

from slmpack import find, publish
from slmpack.find import PublishedLookup
from slmpack.proof import Proofs
from slmpack.records import LoggedModel, PublishedVersion, Quality, Speed
from tasks.policies import LOCAL, REMOTE


@task(task_run_name="find {name}@{alias}", **REMOTE)
def find_rung(name: str, digests: list[str], alias: str, asked: str) -> PublishedLookup | None:
    """Look for a healthy version of what was asked for."""
    return find.find_rung(name, digests, alias, asked)


@task(task_run_name="publish {model.name}", **REMOTE)
def publish_version(model: LoggedModel, proofs: Proofs, asked: str, force: bool) -> PublishedVersion:
    """Register the version and move the alias; retried, since the registry is remote and publishing idempotent."""
    trace = {"prefect_run": str(runtime.flow_run.id)}
    version = publish.publish_version(model, proofs, asked=asked, force=force, trace=trace)
    create_markdown_artifact(version.summary, key="version", description=version.page_uri)
    return version


@task(task_run_name="mark {model.name} refused", **LOCAL)
def mark_refused(model: LoggedModel, reason: str, speed: Speed | None = None, quality: Quality | None = None) -> None:
    """Leave the reason and the figures on the run and the logged model; nothing is registered."""
    publish.mark_refused(model, reason, speed, quality)
