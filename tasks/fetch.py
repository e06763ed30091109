"""Fetch: the source's files, checked and digested."""

from pathlib import Path

from prefect import task

from slmpack.log import transfer
from slmpack.records import ModelSource, Snapshot
from slmpack.source import open_source
from tasks.policies import REMOTE
from tasks.progress import progress_artifact


@task(task_run_name="fetch {source.text}", **REMOTE)
@progress_artifact("fetch")
def fetch_snapshot(source: ModelSource, workspace: Path, waive_template: str | None) -> Snapshot:
    """Download the model, unless a chat template of it is refused; retried, since the source is remote."""
    return open_source.fetch_open_snapshot(source, workspace, waive_template)


@task(task_run_name="receive the checkpoint", **REMOTE)
@progress_artifact("fetch")
def receive_snapshot(reference: str, workspace: Path) -> Snapshot:
    """Take from MLflow what another run fetched; retried, since it is remote."""
    return transfer.receive_snapshot(reference, workspace)
