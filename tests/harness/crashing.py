"""Runs that are stopped in the middle of a stage, on a real server, worker and MLflow, and killed there.

A stage is held by stopping its process (SIGSTOP), so that what is killed is in that stage for certain: the child that
does its work, or the flow's own process where the stage talks to MLflow. Held runs still send heartbeats, but for those
whose own process is stopped.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import pytest
from command_line import children_with
from live_folder import seen
from mlflow import MlflowClient
from mlflow_server import forget_tracking_uri, running_mlflow_server
from places import PROJECT
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, kept_client, running_prefect_server

from slmpack.machine.process_tree import kill_tree

# A worker reports a killed run twice; a retry in between would be Crashed by the second. This is in its log after both.
REPORTED = "prefect.flow_runs.worker - Check whether the flow run exceeded its memory allocation"

Found = TypeVar("Found")


LIMIT_SECONDS = 900.0
# A look at the server costs it and us a hundredth of a second of CPU; a stage may be over within a second.
LOOK_SECONDS, LOOK_FOR_STAGE_SECONDS = 1.0, 0.2
LOOK_FOR_CHILD_SECONDS = 0.05
# What a flow asks of MLflow within `publish` before anything is published.
CLAIMS_VERSION = b"/mlflow/model-versions/create"
DEPLOYMENT = "package-model/package-cpu-int4"
# What works in a stage, where it is a function in a child process.
CHILDREN = {
    "fetch": "slmpack.checkpoint.shapes:",
    "build": "slmpack.build.genai.run_builder:",
    "smoke": "slmpack.prove.smoke:",
    "measure": "slmpack.prove.quality.compare:",
    "validate": "slmpack.prove.validate:",
}
STAGES = ("fetch", "build", "log", "smoke", "measure", "validate", "publish")


@dataclass(frozen=True)
class Site:
    """The servers of a machine and the folder in which its worker lives."""

    folder: Path
    prefect: PrefectServer
    mlflow: str

    def environment(self) -> dict[str, str]:
        """Return the environment of the worker; its flows tell every 30 s that they live."""
        return self.prefect.environment(
            MLFLOW_TRACKING_URI=self.mlflow, OMP_NUM_THREADS="1",
            UV_CACHE_DIR=os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
        )  # fmt: skip

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Yield a site that has everything deployed; this process is a client of both servers."""
    with (
        running_mlflow_server(folder) as mlflow,
        running_prefect_server(folder) as prefect,
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_API_URL: prefect.api}),
    ):
        patch.setenv("MLFLOW_TRACKING_URI", mlflow)
        forget_tracking_uri()
        site = Site(folder, prefect, mlflow)
        subprocess.run([sys.executable, "-m", "flows.deploy"], env=site.environment(), cwd=PROJECT, check=True)
        yield site


def start(site: Site, source: Path, deployment: str = DEPLOYMENT, recipe: str = "small", **more: Any) -> UUID:
    """Start the packaging of a checkpoint with random weights, under its folder's name."""
    parameters = {
        "source": str(source), "name": source.name, "workspace": str(site.workspace),
        "options": {"recipe": recipe, "waive_quality": "random weights, for a test"},
    }  # fmt: skip
    run: Any = run_deployment(deployment, parameters=parameters | more, timeout=0)
    return UUID(str(run.id))


def retry(site: Site, run: UUID) -> None:
    """Do what a person types."""
    command = [sys.executable, "-m", "prefect", "flow-run", "retry", str(run)]
    subprocess.run(command, env=site.environment(), check=True, capture_output=True)


def read(run: UUID) -> FlowRun:
    return kept_client().read_flow_run(run)


def state_of(run: UUID) -> StateType | None:
    return read(run).state_type


def until(find: Callable[[], Found | None], what: str, every_seconds: float = LOOK_SECONDS) -> Found:
    """Return what `find` finds as soon as it finds something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(every_seconds)
    raise AssertionError(f"no {what} after {LIMIT_SECONDS:.0f} s")


def until_state(run: UUID, *states: StateType) -> FlowRun:
    """Wait until the run is in one of the states; one that ends otherwise is told at once."""

    def found() -> FlowRun | None:
        now = read(run)
        assert now.state is not None
        if now.state_type in states:
            return now
        assert not now.state.is_final(), f"{now.name} ended as {now.state}"
        return None

    return until(found, f"{', '.join(states)} of {run}")


def flow_process(run: UUID) -> psutil.Process | None:
    """Return the process that runs the flow: the oldest, since what it has just forked looks like it."""
    found: dict[float, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "prefect.engine" in process.cmdline() and str(run) in str(process.environ()):
                found.setdefault(process.create_time(), process)
    return found[min(found)] if found else None


def until_started(run: UUID) -> psutil.Process:
    """Return the process that runs the flow as soon as there is one; a run that ends before is told at once."""

    def started() -> psutil.Process | None:
        if (found := flow_process(run)) is None:
            state = read(run).state
            assert state is None or not state.is_final(), f"{run} ended before it was found: {state}"
        return found

    return until(started, f"process of {run}")


def hold(run: UUID, stage: str, workspace: Path | None = None) -> psutil.Process:
    """Wait until the run is in the stage and stop what works there; return the flow's process.

    Of `publish` the server says so some time later: a run on a fast machine may be past it by then.

    Args:
        run: a run that was started.
        stage: one of STAGES.
        workspace: the run's own, which tells that it logs.
    """
    flow = until_started(run)

    def works() -> bool:
        if stage in CHILDREN:
            return (child := _child(flow, stage)) is not None and _stopped(child)
        if stage == "log":
            assert workspace is not None
            return bool(seen(workspace, "scratch/log-*")) and _stopped(flow)
        return _is_publishing(run) and _stopped(flow)

    def held() -> psutil.Process | None:
        assert flow.is_running(), f"{run} went past {stage}: {read(run).state}"
        return flow if works() else None

    seconds = LOOK_FOR_CHILD_SECONDS if stage in CHILDREN else LOOK_FOR_STAGE_SECONDS
    return until(held, f"stage {stage} of {run}", seconds)


def _stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        process.suspend()
        return True
    return False


def _child(flow: psutil.Process, stage: str) -> psutil.Process | None:
    return next(iter(children_with(CHILDREN[stage], flow.pid)), None)


def _is_publishing(run: UUID) -> bool:
    tasks = kept_client().read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    return any(task.name.startswith("publish ") and task.state_type == StateType.RUNNING for task in tasks)


def kill(process: psutil.Process) -> list[psutil.Process]:
    """Kill the flow's process alone, as the kernel does with one that takes too much; return what it had started.

    What was held is let go: a child notices that its parent is gone, which a stopped one cannot.
    """
    children: list[psutil.Process] = process.children(recursive=True)
    process.kill()
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.resume()
    return children


def kill_worker(worker: "subprocess.Popen[bytes]") -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()


def kill_machine(worker: "subprocess.Popen[bytes]", *flows: psutil.Process) -> None:
    """Kill a worker and all its flows at once, as a power cut does."""
    for process in (*flows, psutil.Process(worker.pid)):
        kill_tree(process.pid)
    worker.wait()


def let_go(process: psutil.Process) -> None:
    """Have a held run go on."""
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            each.resume()


def versions(name: str) -> list[str]:
    """Return the aliases of each version of the registered model, an entry a version."""
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    return [", ".join(MlflowClient().get_model_version(name, each.version).aliases) for each in found]


def logged(name: str) -> int:
    """Return how many logged models of that name are READY."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("slmpack")
    assert experiment is not None
    found = client.search_logged_models([experiment.experiment_id], f"name = '{name}'")
    return sum(str(each.status) == "READY" for each in found)


def seconds_of(run: UUID, task: str) -> list[float]:
    """Return the run times of the tasks whose names begin so, in the order in which they began."""
    tasks = kept_client().read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    named = sorted((each for each in tasks if each.name.startswith(task)), key=lambda each: str(each.start_time))
    return [each.total_run_time.total_seconds() for each in named]


def until_tasks_ended(run: UUID, task: str, count: int) -> None:
    """Wait until the run had so many tasks whose names begin so; the server hears of tasks by events, which come later.

    Fails where there are more.
    """

    def ended() -> bool:
        tasks = kept_client().read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        named = [each for each in tasks if each.name.startswith(task)]
        assert len(named) <= count, [(each.name, each.state_name) for each in named]
        return len(named) == count

    until(ended, f"{count} tasks {task} of {run}")
