"""Retraining on a real server with a worker: by a schedule whose polls see what is new, and in pools."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crashing import Site, hold, let_go, read, running_site, until, until_state
from invented_town import ASKED, chats, write_chats
from logged_chats import log_chats
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.states import Cancelling
from prefect_stack import running_worker

from slmpack.retrain.evaluate import RetrainPolicy
from slmpack.retrain.training.settings import TrainSettings

pytestmark = pytest.mark.slow

DEPLOYMENT = "retrain-model/retrain"
POLL_SECONDS = 15
HALF = len(ASKED) // 2
FAST = TrainSettings(epochs=2, rank=8, learning_rate=5e-3, batch_size=16, max_length=128)
EASY = RetrainPolicy(min_gain=0.02, max_forgetting=100.0)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("retrain")
    with running_site(folder) as site, running_worker("cpu", folder, site.environment(), "machine"):
        yield site


@pytest.fixture
def client(site: Site) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def asked(site: Site, base: Path, data: Path | str, name: str, **others: Any) -> dict[str, Any]:
    """Return the parameters of a retraining that takes seconds."""
    return {
        "data": str(data), "base": str(base), "name": name, "workspace": str(site.workspace),
        "training": FAST.model_dump(), "retrain_policy": EASY.model_dump(),
        "options": {"recipe": "small", "waive_quality": "random weights, for a test"},
    } | others  # fmt: skip


def start(**parameters: Any) -> UUID:
    """Start a retraining as somebody does who fills in the form."""
    run: Any = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0)
    return UUID(str(run.id))


@contextmanager
def polling(client: SyncPrefectClient, parameters: dict[str, Any]) -> Iterator[UUID]:
    """Give the deployment its parameters and switch its polls on, only more of them; yield the deployment's id."""
    deployment = client.read_deployment_by_name(DEPLOYMENT)
    client.update_deployment(deployment.id, DeploymentUpdate(parameters=deployment.parameters | parameters))
    (poll,) = (each for each in deployment.schedules if each.slug == "every-ten-minutes")
    often = IntervalSchedule(interval=timedelta(seconds=POLL_SECONDS))
    client.update_deployment_schedule(deployment.id, poll.id, active=True, schedule=often)
    try:
        yield deployment.id
    finally:
        client.update_deployment_schedule(deployment.id, poll.id, active=False)
        until(lambda: not at_work(client, deployment.id), "end of the last poll, which would keep others out")


def all_of(client: SyncPrefectClient, deployment_id: UUID, *without: StateType) -> list[FlowRun]:
    """Return all runs of a deployment but those in some states.

    A slow machine has more of polls that were cancelled than the server tells at once. Of those that are to come there
    are a hundred: a third of the server's time went into telling them every second.
    """
    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    states = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(without))))
    found: dict[UUID, FlowRun] = {}
    while page := client.read_flow_runs(
        flow_run_filter=states, deployment_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_ASC, offset=len(found)
    ):
        if all(run.id in found for run in page):
            break
        found |= {run.id: run for run in page}
    return list(found.values())


def at_work(client: SyncPrefectClient, deployment_id: UUID) -> list[FlowRun]:
    """Return the deployment's runs that have not ended."""
    runs = all_of(client, deployment_id)
    return [run for run in runs if run.state is not None and not run.state.is_final()]


def runs_of(client: SyncPrefectClient, deployment_id: UUID) -> list[FlowRun]:
    """Return the deployment's runs that began, the first to begin first.

    A poll that was cancelled since another one had its place has a time of beginning as well, and on a slow machine an
    earlier one: the run in that place is still starting its process.
    """
    runs = all_of(client, deployment_id, StateType.SCHEDULED, StateType.CANCELLED)
    return sorted((run for run in runs if run.start_time is not None), key=lambda run: str(run.start_time))


def told_by(client: SyncPrefectClient, deployment_id: UUID) -> list[str]:
    """Return how each poll that was not cancelled ended; one that failed is told at once."""
    ended = [run.state for run in runs_of(client, deployment_id) if run.state and run.state.is_final()]
    assert not [state.message for state in ended if state.is_failed() or state.is_crashed()]
    return [str(state.message) for state in ended if state.is_completed()]


def begins(told: list[str], words: str) -> bool:
    return any(each.startswith(words) for each in told)


def cancelled(client: SyncPrefectClient, deployment_id: UUID) -> set[str]:
    """Return why runs of the deployment were cancelled."""
    states = [run.state for run in all_of(client, deployment_id, StateType.SCHEDULED)]
    return {str(state.message) for state in states if state and state.is_cancelled()}


def below(client: SyncPrefectClient, run: UUID) -> list[FlowRun]:
    """Return the runs that a run started, and those that these started."""
    chosen = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    found = client.read_flow_runs(flow_run_filter=chosen)
    return found + [each for child in found for each in below(client, child.id)]


def in_the_pool(client: SyncPrefectClient, run: UUID) -> FlowRun | None:
    """Return the run below it that a worker took."""
    return next((each for each in below(client, run) if each.work_pool_name and each.start_time), None)


def test_polls_train_on_what_is_new_and_on_nothing_twice(
    site: Site, client: SyncPrefectClient, town_phi3: Path
) -> None:
    data = site.folder / "chats"
    data.mkdir()
    write_chats(data / "monday.jsonl", chats(ASKED[:HALF]))
    with polling(client, parameters := asked(site, town_phi3, data, "town")) as deployment:
        polls = until(lambda: runs_of(client, deployment), "poll that began")
        flow = hold(polls[0].id, "build")  # it does not end before the other one has come
        by_hand = start(**parameters)
        why = until_state(by_hand, StateType.CANCELLED).state
        assert why is not None and why.message == "Deployment concurrency limit reached."
        let_go(flow)
        first, then, *_ = until(lambda: found if len(found := told_by(client, deployment)) > 1 else None, "two polls")
        assert first.startswith("published: town version 1; perplexity held out")
        assert then.startswith("unchanged: town version 1")

        write_chats(data / ".tuesday.jsonl", chats(ASKED[HALF:])).rename(data / "tuesday.jsonl")

        # Not the last to have ended: the poll after it may end between two looks.
        until(lambda: begins(told_by(client, deployment), "published: town version 3"), "poll that trained")
        until(lambda: begins(told_by(client, deployment), "unchanged: town version 3"), "poll after it")
        told = told_by(client, deployment)
    assert [each for each in told if each.startswith("published")] == [told[0], next(
        each for each in told if each.startswith("published: town version 3")
    )]  # fmt: skip
    assert cancelled(client, deployment) == {"Deployment concurrency limit reached."}
    found = MlflowClient().search_model_versions("name = 'town'")
    assert sorted(int(version.version) for version in found) == [1, 2, 3, 4]


@pytest.mark.release
def test_in_pools_workers_package_what_was_trained(site: Site, client: SyncPrefectClient, town_phi3: Path) -> None:
    file = write_chats(site.folder / "help-desk.jsonl", chats())
    log_chats(file, "help desk")
    file.unlink()

    run = start(**asked(site, town_phi3, "datasets:/help desk", "in-pools", dispatch="pools"))

    state = until_state(run, StateType.COMPLETED).state
    assert state is not None and str(state.message).startswith("published: in-pools version 1")
    version = MlflowClient().get_model_version("in-pools", "1")
    assert version.tags["slmpack.data"] == "help desk"
    packaged = in_the_pool(client, run)
    assert packaged is not None and packaged.state is not None
    assert (packaged.parameters["source"], packaged.parameters["target"]) == (version.source, "cpu-int4")
    assert str(packaged.state.message).startswith("published: in-pools version 2, alias cpu-int4")
    package = MlflowClient().get_model_version_by_alias("in-pools", "cpu-int4")
    assert package.tags["slmpack.source"] == version.source


@pytest.mark.release
def test_who_cancels_a_retraining_cancels_what_it_started_in_pools(
    site: Site, client: SyncPrefectClient, town_phi3: Path
) -> None:
    file = write_chats(site.folder / "to-cancel.jsonl", chats())
    run = start(**asked(site, town_phi3, file, "cancelled", dispatch="pools", targets=["cpu-int8"]))

    def works() -> FlowRun | None:
        assert not (state := read(run).state) or not state.is_final(), state
        found = in_the_pool(client, run)
        return found if found and found.state_type == StateType.RUNNING else None

    hold(until(works, "package that is built").id, "build")  # so that it does not end before it is cancelled
    client.set_flow_run_state(run, Cancelling())
    until_state(run, StateType.CANCELLED)
    until(lambda: {each.state_type for each in below(client, run)} == {StateType.CANCELLED}, "end of what it started")
    assert dict(MlflowClient().get_registered_model("cancelled").aliases) == {"tuned": "1"}
