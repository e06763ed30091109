"""`make stack`: the dashboards, the deployments and a worker with one command, and nothing left after Ctrl-C."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import environment
from mlflow_server import free_port
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.stack import HOST, end_marked
from slmpack.machine.process_tree import kill_tree
from slmpack.telemetry import SWITCHES

pytestmark = pytest.mark.slow

START_SECONDS = 900
END_SECONDS = 600


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a home and a Prefect of its own; what runs in it is known by it."""
    given = environment(HOME=str(tmp_path), PREFECT_HOME=str(tmp_path / ".prefect"))
    return {name: value for name, value in given.items() if name not in SWITCHES}  # a person has set none of them


@contextmanager
def stack(folder: Path, home: dict[str, str], *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start it as a terminal would: in a session of its own, with its output in `folder`/stack.log."""
    with (folder / "stack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.stack", *options],
            cwd=folder, env=home, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            for left in (process.pid, *(other.pid for other in running_in(home))):
                kill_tree(left)
            process.wait()


def running_in(home: dict[str, str]) -> list[psutil.Process]:
    """Return the processes whose environment has this Prefect home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == home["PREFECT_HOME"]:
                found.append(process)
    return found


def command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def is_silent(process: psutil.Process) -> bool:
    """Tell whether a process was started with all that keeps it from sending anything home; one that ended was."""
    try:
        return bool(SWITCHES.items() <= process.environ().items())
    except psutil.Error:
        return True


def until(found: Callable[[], Any], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not found():
        assert time.monotonic() < deadline, (folder / "stack.log").read_text()[-3000:]
        time.sleep(0.5)


def test_one_command_starts_everything_and_an_interrupt_ends_it_in_the_middle_of_a_run(
    tmp_path: Path, home: dict[str, str], town_phi3: Path
) -> None:
    mlflow_port, prefect_port = free_port(), free_port()
    options = ("--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port))
    with (
        stack(tmp_path, home, *options) as process,
        temporary_settings({PREFECT_API_URL: f"http://{HOST}:{prefect_port}/api"}),
        get_client(sync_client=True) as client,
    ):
        until(lambda: "Worker 'stack' started" in (tmp_path / "stack.log").read_text(), tmp_path)
        said = (tmp_path / "stack.log").read_text()
        assert f"MLflow:  http://{HOST}:{mlflow_port}" in said
        assert f"Prefect: http://{HOST}:{prefect_port}" in said
        assert {"package-cpu-int4", "package-all", "verify-cpu"} <= {each.name for each in client.read_deployments()}
        run: Any = run_deployment("package-model/package-cpu-int4", parameters={"source": str(town_phi3)}, timeout=0)
        until(lambda: client.read_flow_run(run.id).state_type == StateType.RUNNING, tmp_path)
        first = psutil.Process(
            process.pid
        ).cmdline()  # Honcho's own are forks of it, and start each with an environment
        assert [told for each in running_in(home) if (told := command_of(each)) != first and not is_silent(each)] == []

        process.send_signal(signal.SIGINT)
        assert process.wait(END_SECONDS) == 0
        _, left = psutil.wait_procs(running_in(home), END_SECONDS)  # one that was killed may not be gone at once
        assert left == []


@pytest.mark.parametrize(("option", "variable"), [("--mlflow-port", "MLFLOW_PORT"), ("--prefect-port", "PREFECT_PORT")])
def test_a_port_that_is_taken_is_told_in_one_line(
    tmp_path: Path, home: dict[str, str], option: str, variable: str
) -> None:
    free = {"--mlflow-port": str(free_port()), "--prefect-port": str(free_port())}
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        options = [word for pair in (free | {option: str(port)}).items() for word in pair]
        with stack(tmp_path, home, *options) as process:
            assert process.wait(START_SECONDS) == 1
    said = (tmp_path / "stack.log").read_text()
    assert said.startswith(f"slmpack: port {port} of {HOST} cannot be taken")
    assert variable in said
    assert said.count("\n") == 1


def test_a_stack_ends_nothing_but_its_own() -> None:
    with subprocess.Popen(["sleep", "600"], env={"SLMPACK_STACK": "another"}) as other:
        end_marked("mine")
        assert other.poll() is None
        end_marked("another")
        assert other.wait(END_SECONDS) == -signal.SIGKILL
