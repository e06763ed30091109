"""Unproved: what waits for the hardware that it is for, in the MLflow that is configured."""

from prefect import task

from slmpack.publish import unproved
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request
from slmpack.records import LoggedModel, Target, UnprovedModel
from tasks.policies import REMOTE


@task(task_run_name="leave {model.uri} unproved", **REMOTE)
def leave_unproved(model: LoggedModel, proofs: Proofs, request: Request) -> UnprovedModel:
    """Leave the model for a machine that can prove it; retried, since the tracking server is remote."""
    assert request.wanted is not None
    return unproved.leave_unproved(model, proofs, request.asked, request.wanted)


@task(task_run_name="find what waits by the source's pin", **REMOTE)
def find_unproved_wanted(name: str, target: Target, wanted: str) -> UnprovedModel | None:
    """Look for the same that was left before; retried, since the tracking server is remote."""
    return unproved.find_unproved_wanted(name, target, wanted)


@task(task_run_name="find what waits", **REMOTE)
def find_unproved(name: str, target: Target, digests: list[str], asked: str, wanted: str) -> UnprovedModel | None:
    """Look for the same content that was left before; retried, since the tracking server is remote."""
    return unproved.find_unproved(name, target, digests, asked, wanted)
