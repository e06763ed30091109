"""Deploy everything: the work pools, what prefect.yaml has, and the automation that finds lost runs.

`python -m flows.deploy`, or `make deploy`. Doing it again changes nothing but what was changed here.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from flows.forms import form_of
from slmpack.errors import SlmpackError, UsageError

PREFECT_YAML = Path(__file__).parents[1] / "prefect.yaml"
POOLS = {
    "cpu": "Machines that build and prove for CPUs.",
    "cuda": "Machines with an NVIDIA GPU; without a worker until one is started: prefect worker start --pool cuda.",
}
LOST_SECONDS = 90  # three beats: prefect.yaml has a run send one every 30 s
STUCK_SECONDS = 900  # an image that is pulled takes minutes
RUN = "prefect.flow-run"
# A suspended run has no process that could send a heartbeat.
ENDS = {f"{RUN}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}


def _crashed_without(name: str, description: str, message: str, seconds: int, **events: set[str]) -> AutomationCore:
    """Describe an automation: `after` one event `expect` another in time, or the run is Crashed.

    Only runs of deployments with the tag `slmpack` are meant: others may beat less often, and are not ours to end.
    """
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": [f"{RUN}.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.id": ["prefect.tag.slmpack"], "prefect.resource.role": ["tag"]}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
            **events,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


LOST_RUNS = _crashed_without(
    "slmpack: lost runs are Crashed",
    "A run whose machine or worker died sends no heartbeat; it would stay Running for ever.",
    f"No heartbeat for {LOST_SECONDS} s: its machine or its process is gone. Retry it to go on.",
    LOST_SECONDS,
    after={f"{RUN}.heartbeat", f"{RUN}.Running"},  # it may die before its first beat
    expect={f"{RUN}.heartbeat", *ENDS},
)
STUCK_RUNS = _crashed_without(
    "slmpack: runs that do not begin are Crashed",
    "A worker that died after it took a run leaves it Pending for ever.",
    f"Pending for {STUCK_SECONDS} s: the worker that took it is gone. Retry it to go on.",
    STUCK_SECONDS,
    after={f"{RUN}.Pending"},
    expect={f"{RUN}.Running", *ENDS},
)


def deploy() -> None:
    """Create or update everything on the server that Prefect's settings name.

    Raises:
        SlmpackError: there is no server, it does not answer, or it refuses a deployment.
    """
    api = _server()
    try:
        with get_client(sync_client=True) as client:
            _create_pools(client)
            for automation in (LOST_RUNS, STUCK_RUNS):
                _install(client, automation)
            are_on = _schedules_that_are_on(client)
            _deploy_file()
            _switch_on(client, are_on)
            _shape_forms(client)
    except PrefectHTTPStatusError as error:
        answer = f"{error.response.status_code} {error.response.text[:200]}"
        raise SlmpackError(f"the Prefect server at {api} answered {answer}", "", "see PREFECT_API_AUTH_STRING") from (
            error
        )
    except (httpx.HTTPError, RuntimeError) as error:  # Prefect's client wraps some in a RuntimeError
        raise SlmpackError(
            f"no Prefect server answers at {api} ({type(error).__name__})", "a running one", "type: make stack"
        ) from error


def _server() -> str:
    """Return the address of the server; Prefect's temporary one would forget all of it."""
    api = get_current_settings().api.url
    if api is None:
        raise UsageError(
            "PREFECT_API_URL is not set",
            "the address of a Prefect server, such as http://127.0.0.1:4200/api",
            "set it, or type: make stack",
        )
    if not PREFECT_YAML.exists():
        raise UsageError("no prefect.yaml beside the flows", "a checkout of slmpack", "deploy from one")
    return str(api)


def _create_pools(client: SyncPrefectClient) -> None:
    existing = {pool.name for pool in client.read_work_pools(limit=200)}
    for name in POOLS.keys() - existing:
        client.create_work_pool(WorkPoolCreate(name=name, description=POOLS[name], type="process"))


def _install(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create the automation, or bring the one of its name up to date; there is never a second copy.

    An automation that is up to date is not touched: an update makes the server forget the runs it waits for.
    """
    same = client.read_automations_by_name(automation.name)
    if not same:
        client.create_automation(automation)
    elif AutomationCore.model_validate(same[0].model_dump(exclude={"id"})) != automation:
        client.update_automation(same[0].id, automation)
    for copy in same[1:]:
        client.delete_automation(copy.id)


def _deploy_file() -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", PREFECT_YAML.name]
    done = subprocess.run(
        command, cwd=PREFECT_YAML.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stdout.splitlines()
        said = next((line for line in reversed(lines) if "Error" in line), " ".join(done.stdout.split())[-600:])
        raise SlmpackError(f"`prefect deploy` refused prefect.yaml: {said}", "", "correct it and deploy again")


def _ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["slmpack"])), limit=200
    )


def _shape_forms(client: SyncPrefectClient) -> None:
    """Have each deployment offer what it is for, and the server refuse the rest."""
    for deployment in _ours(client):
        changed = {"parameter_openapi_schema": form_of(deployment)}
        client.request("PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json=changed)


def _schedules_that_are_on(client: SyncPrefectClient) -> set[UUID]:
    return {schedule.id for deployment in _ours(client) for schedule in deployment.schedules if schedule.active}


def _switch_on(client: SyncPrefectClient, schedules: set[UUID]) -> None:
    """Leave on what somebody switched on: `prefect deploy` makes every schedule what prefect.yaml says."""
    for deployment in _ours(client):
        for schedule in deployment.schedules:
            if schedule.id in schedules and not schedule.active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def next_steps() -> str:
    """Return what to type next."""
    dashboard = get_current_settings().ui_url
    return f"""\
deployed to {dashboard}/deployments
on each machine, start a worker:  MLFLOW_TRACKING_URI=... prefect worker start --pool cpu    (or cuda, with a GPU)
package the built-in model:       prefect deployment run package-model/package-cpu-int4
package Phi-3 for all targets:    prefect deployment run package-targets/package-all \
-p source=hf://microsoft/Phi-3-mini-4k-instruct
or choose in the dashboard:       a deployment, Run, Custom run
"""


def main() -> int:
    """Deploy and tell; an expected failure is one line on stderr."""
    try:
        deploy()
        sys.stdout.write(next_steps())
    except SlmpackError as error:
        sys.stderr.write(f"slmpack: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
