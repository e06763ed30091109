"""Dispatch: a target for GPUs is built in one pool and verified in another, and nobody waits for what cannot come."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crashing import hold, until
from mlflow_server import running_mlflow_server
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from prefect_stack import PrefectServer, running_prefect_server, running_worker

from slmpack.machine.hardware import unprovable_error
from slmpack.records import Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unprovable_error(Target.CUDA_FP16) is None, reason="this machine has a GPU to prove it on"),
]

LIMIT_SECONDS = 900.0
WITHOUT_WORKER_SECONDS = 8.0
PACKAGE = """
import json, sys
from flows.package_targets import package_targets
asked = json.loads(sys.argv[1])
outcomes = package_targets(**asked, dispatch="pools", return_state=True).result(raise_on_failure=False)
print(json.dumps([outcome.model_dump(mode="json") for outcome in outcomes]))
"""


@dataclass(frozen=True)
class Site:
    """Both servers, deployed to, and a folder that every machine of the test sees."""

    prefect: PrefectServer
    folder: Path
    mlflow: str
    source: Path

    def machine(self, name: str) -> dict[str, str]:
        return self.prefect.environment(MLFLOW_TRACKING_URI=self.mlflow, HOME=str(self.folder / name))

    def package(self, patience: float) -> list[dict[str, Any]]:
        """Package the source for CUDA in pools, on a machine that has neither worker nor GPU."""
        asked = {
            "source": str(self.source), "targets": ["cuda-fp16"], "workspace": str(self.folder / "desk-workspace"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PACKAGE, json.dumps(asked)], cwd=self.folder,
            env=self.machine("desk") | {"SLMPACK_NO_WORKER_SECONDS": str(patience)},
            capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS,
        )  # fmt: skip
        outcomes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return outcomes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, town_phi3: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with running_prefect_server(folder) as prefect, running_mlflow_server(folder) as mlflow:
        site = Site(prefect, folder, mlflow, town_phi3)
        (folder / "desk").mkdir()
        command = [sys.executable, "-m", "flows.deploy"]
        subprocess.run(command, env=site.machine("desk"), cwd=folder, check=True, capture_output=True)
        with (
            temporary_settings({PREFECT_API_URL: prefect.api}),
            running_worker("cpu", folder, site.machine("cpu-1"), "cpu-1"),
        ):
            until(is_polled, "worker of the pool cpu, for which nobody here waits as long as a busy machine starts it")
            yield site


def is_polled() -> bool:
    with get_client(sync_client=True) as client:
        return client.read_work_pool("cpu").status == WorkPoolStatus.READY


@pytest.fixture
def client(site: Site) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def runs_of(client: SyncPrefectClient, flow: str) -> list[FlowRun]:
    """Return the runs of a flow's deployments, the first to be made first."""
    flows = {each.id for each in client.read_flows() if each.name == flow}
    found = [run for run in client.read_flow_runs() if run.flow_id in flows]
    return sorted(found, key=lambda run: str(run.created))


def test_what_no_worker_can_verify_stays_unproved_and_its_run_is_cancelled(
    site: Site, client: SyncPrefectClient
) -> None:
    (outcome,) = site.package(patience=WITHOUT_WORKER_SECONDS)
    assert (outcome["status"], outcome["version"]) == ("unproved", None)
    assert "slmpack verify models:/m-" in outcome["reason"]
    assert "verifying it failed: the pool cuda had no worker" in outcome["reason"]
    assert "prefect worker start --pool cuda" in outcome["reason"]
    (built,) = runs_of(client, "package-model")
    assert (built.work_pool_name, str(built.state and built.state.message)) == ("cpu", "cuda-fp16: unproved")
    (verifying,) = runs_of(client, "verify-model")
    assert (verifying.work_pool_name, verifying.state_type) == ("cuda", StateType.CANCELLED)
    assert verifying.parameters["model_uri"] == outcome["model_uri"]


@pytest.mark.release
def test_a_worker_of_the_pool_that_has_no_gpu_says_so_and_the_model_waits_on(
    site: Site, client: SyncPrefectClient
) -> None:
    with running_worker("cuda", site.folder, site.machine("cuda-1"), "cuda-1"):
        (outcome,) = site.package(patience=LIMIT_SECONDS)
    assert outcome["status"] == "unproved"
    assert "verifying it failed: " in outcome["reason"]
    assert "target cuda-fp16 cannot be proved here: this machine has no usable GPU" in outcome["reason"]
    verifying = runs_of(client, "verify-model")[-1]
    assert verifying.state_type == StateType.FAILED
    assert not (site.folder / "cuda-1" / ".cache" / "slmpack" / "packages").exists()


def test_who_cancels_the_run_for_all_targets_cancels_what_it_started(site: Site, client: SyncPrefectClient) -> None:
    parameters = {"source": str(site.source), "targets": ["cpu-int8"], "dispatch": "pools", "name": "cancelled"}
    parent: Any = run_deployment("package-targets/package-all", parameters=parameters, timeout=0)

    def child() -> FlowRun | None:
        return next(
            (run for run in runs_of(client, "package-model") if run.parameters.get("name") == "cancelled"), None
        )

    hold(until(child, "child").id, "build")  # so that it does not end before the cancellation reaches it
    client.set_flow_run_state(parent.id, Cancelling())
    until(lambda: client.read_flow_run(parent.id).state_type == StateType.CANCELLED, "end of the parent")
    until(lambda: (found := child()) and found.state_type == StateType.CANCELLED, "end of the child")
