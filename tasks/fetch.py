"""Fetch: the source's files, checked and digested."""

from pathlib import Path

from prefect import task

from slmpack import fetch
from slmpack.records import ModelSource, Snapshot
from tasks.policies import REMOTE


@task(task_run_name="fetch {source.text}", **REMOTE)
def fetch_snapshot(source: ModelSource, workspace: Path) -> Snapshot:
    """Download the model; retried, since the source is remote."""
    return fetch.fetch_snapshot(source, workspace)
