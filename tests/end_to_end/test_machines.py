"""Several machines: one dies in the middle, nothing is lost, nothing is doubled, and all of it loads elsewhere."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from machines import (
    AT_A_TIME,
    NAMES,
    TARGETS,
    TWIN,
    Desk,
    Site,
    ask_elsewhere,
    deploy,
    packaging_in_pools,
    running_site,
    write_variant,
)
from mlflow import MlflowClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.states import Scheduled
from prefect_stack import kept_client, running_worker

from slmpack.machine.process_tree import kill_tree

pytestmark = [pytest.mark.slow, pytest.mark.release]

# By the clock a loaded machine takes several times as long; whoever waits looks every second.
LIMIT_SECONDS = 1800.0
ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        deploy(site)
        yield site


def until(found: Callable[[], Any], what: str) -> Any:
    """Return what `found` finds as soon as it finds something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(1)
    raise AssertionError(f"after {LIMIT_SECONDS:.0f} s: no {what}; the runs are {states()}")


def runs() -> list[FlowRun]:
    """Return the runs that package for one target."""
    return kept_client().read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["package-model"])))


def states() -> "Counter[tuple[str | None, str | None]]":
    return Counter((run.work_pool_name, run.state_name) for run in runs())


def in_state(pool: str, *kinds: StateType) -> list[FlowRun]:
    return [run for run in runs() if run.work_pool_name == pool and run.state_type in kinds]


def retry(run: FlowRun) -> None:
    """Do what the dashboard's button and `prefect flow-run retry` do, which `test_crashes.py` types."""
    kept_client().set_flow_run_state(run.id, Scheduled(message="Retried"), force=True)


def start_twin(site: Site, deployment: str, source: Path) -> None:
    """Package gamma for cpu-int4, on a machine of that deployment's pool; both see the folder, as on a shared disk."""
    parameters = {"source": str(source), "target": "cpu-int4", "name": "gamma", **site.asked}
    run_deployment(f"package-model/{deployment}", parameters=parameters, timeout=0)


def ended(processes: list[Desk]) -> int:
    return sum(process.poll() is not None for process in processes)


def built_on(site: Site, machine: str) -> list[Path]:
    return list((site.folder / machine / ".cache" / "slmpack" / "packages").glob("*"))


def wait_until_in_the_middle(site: Site, dying: "subprocess.Popen[bytes]") -> set[UUID]:
    """Return what runs on the machine that is to die: all runs of its pool, each with its package built there.

    The machine stands still from then on: none of these ends before it dies.
    """
    until(lambda: len(in_state("edge", StateType.RUNNING, *ENDED)) == AT_A_TIME, "start of all runs")
    until(lambda: len(built_on(site, "edge-1")) == AT_A_TIME or in_state("edge", *ENDED), "package of each")
    for process in (psutil.Process(dying.pid), *psutil.Process(dying.pid).children(recursive=True)):
        with suppress(psutil.Error):
            process.suspend()
    return {run.id for run in in_state("edge", StateType.RUNNING)}


def retry_what_crashed() -> set[UUID]:
    """Wait until the automation has found the crashes, then retry each run."""
    until(lambda: len(in_state("edge", *ENDED)) == AT_A_TIME, "crash of each run that was on it")
    crashed = in_state("edge", StateType.CRASHED)
    for run in crashed:
        retry(run)
    return {run.id for run in crashed}


def test_nothing_is_lost_or_doubled_when_a_machine_dies_among_six_runs(site: Site, steady_phi3: Path) -> None:
    sources = [write_variant(steady_phi3, site.folder / name, seed) for seed, name in enumerate(NAMES)]
    shared = write_variant(steady_phi3, site.folder / "gamma", seed=9)
    with running_worker("cpu", site.folder, site.machine("cpu-1"), "cpu-1"), packaging_in_pools(site, sources) as desk:
        with running_worker("edge", site.folder, site.machine("edge-1"), "edge-1") as dying:
            until(lambda: len(runs()) == 4 or ended(desk), "four runs")
            for deployment in ("package-cpu-int4", TWIN):
                start_twin(site, deployment, shared)
            on_it = wait_until_in_the_middle(site, dying)
            kill_tree(dying.pid)
        with running_worker("edge", site.folder, site.machine("edge-2"), "edge-2"):
            crashed = retry_what_crashed()
            until(lambda: all(run.state_type in ENDED for run in runs()), "end of all")
        until(lambda: ended(desk) == len(desk), "end of those who waited for them")

    assert crashed and crashed == on_it
    assert [run.state_name for run in runs()] == ["Completed"] * 6
    every = [f"models:/{name}@{target}" for name in NAMES for target in TARGETS]
    assert aliases_of(site) == sorted([*every, "models:/gamma@cpu-int4"])
    assert set(digests_of(site).values()) == {1}
    assert ask_elsewhere(site, aliases_of(site)) == aliases_of(site)


def aliases_of(site: Site) -> list[str]:
    models = MlflowClient(site.mlflow.address).search_registered_models()
    return sorted(f"models:/{model.name}@{alias}" for model in models for alias in model.aliases)


def digests_of(site: Site) -> "Counter[str]":
    """Return how many versions there are of each digest."""
    found = MlflowClient(site.mlflow.address).search_model_versions()
    return Counter(version.tags["slmpack.digest"] for version in found)
