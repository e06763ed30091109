"""Unproved: what waits for the hardware that it is for, in the MLflow that is configured."""

from prefect import task

from slmpack.publish import unproved
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request
from slmpack.records import LoggedModel
from slmpack.reports import UnprovedModel
from tasks.policies import REMOTE


@task(task_run_name="leave {model.uri} unproved", **REMOTE)
def leave_unproved(model: LoggedModel, proofs: Proofs, request: Request) -> UnprovedModel:
    """Leave the model for a machine that can prove it; retried, since the tracking server is remote."""
    assert request.request_key is not None
    return unproved.leave_unproved(model, proofs, request.fingerprint, request.request_key)
