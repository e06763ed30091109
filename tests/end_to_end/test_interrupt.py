"""An interrupted command: it ends within seconds, with one line and the signal's code, and leaves nothing behind.

Signals come as they do in life: from a terminal to its whole foreground group, and from `docker stop` and CI.
"""

import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from command_line import SLMPACK, environment, versions
from mlflow import MlflowClient

from slmpack.records import LoggedModel

pytestmark = pytest.mark.slow

LINE = "slmpack: interrupted; nothing was registered; run the same command to go on"
END_SECONDS = 5.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Prefect home for all: its database is made once. What runs with it is known by it."""
    return tmp_path_factory.mktemp("prefect")


class Command:
    """`slmpack` in a session of its own, with a terminal or a pipe for what it says, all of it in `said`."""

    def __init__(self, arguments: list[str], folder: Path, home: Path, terminal: bool) -> None:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.ours = ours
        self.process = subprocess.Popen(
            [SLMPACK, *arguments], cwd=folder, stdin=theirs if terminal else subprocess.DEVNULL, stdout=theirs,
            stderr=theirs, env=environment(PREFECT_HOME=str(home), TERM="xterm"),
            start_new_session=True, preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def until(self, words: str, seconds: float = 120) -> None:
        """Read until it has said so."""
        deadline = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self.read(), self.said

    def code(self) -> int:
        """Read to the end and return the exit code."""
        while self.read():
            pass
        return self.process.wait()

    def lines(self) -> list[str]:
        """Return what it said without the sequences for terminals."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.said).splitlines()

    def read(self) -> bool:
        try:
            block = os.read(self.ours, 4096)
        except OSError:  # how Linux says that the other end of a terminal is closed
            return False
        self.said += block.decode(errors="replace")
        return bool(block)


def _take_terminal() -> None:
    """Make the standard input the controlling terminal, so that Ctrl-C there interrupts this process's group."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def running(arguments: list[str], folder: Path, home: Path, terminal: bool = False) -> Iterator[Command]:
    command = Command(arguments, folder, home, terminal)
    try:
        yield command
    finally:
        for each in processes_of(home):
            each.kill()
        command.process.kill()
        command.process.wait()
        os.close(command.ours)


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes whose environment has this Prefect home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def press_ctrl_c(command: Command) -> None:
    os.write(command.ours, b"\x03")


def interrupt_group(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGINT)


def terminate_group(command: Command) -> None:
    os.killpg(command.process.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "end", "terminal", "code"),
    [
        ("packaging", terminate_group, False, 143),  # Prefect is imported and its temporary server starts
        ("build ", press_ctrl_c, True, 130),  # a child process works
        ("smoke ...", interrupt_group, False, 130),  # a run of MLflow is open
    ],
)
def test_a_package_that_is_interrupted_ends_in_seconds_with_one_line(
    moment: str, end: Callable[[Command], None], terminal: bool, code: int, town_phi3: Path, home: Path, tmp_path: Path
) -> None:
    place = tmp_path / "workspace"
    arguments = ["package", str(town_phi3), "--force", "--workspace", str(place)]
    with running(arguments, tmp_path, home, terminal) as command:
        command.until(moment)
        time.sleep(0.5)  # what it is about to start is there
        began = time.monotonic()
        end(command)
        assert command.code() == code, command.said
        assert time.monotonic() - began < END_SECONDS
        assert command.lines()[-1] == LINE
        for noise in ("Traceback", "Error", "EventsWorker"):
            assert noise not in command.said
        assert processes_of(home) == []
    assert versions(tmp_path) == []
    assert not list((place / "scratch").glob("*"))
    assert run_statuses(tmp_path) == (["KILLED"] if moment == "smoke ..." else [])


@pytest.mark.parametrize(("presses", "longest"), [(1, END_SECONDS), (2, 2.0)])
def test_clean_up_that_hangs_ends_after_its_time_or_with_a_second_ctrl_c(
    presses: int, longest: float, home: Path, tmp_path: Path
) -> None:
    with running(["package", "./none", "--force"], tmp_path, home, terminal=True) as command:
        command.until("resolve ")
        (server,) = (each for each in processes_of(home) if "uvicorn" in each.cmdline())
        server.suspend()  # the flow's last state is never taken
        began = time.monotonic()
        press_ctrl_c(command)
        if presses == 2:
            time.sleep(0.6)
            press_ctrl_c(command)
        assert command.code() == 130, command.said
        assert time.monotonic() - began < longest
        assert command.lines()[-1] == LINE
        assert processes_of(home) == []


def test_what_a_killed_command_started_ends_with_it(home: Path, tmp_path: Path) -> None:
    with running(["package", "./none", "--force"], tmp_path, home) as command:
        command.until("resolve ...")
        assert len(processes_of(home)) >= 3  # itself, its worker, Prefect's temporary server
        command.process.kill()
        _, alive = psutil.wait_procs(processes_of(home), timeout=10)
        assert alive == []


def test_ctrl_z_stops_all_that_works(home: Path, tmp_path: Path) -> None:
    with running(["package", "./none", "--force"], tmp_path, home) as command:
        command.until("packaging")
        command.process.send_signal(signal.SIGTSTP)
        while {each.status() for each in processes_of(home)} != {psutil.STATUS_STOPPED}:
            time.sleep(0.05)
        command.process.send_signal(signal.SIGCONT)
        command.process.send_signal(signal.SIGHUP)
        assert command.code() == 129, command.said
        assert command.lines()[-1] == LINE


def test_work_that_is_killed_is_told_in_one_line(home: Path, tmp_path: Path) -> None:
    with running(["package", "./none", "--force"], tmp_path, home) as command:
        command.until("packaging")
        (worker,) = psutil.Process(command.process.pid).children()
        worker.kill()
        assert command.code() == 137
        assert command.lines()[-1].startswith("slmpack: the command was killed by signal 9")
        assert processes_of(home) == []


def test_a_chat_that_is_interrupted_stops_in_the_answer(log_it: Callable[..., LoggedModel], home: Path) -> None:
    model, folder = log_it(), Path.cwd()
    with running(["chat", model.uri, "Hello"], folder, home, terminal=True) as command:
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
