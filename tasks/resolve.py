"""Resolve: which exact content a source means."""

from pathlib import Path

from prefect import task

from slmpack import resolve
from slmpack.records import ModelSource
from tasks.policies import REMOTE


@task(task_run_name="resolve {text}", **REMOTE)
def resolve_source(text: str, workspace: Path) -> ModelSource:
    """Pin the source; retried, since it may be remote."""
    return resolve.resolve_source(text, workspace)
