"""Watch: find new sources in the registry, announce them to Prefect, tag them."""

from typing import Any
from uuid import UUID, uuid5

from prefect import runtime, task
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.exceptions import PrefectHTTPStatusError

from slmpack.errors import SlmpackError, UsageError
from slmpack.log import mlflow_server
from slmpack.publish import watch
from slmpack.publish.watch import SourceVersion
from tasks.lasting_server import has_lasting_server
from tasks.policies import REMOTE

EVENT = "slmpack.source.version"


def may_be_outage(_task: object, _run: object, state: Any) -> bool:
    """Tell an MLflow that cannot be reached, which may be back in a minute, from an address that is missing."""
    return not isinstance(state.result(raise_on_failure=False), UsageError)


@task(**REMOTE | {"retry_condition_fn": may_be_outage})
def await_registry() -> None:
    """Wait for MLflow for most of a minute: unlike somebody at a keyboard, a poll need not fail at once."""
    mlflow_server.require_registry(shared=runtime.deployment.id is not None)


@task(**REMOTE)
def find_watched(names: list[str]) -> list[str]:
    """Find out which models to look at; retried, since the registry is remote."""
    return watch.find_watched(names)


@task(task_run_name="look at {name}", **REMOTE)
def find_new_version(name: str) -> SourceVersion | None:
    """Look for a source that was not announced; retried, since the registry is remote."""
    return watch.find_new_version(name)


@task(task_run_name="announce {found.source}", **REMOTE)
def announce_version(found: SourceVersion) -> None:
    """Send the event and wait for the answer; `prefect.events.emit_event` returns before anything is sent.

    Raises:
        UsageError: there is no Prefect server that would act on it.
        SlmpackError: the server refuses the event.
    """
    if not has_lasting_server():
        raise UsageError("only Prefect's temporary server, which acts on no event", "a server", "set PREFECT_API_URL")
    event = event_of(found, UUID(runtime.flow_run.id))
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except PrefectHTTPStatusError as error:
        if error.response.is_server_error:
            raise
        refusal = f"{error.response.status_code} {error.response.text[:200]}"
        raise SlmpackError(f"Prefect refused the event about {found.source}: {refusal}", "", "ask its operator") from (
            error
        )


def event_of(found: SourceVersion, flow_run: UUID) -> Event:
    """Describe the version as Prefect's automations take it.

    The event has the same id however often a run sends it: a server that took it, but whose answer was lost, acts once.
    """
    return Event(
        event=EVENT,
        id=uuid5(flow_run, found.source),
        resource={"prefect.resource.id": f"slmpack.source.{found.name}", "prefect.resource.name": found.name},
        related=[{"prefect.resource.id": f"prefect.flow-run.{flow_run}", "prefect.resource.role": "flow-run"}],
        payload={"source": found.source, "name": found.name, "version": found.version},
    )


@task(task_run_name="tag {found.source}", **REMOTE)
def mark_announced(found: SourceVersion) -> None:
    """Tag the version, so that the next poll leaves it alone; retried, since the registry is remote."""
    watch.mark_announced(found)
