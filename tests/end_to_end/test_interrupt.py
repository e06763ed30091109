"""An interrupted command: it ends within seconds, with one line and the signal's code, and leaves nothing behind.

Signals come as they do in life: from a terminal to its whole foreground group, and from `docker stop` and CI.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow_database
import prefect_database
import psutil
import pytest
from command_line import children_with, processes_of, statuses_of, versions
from mlflow import MlflowClient
from served import wait_for
from terminal import TerminalCommand

from flows.supervise import GRACE_SECONDS, SECONDS_OF_ONE_SIGNAL
from slmpack.records import LoggedModel

pytestmark = pytest.mark.slow

LINE = "slmpack: interrupted; nothing was registered; run the same command to go on"
WAIT_SECONDS = 600.0
ENDLESS = ["package", "hf://someone/model", "--force"]  # with `silent_hub`: it is interrupted, or never ends


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Prefect home for all. What runs with it is known by it."""
    prefect_database.write_empty_database(home := tmp_path_factory.mktemp("prefect"))
    return home


@pytest.fixture(autouse=True)
def made_before(tmp_path: Path) -> None:
    """MLflow's default store is in the folder: to make one takes seconds, which `test_main_job.py` pays."""
    mlflow_database.write_empty_database(tmp_path / "mlflow.db")


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that takes requests and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        yield


@contextmanager
def running(arguments: list[str], folder: Path, home: Path, terminal: bool = False) -> Iterator[TerminalCommand]:
    command = TerminalCommand(arguments, folder, terminal=terminal, PREFECT_HOME=str(home))
    try:
        yield command
    finally:
        for each in processes_of(home):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        command.process.kill()
        command.process.wait()
        os.close(command.ours)


def press_ctrl_c(command: TerminalCommand) -> None:
    os.write(command.ours, b"\x03")


def interrupt_group(command: TerminalCommand) -> None:
    os.killpg(command.process.pid, signal.SIGINT)


def terminate_group(command: TerminalCommand) -> None:
    os.killpg(command.process.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "work", "end", "terminal", "code"),
    [
        ("packaging", "flows.temporary_server", terminate_group, False, 143),  # Prefect is imported, its server starts
        ("build ", "run_builder:", press_ctrl_c, True, 130),  # a child process works
        ("smoke ...", "slmpack.prove.smoke:", interrupt_group, False, 130),  # a run of MLflow is open
    ],
)
def test_a_package_that_is_interrupted_ends_in_seconds_with_one_line(
    moment: str,
    work: str,
    end: Callable[[TerminalCommand], None],
    terminal: bool,
    code: int,
    town_phi3: Path,
    home: Path,
    tmp_path: Path,
) -> None:
    place = tmp_path / "workspace"
    arguments = ["package", str(town_phi3), "--force", "--workspace", str(place)]
    with running(arguments, tmp_path, home, terminal) as command:
        command.until(moment)
        wait_for(lambda: children_with(work, command.process.pid), WAIT_SECONDS)  # what it is about to start is there
        end(command)
        assert command.code() == code, command.said
        assert command.lines()[-1] == LINE
        for noise in ("Traceback", "Error", "EventsWorker"):
            assert noise not in command.said
        assert processes_of(home) == []
    assert versions(tmp_path) == []
    assert not list((place / "scratch").glob("*"))
    assert run_statuses(tmp_path) == (["KILLED"] if moment == "smoke ..." else [])


@pytest.mark.usefixtures("silent_hub")
@pytest.mark.parametrize("presses", [1, 2])
def test_clean_up_that_hangs_ends_after_its_time_or_with_a_second_ctrl_c(
    presses: int, home: Path, tmp_path: Path
) -> None:
    """That a second signal waits for no time is seen in `serve`'s tests: there is none that the first one gives."""
    assert GRACE_SECONDS < 5
    with running(ENDLESS, tmp_path, home, terminal=True) as command:
        command.until("resolve ")
        (server,) = children_with("flows.temporary_server", command.process.pid)
        server.suspend()  # the flow's last state is never taken
        press_ctrl_c(command)
        if presses == 2:
            time.sleep(3 * SECONDS_OF_ONE_SIGNAL)  # what comes sooner counts as the same signal
            press_ctrl_c(command)
        assert command.code() == 130, command.said
        assert command.lines()[-1] == LINE
        assert processes_of(home) == []


@pytest.mark.usefixtures("silent_hub")
def test_what_a_killed_command_started_ends_with_it(home: Path, tmp_path: Path) -> None:
    with running(ENDLESS, tmp_path, home) as command:
        command.until("resolve ...")
        assert len(processes_of(home)) >= 3  # itself, its worker, Prefect's temporary server
        command.process.kill()
        _, alive = psutil.wait_procs(processes_of(home), timeout=WAIT_SECONDS)
        assert alive == []


@pytest.mark.usefixtures("silent_hub")
def test_ctrl_z_stops_all_that_works(home: Path, tmp_path: Path) -> None:
    with running(ENDLESS, tmp_path, home) as command:
        command.until("packaging")
        command.process.send_signal(signal.SIGTSTP)
        wait_for(lambda: statuses_of(home) == {psutil.STATUS_STOPPED}, WAIT_SECONDS)
        command.process.send_signal(signal.SIGCONT)
        command.process.send_signal(signal.SIGHUP)
        assert command.code() == 129, command.said
        assert command.lines()[-1] == LINE


@pytest.mark.usefixtures("silent_hub")
def test_work_that_is_killed_is_told_in_one_line(home: Path, tmp_path: Path) -> None:
    with running(ENDLESS, tmp_path, home) as command:
        command.until("packaging")
        (worker,) = psutil.Process(command.process.pid).children()
        worker.kill()
        assert command.code() == 137
        assert command.lines()[-1].startswith("slmpack: the command was killed by signal 9")
        assert processes_of(home) == []


def test_a_chat_that_is_interrupted_stops_in_the_answer(log_it: Callable[..., LoggedModel], home: Path) -> None:
    model, folder = log_it(), Path.cwd()
    # More than a terminal holds: it does not come to its end while nobody reads on.
    with running(["chat", model.uri, "Hello", "--max-tokens", "4000"], folder, home, terminal=True) as command:
        command.until(f"loading {model.uri} ...")
        while len(command.lines()[-1]) < 2 or command.lines()[-1].startswith("loading"):
            assert command.read(), command.said
        press_ctrl_c(command)
        assert command.code() == 130, command.said
        assert command.lines()[-1].endswith(LINE)


def run_statuses(folder: Path) -> list[str]:
    if not (folder / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slmpack")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])] if experiment else []
