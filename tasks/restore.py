"""Restore: what a logged model is, from its URI."""

from pathlib import Path

from prefect import task

from slmpack.log import restore
from slmpack.log.restore import LoggedRecord
from slmpack.publish import find
from slmpack.publish.find import RegistryStatus
from slmpack.records import LoggedModel
from tasks.policies import REMOTE
from tasks.progress import progress_artifact


@task(task_run_name="find {uri}", **REMOTE)
def find_logged(uri: str) -> LoggedRecord:
    """Read the model's record; retried, since the tracking server is remote."""
    return restore.find_logged(uri)


@task(task_run_name="restore {uri}", **REMOTE)
@progress_artifact("restore")  # the stage's name in outcomes
def restore_model(uri: str, workspace: Path, trust_code: bool) -> LoggedModel:
    """Bring package and source to this machine and compare every file; retried, since both are remote."""
    return restore.restore_model(uri, workspace, trust_code=trust_code)


@task(task_run_name="find the version of {model.uri}", **REMOTE)
def registry_status(model: LoggedModel) -> RegistryStatus:
    """Look for the model in the registry; retried, since that is remote."""
    return find.registry_status(model)
