"""Smoke: the logged model answers in a process of its own."""

from pathlib import Path

from prefect import task

from slmpack.prove import smoke
from slmpack.records import LoggedModel
from slmpack.reports import SmokeReport
from tasks.policies import PROOF
from tasks.progress import progress_artifact


@task(task_run_name="smoke {model.name}", **PROOF)
@progress_artifact("smoke")
def smoke_test(model: LoggedModel, workspace: Path) -> SmokeReport:
    """Load by URI and ask; never retried."""
    return smoke.smoke_test(model, workspace)
