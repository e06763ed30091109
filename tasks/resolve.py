"""Resolve: which exact content a source means."""

from pathlib import Path

from prefect import task

from slmpack.records import ModelSource
from slmpack.source import logged_model, resolve
from tasks.policies import REMOTE


@task(task_run_name="resolve {text}", **REMOTE)
def resolve_source(text: str, workspace: Path) -> ModelSource:
    """Pin the source; retried, since it may be remote."""
    return resolve.resolve_source(text, workspace)


@task(task_run_name="look for the chats of {source.text}", **REMOTE)
def chats_of(source: ModelSource) -> str | None:
    """Look for the chats that a tuned model was judged by; retried, since MLflow is remote."""
    return logged_model.chats_of(source)
