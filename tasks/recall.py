"""Recall: what a logged model is, from its URI."""

from pathlib import Path

from prefect import task

from slmpack.log import restore
from slmpack.log.restore import Recorded
from slmpack.publish import find
from slmpack.publish.find import Standing
from slmpack.records import LoggedModel
from tasks.policies import REMOTE
from tasks.progress import progress_artifact


@task(task_run_name="find {uri}", **REMOTE)
def find_logged(uri: str) -> Recorded:
    """Read what is told of the model; retried, since the tracking server is remote."""
    return restore.find_logged(uri)


@task(task_run_name="recall {uri}", **REMOTE)
@progress_artifact("recall")
def recall_model(uri: str, workspace: Path, trust_code: bool) -> LoggedModel:
    """Bring package and source to this machine and compare every file; retried, since both are remote."""
    return restore.recall_model(uri, workspace, trust_code=trust_code)


@task(task_run_name="find the version of {model.uri}", **REMOTE)
def standing_of(model: LoggedModel) -> Standing:
    """Look for the model in the registry; retried, since that is remote."""
    return find.standing_of(model)
