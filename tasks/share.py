"""Share: log what was fetched here, for the workers of other machines."""

from pathlib import Path

from prefect import task

from slmpack.log import transfer
from slmpack.log.transfer import SharedCheckpoint
from slmpack.records import ModelSource, Snapshot
from tasks.policies import REMOTE
from tasks.progress import progress_artifact
from tasks.trace import trace_of_run


@task(task_run_name="look for {source.text} in MLflow", **REMOTE)
def find_checkpoint(source: ModelSource, workspace: Path) -> SharedCheckpoint | None:
    """Look for the same content, shared before."""
    return transfer.find_checkpoint(source, workspace)


@task(task_run_name="hand {snapshot.source.text} over", **REMOTE)
@progress_artifact("hand-over")
def share_snapshot(snapshot: Snapshot, name: str, workspace: Path) -> SharedCheckpoint:
    """Log the checkpoint; retried, since the tracking server is remote."""
    return transfer.share_snapshot(snapshot, name, workspace, trace_of_run())


@task(task_run_name="read the checkpoint's record", **REMOTE)
def source_of_checkpoint(reference: str) -> ModelSource:
    """Read which source was shared; retried, since the tracking server is remote."""
    return transfer.source_of_checkpoint(reference)
