"""Work in a process of its own: its result, its failures, its end."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from child_functions import Marker, Number, be_killed, double, hold_memory, refuse, start_grandchild_and_wait, stumble

from slmpack import progress
from slmpack.child import run_in_child
from slmpack.errors import BuildError, SourceError

WAIT_SECONDS = 30.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def run(function: Callable[[Number], Number], value: int, log: Path, limit_seconds: float = 60.0) -> Number:
    result, _ = run_in_child(
        function, Number(value=value), log=log, limit_seconds=limit_seconds, failure=BuildError, doing="the work"
    )
    return result


def wait_for(happened: Callable[[], bool]) -> bool:
    """Look until it happened, or for WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happened()


def test_returns_the_record_and_keeps_the_noise_in_the_log(tmp_path: Path) -> None:
    assert run(double, 21, tmp_path / "log") == Number(value=42)
    noise = (tmp_path / "log").read_text()
    assert "noise on stdout" in noise
    assert "native noise" in noise


def test_an_error_is_told_where_the_disk_is_too_full_for_the_log() -> None:
    with pytest.raises(SourceError, match=r"^3; an even number; double it$"):
        run(refuse, 3, Path("/dev/full"))


def test_passes_progress_on(tmp_path: Path) -> None:
    seen = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.__dict__["progress"])

    handler = Listen()
    progress.logger.addHandler(handler)
    run(double, 1, tmp_path / "log")
    progress.logger.removeHandler(handler)
    assert [(told.stage, told.done, told.total) for told in seen] == [("double", 1, 1)]


def test_raises_our_own_error_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^3; an even number; double it$"):
        run(refuse, 3, tmp_path / "log")


def test_names_the_log_of_an_unforeseen_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"the work failed with ZeroDivisionError.*the log is .*log"):
        run(stumble, 0, tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_says_that_a_killed_child_may_have_taken_too_much_memory(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"killed by signal 9.*memory.*the log is"):
        run(be_killed, 1, tmp_path / "log")


def test_measures_private_memory(tmp_path: Path) -> None:
    _, cost = run_in_child(
        hold_memory, Number(value=300), log=tmp_path / "log", limit_seconds=60, failure=BuildError, doing="it"
    )
    assert cost.peak_private_bytes > 300 << 20


def test_ends_the_child_and_its_children_at_the_time_limit(tmp_path: Path) -> None:
    marker = Marker(path=tmp_path / "pids")
    with pytest.raises(BuildError, match=r"took longer than 5 s and was stopped"):
        run_in_child(
            start_grandchild_and_wait, marker, log=tmp_path / "log", limit_seconds=5, failure=BuildError, doing="it"
        )
    pids = [int(pid) for pid in marker.path.read_text().split()]
    assert wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


PARENT = """
import sys
from pathlib import Path
from child_functions import Marker, start_grandchild_and_wait
from slmpack.child import run_in_child
from slmpack.errors import BuildError
run_in_child(start_grandchild_and_wait, Marker(path=Path(sys.argv[1])), log=Path(sys.argv[1] + ".log"),
             limit_seconds=600, failure=BuildError, doing="it")
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_does_not_outlive_its_parent(tmp_path: Path, signal_number: signal.Signals) -> None:
    marker = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(marker)], stderr=subprocess.DEVNULL) as parent:
        assert wait_for(marker.exists)
        child, grandchild = (int(pid) for pid in marker.read_text().split())
        os.kill(parent.pid, signal_number)
    assert wait_for(lambda: not alive(child) and not alive(grandchild))


def test_two_children_at_once_do_not_mix(tmp_path: Path) -> None:
    results: dict[int, Number] = {}

    def work(value: int) -> None:
        results[value] = run(double, value, tmp_path / f"log-{value}")

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {value: result.value for value, result in results.items()} == {1: 2, 2: 4}
