"""Log: the package, wrapped, as an MLflow logged model."""

from pathlib import Path

from prefect import task

from slmpack.log import log
from slmpack.records import Interface, LoggedModel, Package
from tasks.policies import REMOTE
from tasks.progress import progress_artifact
from tasks.trace import trace_of_run


@task(task_run_name="log {name}", **REMOTE)
@progress_artifact("log")
def log_model(package: Package, interface: Interface, name: str, workspace: Path) -> LoggedModel:
    """Log the model; retried, since the tracking server is remote."""
    return log.log_model(package, interface, name, workspace, trace_of_run())
