"""Dispatch: a target in a run of its own, started by its deployment on some worker of its pool, and waited for.

What no machine of that pool could prove is verified by another run, in the pool of its hardware.

This is the one place that talks to Prefect's API about other runs. A run is started once: a parent that is retried
finds what it started before, and starts anew only what did not end well.
"""

import time
from itertools import count
from typing import Any
from uuid import UUID

from prefect import get_client, runtime, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from slmpack.errors import UsageError
from slmpack.machine.waits import no_worker_seconds
from slmpack.publish.outcome import failed_outcome, lost_outcome
from slmpack.records import Target
from slmpack.reports import Outcome
from tasks.outcome import read_outcome
from tasks.policies import LOCAL, REMOTE

POLL_SECONDS = 2.0
REFUSALS = (409, 422)  # of parameters that the deployment's schema does not have


def deployment_of(target: Target) -> str:
    """Return the name of the deployment that packages for `target`, as prefect.yaml has it."""
    return f"package-model/package-{target}"


def verifier_of(target: Target) -> str:
    """Return the name of the deployment that verifies where the target's hardware is, as prefect.yaml has it."""
    return f"verify-model/verify-{target.provider}"


@task(task_run_name="start {target}", **REMOTE)
def start_target(target: Target, parameters: dict[str, Any]) -> UUID:
    """Start the run, or find the one that this parent started before; retried, since the server is remote.

    Raises:
        UsageError: the target has no deployment.
    """
    return _start(deployment_of(target), {"target": str(target), **parameters}, str(target))


@task(task_run_name="start verifying {model_uri}", **REMOTE)
def start_verifying(target: Target, model_uri: str, parameters: dict[str, Any]) -> UUID:
    """Start the verification of a logged model where the target's hardware is; as `start_target`.

    Raises:
        UsageError: there is no deployment for it.
    """
    return _start(verifier_of(target), {"model_uri": model_uri, **parameters}, model_uri)


def _start(deployment: str, parameters: dict[str, Any], key: str) -> UUID:
    parent = str(runtime.flow_run.id)
    try:
        for attempt in count():
            run: Any = run_deployment(
                deployment, parameters=parameters, timeout=0, idempotency_key=f"{parent}-{key}-{attempt}"
            )
            if not _ended_badly(run):
                return UUID(str(run.id))
    except ObjectNotFound as error:
        raise UsageError(
            f"there is no deployment {deployment}", "one for each target of a run in pools", "type: make deploy"
        ) from error
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in REFUSALS:
            raise
        raise UsageError(
            f"the deployment {deployment} refuses the parameters: {error.response.text[:300]}",
            "a deployment of this version",
            "type: make deploy",
        ) from error
    raise AssertionError("count() does not end")


def _ended_badly(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final() and not run.state.is_completed()


@task(task_run_name="wait for {target}", **LOCAL)
def await_target(target: Target, run_id: UUID) -> Outcome:
    """Wait until the run ends in any state, and return the target's outcome.

    Where no worker takes the run for `no_worker_seconds` (slmpack.waits), it is cancelled.
    """
    patience_seconds = no_worker_seconds()
    without_worker_since: float | None = None
    with get_client(sync_client=True) as client:
        while True:
            run = client.read_flow_run(run_id)
            if run.state is not None and run.state.is_final():
                return _outcome_of(target, run)
            if not _lacks_worker(client, run):
                without_worker_since = None
            elif without_worker_since is None:
                without_worker_since = time.monotonic()
            elif time.monotonic() - without_worker_since > patience_seconds:
                return _give_up(client, target, run, patience_seconds)
            time.sleep(POLL_SECONDS)


def _outcome_of(target: Target, run: FlowRun) -> Outcome:
    outcome = read_outcome(run.id)
    state = run.state
    assert state is not None
    if outcome is not None and (state.is_completed() or outcome.reason is not None):
        return outcome
    return lost_outcome(target, f"its run {run.name} ended {state.name}: {state.message or 'without a message'}")


def _lacks_worker(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether the run waits and no worker polls its pool."""
    if run.state is None or not run.state.is_scheduled() or run.work_pool_name is None:
        return False
    return client.read_work_pool(run.work_pool_name).status == WorkPoolStatus.NOT_READY


def _give_up(client: SyncPrefectClient, target: Target, run: FlowRun, waited_seconds: float) -> Outcome:
    """Cancel a run that nobody takes, so that it does not start when nobody expects it any more."""
    client.set_flow_run_state(run.id, Cancelled(message="no worker took it"), force=True)
    pool = run.work_pool_name
    return failed_outcome(
        target,
        UsageError(
            f"the pool {pool} had no worker for {waited_seconds / 60:.0f} minutes",
            "a worker that polls it",
            f"type on a machine with that hardware: prefect worker start --pool {pool}",
        ),
    )


def cancel_started(parent_id: UUID) -> None:
    """Cancel what a parent started and what has not ended: nobody waits for it any more."""
    started = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent_id]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=started):
            if run.state is not None and not run.state.is_final():
                client.set_flow_run_state(run.id, Cancelling(message="the run that started it was cancelled"))
