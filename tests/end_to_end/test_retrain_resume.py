"""A retraining that is killed or cancelled while it trains, on real servers: a retry goes on, and one version comes."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from uuid import UUID

import psutil
import pytest
from command_line import children_with
from crashing import (
    LOOK_FOR_CHILD_SECONDS,
    REPORTED,
    Site,
    read,
    retry,
    running_site,
    until,
    until_started,
    until_state,
    versions,
)
from invented_town import chats, write_chats
from live_folder import seen
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelling
from prefect_stack import running_worker

from slmpack.machine.process_tree import kill_tree
from slmpack.retrain.training.train import read_training

pytestmark = [pytest.mark.slow, pytest.mark.release]

STEPS = 104  # 8 times 204 chats, 16 at a time
STANDING_SECONDS = 0.5
TRAINING = {"epochs": 8, "rank": 8, "learning_rate": 5e-3, "batch_size": 16, "max_length": 128, "save_minutes": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("retraining")
    with running_site(folder) as site:
        yield site
    rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def worker(site: Site) -> "Iterator[subprocess.Popen[bytes]]":
    with running_worker("cpu", site.folder, site.environment(), "machine") as worker:
        yield worker


def start(site: Site, name: str, base: Path, seed: int) -> UUID:
    """Start a retraining that writes a checkpoint after every step; another seed is another training."""
    data = write_chats(site.folder / "town.jsonl", chats())
    run = run_deployment(
        "retrain-model/retrain",
        parameters={
            "data": str(data), "base": str(base), "name": name, "training": TRAINING | {"seed": seed},
            "retrain_policy": {"min_gain": 0.0, "max_forgetting": 100.0}, "targets": ["cpu-int4"],
            "options": {"recipe": "small", "waive_quality": "random weights, for a test"},
            "workspace": str(site.workspace),
        },
        timeout=0,
    )  # fmt: skip
    return UUID(str(run.id))  # type: ignore[union-attr]


def mlflow_runs(name: str) -> list[Run]:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("slmpack")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in found if run.info.run_name == f"retrain {name}"]


def steps_told(name: str) -> list[int]:
    """Return the steps of the loss curve in MLflow, as it has them."""
    (run,) = mlflow_runs(name)
    return [point.step for point in MlflowClient().get_metric_history(run.info.run_id, "train_loss")]


def until_it_trains(site: Site, run: UUID, name: str) -> psutil.Process:
    """Wait until a checkpoint is whole and MLflow has the first steps; return the flow's process.

    MLflow has them after some seconds, in which a fast machine would have trained to the end: from the first checkpoint
    on the training stands still but for a few steps between two looks, and when this returns.
    """
    flow = until_started(run)

    def trains() -> bool:
        now = read(run).state
        assert now is not None
        assert not now.is_final(), now
        if not seen(site.workspace, "training/*/checkpoint-*/whole"):
            return False
        (training,) = children_with("run_training", flow.pid)
        training.suspend()
        time.sleep(STANDING_SECONDS)
        if mlflow_runs(name) != [] and steps_told(name) != []:
            return True
        training.resume()
        return False

    until(trains, "checkpoint", LOOK_FOR_CHILD_SECONDS)
    return flow


def test_a_retraining_that_is_killed_goes_on_when_it_is_retried(
    site: Site, worker: "subprocess.Popen[bytes]", town_phi3: Path
) -> None:
    run = start(site, "killed", town_phi3, seed=0)
    kill_tree(until_it_trains(site, run, "killed").pid)  # and its child: all at once, as a power cut does
    until_state(run, StateType.CRASHED)
    until(lambda: REPORTED in (site.folder / "machine.log").read_text(), "second report")
    assert 0 < len(steps_told("killed")) < STEPS
    assert list(site.workspace.glob("tunings/*")) == []

    retry(site, run)

    ended = until_state(run, StateType.COMPLETED)
    assert ended.state is not None
    assert str(ended.state.message).startswith("published: killed version 1")
    (tuned,) = site.workspace.glob("tunings/*")
    training = read_training(tuned)
    assert training.resumed_at is not None
    assert 0 < training.resumed_at < STEPS
    assert sorted(steps_told("killed")) == [point.step for point in training.curve] == list(range(1, STEPS + 1))
    assert [each.info.status for each in mlflow_runs("killed")] == ["FINISHED"]
    assert sorted(versions("killed")) == ["cpu-int4", "tuned"]
    assert list(site.workspace.glob("training/*")) == []


def test_a_retraining_that_is_cancelled_closes_its_run(
    site: Site, worker: "subprocess.Popen[bytes]", town_phi3: Path
) -> None:
    run = start(site, "cancelled", town_phi3, seed=1)
    flow = until_it_trains(site, run, "cancelled")
    children = flow.children(recursive=True)
    with get_client(sync_client=True) as client:  # what the dashboard's button does
        client.set_flow_run_state(run, Cancelling())
    until_state(run, StateType.CANCELLED)
    _, alive = psutil.wait_procs([flow, *children], timeout=600)
    assert alive == []
    assert [each.info.status for each in mlflow_runs("cancelled")] == ["KILLED"]
    assert versions("cancelled") == []
