"""Publish: a proved model becomes a version, and its alias moves last."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from slmpack.errors import SlmpackError
from slmpack.log import links
from slmpack.publish import publish
from slmpack.publish.attempts import RefusalMark, Trial, refusal_mark
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request
from slmpack.records import LoggedModel
from slmpack.reports import PublishedVersion
from tasks.policies import INTERRUPTIONS, LOCAL, REMOTE
from tasks.progress import progress_artifact
from tasks.sign import key_of
from tasks.trace import trace_of_run


@task(task_run_name="publish {model.name}", **REMOTE)
@progress_artifact("publish")
def publish_version(model: LoggedModel, proofs: Proofs, request: Request) -> PublishedVersion:
    """Register the version and move the alias; retried, since the registry is remote and publishing idempotent."""
    version = publish.publish_version(
        model,
        proofs,
        fingerprint=request.fingerprint,
        request_key=request.request_key,
        force=request.options.force,
        trace=trace_of_run(),
        key=key_of(request.options),
    )
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


@contextmanager
def marking_refused(model: LoggedModel, trial: Trial) -> Iterator[None]:
    """Leave on a model that does not hold the reason, and what was measured until then."""
    try:
        yield
    except (SlmpackError, *INTERRUPTIONS) as error:
        if (mark := refusal_mark(error, trial.smoke)) is not None:
            mark_refused(model, mark)
        raise


@task(task_run_name="mark {model.name} refused", **LOCAL)
def mark_refused(model: LoggedModel, mark: RefusalMark) -> None:
    """Leave the reason and the figures on the run and the logged model; nothing is registered."""
    publish.mark_refused(model, mark.reason, mark.speed, mark.quality, mark.status)
