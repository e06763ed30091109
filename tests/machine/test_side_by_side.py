"""Jobs side by side: their results, their errors, and the end of what nobody waits for."""

import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from child_functions import Marker, start_grandchild_and_wait
from places import HARNESS

from slmpack.errors import BuildError, CheckError
from slmpack.machine.child import run_in_child
from slmpack.machine.side_by_side import Job, side_by_side


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HARNESS), prepend=os.pathsep)


def wait_in_a_child(folder: Path) -> None:
    run_in_child(
        start_grandchild_and_wait, Marker(path=folder / "pids"), log=folder / "log", limit_seconds=600,
        failure=BuildError, doing="the wait",
    )  # fmt: skip


def pids(folder: Path) -> list[int]:
    deadline = time.monotonic() + 600
    while not (folder / "pids").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def have_ended(pids: list[int]) -> bool:
    """Wait for processes that were killed: nobody waits for a grandchild, which is gone some moments later."""
    deadline = time.monotonic() + 500  # by themselves they end after 600
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(running(pid) for pid in pids)


def test_results_come_in_order_and_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=600)  # neither gets past it alone
    assert side_by_side(lambda: (both.wait() and 1) or 1, lambda: (both.wait() and 2) or 2) == (1, 2)


def test_the_first_error_ends_the_children_of_the_others(tmp_path: Path) -> None:
    def refuse() -> None:
        pids(tmp_path)
        raise CheckError("found", "expected", "do")

    with pytest.raises(CheckError, match="found; expected; do"):
        side_by_side(lambda: wait_in_a_child(tmp_path), refuse)
    assert have_ended(pids(tmp_path))


def test_a_job_that_is_ended_leaves_no_process(tmp_path: Path) -> None:
    job = Job(lambda: wait_in_a_child(tmp_path))
    started = pids(tmp_path)
    job.end()
    assert have_ended(started)


def test_a_job_that_failed_says_so_only_to_who_asks() -> None:
    def fail() -> None:
        raise CheckError("found", "expected", "do")

    job = Job(fail)
    job.wait()
    with pytest.raises(CheckError):
        job.result()
