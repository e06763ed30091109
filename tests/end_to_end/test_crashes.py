"""What is killed, cancelled or cut off: the run is found, a retry goes on, nothing is published twice or half."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from counting_proxy import CountingProxy, counting_proxy
from crashing import (
    CLAIMS_VERSION,
    LIMIT_SECONDS,
    REPORTED,
    Site,
    flow_process,
    hold,
    kill,
    kill_machine,
    kill_worker,
    let_go,
    logged,
    retry,
    running_site,
    start,
    state_of,
    until,
    until_state,
    until_tasks_ended,
    versions,
)
from machines import write_variant
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling
from prefect_stack import running_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("crashes")) as site:
        yield site


@pytest.fixture(scope="module")
def proxy(site: Site) -> Iterator[CountingProxy]:
    """Between the worker `machine` and MLflow."""
    with counting_proxy(int(site.mlflow.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def dead(site: Site, proxy: CountingProxy, town_phi3: Path) -> UUID:
    """A run whose machine died while it published, before all others: they work while its silence lasts.

    It is of another deployment, whose one place it keeps for so long.
    """
    source = write_variant(town_phi3, site.folder / "dead", seed=3)
    run = start(site, source, "package-model/package-cpu-int8", recipe="accurate")
    told = {"MLFLOW_TRACKING_URI": proxy.address}
    with (
        running_worker("cpu", site.folder, site.environment() | told, "machine-2") as worker,
        proxy.holding(CLAIMS_VERSION, LIMIT_SECONDS),
    ):
        flow = flow_process(run)
        assert flow is not None
        kill_machine(worker, flow)
    assert state_of(run) == StateType.RUNNING  # nobody is left to say otherwise
    return run


@pytest.fixture(scope="module")
def worker(site: Site, dead: UUID, proxy: CountingProxy) -> "Iterator[subprocess.Popen[bytes]]":
    """The worker of all tests, of which the last kills it."""
    told = {
        "MLFLOW_TRACKING_URI": proxy.address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "SLMPACK_RETRY_SECONDS": "1,2,3",
    }  # fmt: skip
    with running_worker("cpu", site.folder, site.environment() | told, "machine") as worker:
        yield worker


Worker = subprocess.Popen[bytes]


def test_a_killed_flow_is_crashed_at_once_and_its_retry_goes_on(site: Site, worker: Worker, town_phi3: Path) -> None:
    run = start(site, write_variant(town_phi3, site.folder / "killed", seed=1))
    children = kill(hold(run, "measure"))
    until_state(run, StateType.CRASHED)
    _, alive = psutil.wait_procs(children, timeout=600)
    assert (alive, versions_or_none("killed")) == ([], [])
    until(lambda: REPORTED in (site.folder / "machine.log").read_text(), "second report")
    asked = logs_of(site, "smoke")

    retry(site, run)

    until_state(run, StateType.COMPLETED)
    assert (versions("killed"), logged("killed")) == (["cpu-int4"], 1)  # what was logged was not logged again
    until_tasks_ended(run, "smoke", 2)
    assert logs_of(site, "smoke") == asked  # it held before, and was not run again


def test_a_cancelled_build_is_gone_and_nothing_is_published(site: Site, worker: Worker, town_phi3: Path) -> None:
    run = start(site, write_variant(town_phi3, site.folder / "cancelled", seed=2))
    flow = hold(run, "build")  # its child answers to no signal, as one in native code does not
    children = flow.children(recursive=True)
    with get_client(sync_client=True) as client:  # what the dashboard's button does
        client.set_flow_run_state(run, Cancelling())
    _, alive = psutil.wait_procs([flow, *children], timeout=600)
    assert alive == []  # the build is stopped: it did not end by itself
    until_state(run, StateType.CANCELLED)
    assert versions_or_none("cancelled") == []


def test_a_machine_that_dies_is_found_by_its_silence_and_another_goes_on(
    site: Site, dead: UUID, worker: Worker
) -> None:
    until_state(dead, StateType.CRASHED)
    retry(site, dead)
    until_state(dead, StateType.COMPLETED)
    assert (versions("dead"), logged("dead")) == (["cpu-int8"], 1)


def test_an_outage_of_mlflow_while_publishing_costs_a_retry_and_no_second_build(
    site: Site, worker: Worker, proxy: CountingProxy, town_phi3: Path
) -> None:
    run = start(site, write_variant(town_phi3, site.folder / "cut-off", seed=5))
    with proxy.holding(CLAIMS_VERSION, LIMIT_SECONDS):
        proxy.is_down = True
    until_state(run, StateType.FAILED)
    built = logs_of(site, "build")
    proxy.is_down = False

    retry(site, run)

    until_state(run, StateType.COMPLETED)
    assert logs_of(site, "build") == built
    assert (versions("cut-off"), logged("cut-off")) == (["cpu-int4"], 1)
    until_tasks_ended(run, "publish", 2)


@pytest.mark.release
def test_a_flow_whose_worker_is_killed_ends_by_itself_and_its_retry_goes_on(
    site: Site, worker: Worker, town_phi3: Path
) -> None:
    run = start(site, write_variant(town_phi3, site.folder / "orphan", seed=4))
    flow = hold(run, "smoke")
    kill_worker(worker)
    let_go(flow)
    until_state(run, StateType.CRASHED)  # at its next log line, which goes through the worker
    assert versions_or_none("orphan") == []
    with running_worker("cpu", site.folder, site.environment(), "machine-5"):
        retry(site, run)
        until_state(run, StateType.COMPLETED)
    assert (versions("orphan"), logged("orphan")) == (["cpu-int4"], 1)


def logs_of(site: Site, stage: str) -> dict[str, int]:
    """Return when each child of that stage began and wrote last."""
    return {path.name: path.stat().st_mtime_ns for path in (site.workspace / "logs").glob(f"{stage}-*.log")}


def versions_or_none(name: str) -> list[str]:
    known = {model.name for model in MlflowClient().search_registered_models()}
    return versions(name) if name in known else []
