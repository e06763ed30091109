"""Publish: a proved model becomes a version, and its alias moves last."""

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from slmpack.log import links
from slmpack.publish import find, publish
from slmpack.publish.find import PublishedLookup
from slmpack.publish.page.log_page import Proofs
from slmpack.records import LoggedModel, PublishedVersion, Quality, Speed
from tasks.policies import LOCAL, REMOTE
from tasks.progress import progress_artifact
from tasks.trace import trace_of_run


@task(task_run_name="find what is wanted of {name}@{alias}", **REMOTE)
def find_wanted(name: str, wanted: str, alias: str) -> PublishedLookup | None:
    """Look for a healthy version of what was asked for, by the source's pin."""
    return find.find_wanted(name, wanted, alias)


@task(task_run_name="find {name}@{alias}", **REMOTE)
def find_rung(name: str, digests: list[str], alias: str, asked: str, wanted: str) -> PublishedLookup | None:
    """Look for a healthy version of what was asked for, by the content that was fetched."""
    return find.find_rung(name, digests, alias, asked, wanted)


@task(task_run_name="publish {model.name}", **REMOTE)
@progress_artifact("publish")
def publish_version(
    model: LoggedModel, proofs: Proofs, asked: str, force: bool, wanted: str | None = None
) -> PublishedVersion:
    """Register the version and move the alias; retried, since the registry is remote and publishing idempotent."""
    version = publish.publish_version(model, proofs, asked=asked, wanted=wanted, force=force, trace=trace_of_run())
    _show(version, proofs)
    return version


def _show(version: PublishedVersion, proofs: Proofs) -> None:
    """Show the version in the dashboard; each card leads to MLflow, where its description is a link."""
    link = links.version_link(version.name, version.version)
    page = links.markdown_link("The page", links.page_address(version.page_uri))
    create_table_artifact(proofs.table(), key="proofs", description=f"What holds for {link}")
    create_markdown_artifact(version.summary, key="version", description=f"{page} of {link}")
    if (address := links.version_address(version.name, version.version)) is not None:
        text = f"{version.name} {version.version} in MLflow"
        create_link_artifact(address, link_text=text, key="mlflow-version", description=f"{link} in MLflow")


@task(task_run_name="mark {model.name} refused", **LOCAL)
def mark_refused(
    model: LoggedModel, reason: str, speed: Speed | None = None, quality: Quality | None = None, status: str = "FAILED"
) -> None:
    """Leave the reason and the figures on the run and the logged model; nothing is registered."""
    publish.mark_refused(model, reason, speed, quality, status)
