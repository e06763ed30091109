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

pytestmark = pytest.mark.slow

LINE = "slmpack: interrupted; nothing was registered; run the same command to go on"
END_SECONDS = 5.0


class Command:
    """`slmpack` in a session of its own, with a terminal or a pipe for what it says, all of it in `said`."""

    def __init__(self, arguments: list[str], folder: Path, terminal: bool, **extra: str) -> None:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.ours = ours
        self.process = subprocess.Popen(
            [SLMPACK, *arguments], cwd=folder, stdin=theirs if terminal else subprocess.DEVNULL, stdout=theirs,
            stderr=theirs, env=environment(PREFECT_HOME=str(folder / "prefect"), TERM="xterm", **extra),
            start_new_session=True, preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def until(self, words: str, seconds: float = 120) -> None:
        """Read until it has said so."""
        deadline = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self._read(), self.said

    def code(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        return self.process.wait()

    def _read(self) -> bool:
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
def running(arguments: list[str], folder: Path, terminal: bool = False, **extra: str) -> Iterator[Command]:
    command = Command(arguments, folder, terminal, **extra)
    try:
        yield command
    finally:
        for each in processes_in(folder):
            each.kill()
        command.process.kill()
        command.process.wait()
        os.close(command.ours)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return the processes whose environment has the Prefect home of a command in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(folder / "prefect"):
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


WAYS = [(press_ctrl_c, True, 130), (interrupt_group, False, 130), (terminate_group, False, 143)]


@pytest.mark.parametrize(("end", "terminal", "code"), WAYS)
@pytest.mark.parametrize("moment", ["packaging", "fetch took", "smoke ..."])
def test_a_package_that_is_interrupted_ends_in_seconds_with_one_line(
    moment: str, end: Callable[[Command], None], terminal: bool, code: int, tiny_phi3: Path, tmp_path: Path
) -> None:
    """With Prefect's own temporary server: while it starts, in the build, and where a run of MLflow is open."""
    place = tmp_path / "workspace"
    with running(["package", str(tiny_phi3), "--force", "--workspace", str(place)], tmp_path, terminal) as command:
        command.until(moment)
        if moment != "packaging":
            time.sleep(0.5)  # its child is there
        began = time.monotonic()
        end(command)
        assert command.code() == code, command.said
        assert time.monotonic() - began < END_SECONDS
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", command.said)
        assert text.splitlines()[-1] == LINE
        for noise in ("Traceback", "Error", "EventsWorker"):
            assert noise not in text
        assert processes_in(tmp_path) == []
    assert versions(tmp_path) == []
    assert not list((place / "scratch").glob("*"))
    assert set(run_statuses(tmp_path)) <= {"KILLED"}
    if moment == "smoke ...":
        assert run_statuses(tmp_path) == ["KILLED"]


def run_statuses(folder: Path) -> list[str]:
    if not (folder / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slmpack")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])] if experiment else []
