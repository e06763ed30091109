"""Work in a process of its own: its result, its failures, its end."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from child_functions import (
    Marker,
    Number,
    Surroundings,
    be_killed,
    be_killed_in_a_fork,
    double,
    double_in_a_fork,
    double_without_a_module,
    hold_memory,
    hold_memory_in_a_fork,
    look_around_in_a_fork,
    name_stores_of_mlflow,
    name_threads_of_the_server,
    read_own_arguments,
    refuse,
    refuse_in_a_fork,
    start_grandchild_and_wait,
    start_grandchild_and_wait_in_a_fork,
    stumble,
    stumble_in_a_fork,
)
from places import HARNESS

from slmpack import progress
from slmpack.errors import BuildError, SourceError
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import prepare_children

WAIT_SECONDS = 600.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HARNESS), prepend=os.pathsep)


def run(function: Callable[[Number], Number], value: int, log: Path, limit_seconds: float = 600.0) -> Number:
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


@pytest.mark.parametrize("function", [double, double_in_a_fork])
def test_returns_the_record_and_keeps_the_noise_in_the_log(
    tmp_path: Path, function: Callable[[Number], Number]
) -> None:
    assert run(function, 21, tmp_path / "log") == Number(value=42)
    noise = (tmp_path / "log").read_text()
    assert "noise on stdout" in noise
    assert "native noise" in noise


@pytest.mark.parametrize("function", [refuse, refuse_in_a_fork])
def test_an_error_is_told_where_the_disk_is_too_full_for_the_log(
    function: Callable[[Number], Number], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "a server of its own, which inherits the limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file takes a byte
    try:
        with pytest.raises(SourceError, match=r"^3; an even number; double it$"):
            run(function, 3, tmp_path / "log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log").stat().st_size == 0


@pytest.mark.parametrize("function", [double, double_in_a_fork])
def test_passes_progress_on(tmp_path: Path, function: Callable[[Number], Number]) -> None:
    seen = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.__dict__["progress"])

    handler = Listen()
    progress.logger.addHandler(handler)
    run(function, 1, tmp_path / "log")
    progress.logger.removeHandler(handler)
    assert [(told.stage, told.done, told.total) for told in seen] == [("double", 1, 1)]


@pytest.mark.parametrize("function", [refuse, refuse_in_a_fork])
def test_raises_our_own_error_as_it_was(tmp_path: Path, function: Callable[[Number], Number]) -> None:
    with pytest.raises(SourceError, match=r"^3; an even number; double it$"):
        run(function, 3, tmp_path / "log")


@pytest.mark.parametrize("function", [stumble, stumble_in_a_fork])
def test_names_the_log_of_an_unforeseen_error(tmp_path: Path, function: Callable[[Number], Number]) -> None:
    with pytest.raises(BuildError, match=r"the work failed with ZeroDivisionError.*the log is .*log"):
        run(function, 0, tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("function", [be_killed, be_killed_in_a_fork])
def test_says_that_a_killed_child_may_have_taken_too_much_memory(
    tmp_path: Path, function: Callable[[Number], Number]
) -> None:
    with pytest.raises(BuildError, match=r"killed by signal 9.*memory.*the log is"):
        run(function, 1, tmp_path / "log")


@pytest.mark.parametrize("function", [hold_memory, hold_memory_in_a_fork])
def test_measures_private_memory(tmp_path: Path, function: Callable[[Number], Number]) -> None:
    _, cost = run_in_child(
        function, Number(value=300), log=tmp_path / "log", limit_seconds=600, failure=BuildError, doing="it"
    )
    assert cost.peak_private_bytes > 300 << 20


@pytest.mark.parametrize("function", [start_grandchild_and_wait, start_grandchild_and_wait_in_a_fork])
def test_ends_the_child_and_its_children_at_the_time_limit(
    tmp_path: Path, function: Callable[[Marker], Marker]
) -> None:
    marker = Marker(path=tmp_path / "pids")
    for limit in (3, 15, 60, 300):  # on a busy machine a process may not have come to its work within the first
        with pytest.raises(BuildError, match=rf"took longer than {limit} s and was stopped"):
            run_in_child(function, marker, log=tmp_path / "log", limit_seconds=limit, failure=BuildError, doing="it")
        if marker.path.exists():
            break
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
from child_functions import Marker, {function}
from slmpack.machine.child import run_in_child
from slmpack.errors import BuildError
run_in_child({function}, Marker(path=Path(sys.argv[1])), log=Path(sys.argv[1] + ".log"),
             limit_seconds=600, failure=BuildError, doing="it")
"""


@pytest.mark.parametrize("function", [start_grandchild_and_wait, start_grandchild_and_wait_in_a_fork])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_does_not_outlive_its_parent(
    tmp_path: Path, signal_number: signal.Signals, function: Callable[[Marker], Marker]
) -> None:
    marker = tmp_path / "pids"
    program = PARENT.format(function=function.__qualname__)
    with subprocess.Popen([sys.executable, "-c", program, str(marker)], stderr=subprocess.DEVNULL) as parent:
        assert wait_for(marker.exists)
        child, grandchild = (int(pid) for pid in marker.read_text().split())
        os.kill(parent.pid, signal_number)
    assert wait_for(lambda: not alive(child) and not alive(grandchild))


@pytest.mark.parametrize("function", [double, double_in_a_fork])
def test_two_children_at_once_do_not_mix(tmp_path: Path, function: Callable[[Number], Number]) -> None:
    results: dict[int, Number] = {}

    def work(value: int) -> None:
        results[value] = run(function, value, tmp_path / f"log-{value}")

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {value: result.value for value, result in results.items()} == {1: 2, 2: 4}


def test_a_fork_has_the_folder_variables_and_group_of_its_parent_and_random_numbers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(folder: Path, variable: str) -> Surroundings:
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PIP_SLMPACK_TEST", variable)  # read when it is used: the server stays
        for set_by_libraries in ("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR"):
            monkeypatch.setenv(set_by_libraries, variable)
        found, _ = run_in_child(
            look_around_in_a_fork, Marker(path=folder), log=folder / "log", limit_seconds=600, failure=BuildError,
            doing="it",
        )  # fmt: skip
        return found

    first, second = look(tmp_path / "first", "1"), look(tmp_path / "second", "2")
    assert (first.folder, second.folder) == (tmp_path / "first", tmp_path / "second")
    assert (first.variable, second.variable) == ("1", "2")
    assert first.parent == second.parent != os.getpid()
    assert first.group == second.group == os.getpgrp()
    assert not set(first.drawn) & set(second.drawn)
    assert first.title.endswith("-m slmpack.machine.child child_functions:look_around_in_a_fork")
    assert not first.writes_bytecode  # as a wrapper that is loaded in place has none beside it
    assert "-B" not in psutil.Process(first.parent).cmdline()  # else torch is compiled by every command


def test_what_a_child_works_on_is_not_in_its_arguments(tmp_path: Path) -> None:
    """It may be the URL of a database, with its password; a long one is sent whole."""
    argument = Path("postgresql://mlflow:s3cr3t@db/" + "x" * 300_000)
    found, _ = run_in_child(
        read_own_arguments,
        Marker(path=argument),
        log=tmp_path / "log",
        limit_seconds=600,
        failure=BuildError,
        doing="it",
    )
    assert found.argument == str(argument)
    assert found.arguments.endswith("-m slmpack.machine.child child_functions:read_own_arguments")


def test_a_variable_that_libraries_read_at_import_reaches_the_next_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = []
    for value in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        found, _ = run_in_child(
            look_around_in_a_fork, Marker(path=tmp_path), log=tmp_path / "log", limit_seconds=600, failure=BuildError,
            doing="it",
        )  # fmt: skip
        parents.append(found.parent)
    assert parents[0] != parents[1]
    assert wait_for(lambda: not alive(parents[0]))  # it has no child any more, and holds memory


def test_a_module_that_cannot_be_imported_early_is_the_childs_own_matter(tmp_path: Path) -> None:
    assert run(double_without_a_module, 4, tmp_path / "log") == Number(value=8)


def test_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    found, _ = run_in_child(
        look_around_in_a_fork, Marker(path=tmp_path), log=tmp_path / "log", limit_seconds=600, failure=BuildError,
        doing="it",
    )  # fmt: skip
    os.kill(found.parent, signal.SIGKILL)
    assert [run(double_in_a_fork, value, tmp_path / "log").value for value in (1, 2)] == [2, 4]


def test_what_is_imported_early_is_there_for_the_next_fork(tmp_path: Path) -> None:
    prepare_children("child_functions", "numpy")
    assert run(double_in_a_fork, 3, tmp_path / "log") == Number(value=6)


@pytest.mark.parametrize(
    ("address", "imported"), [(None, True), ("sqlite:///mlflow.db", True), ("http://127.0.0.1:9", False)]
)
def test_the_store_of_a_database_is_imported_before_the_fork_and_a_servers_is_not(
    address: str | None, imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("OF_THIS_TEST", str(imported))  # a server of its own
    found, _ = run_in_child(
        name_stores_of_mlflow, Marker(path=tmp_path), log=tmp_path / "log", limit_seconds=600, failure=BuildError,
        doing="it",
    )  # fmt: skip
    assert (found.names != ()) is imported


def test_no_allocator_has_a_thread_where_children_are_forked(tmp_path: Path) -> None:
    """A child has no such thread, and would wait for ever for what it holds."""
    found, _ = run_in_child(
        name_threads_of_the_server, Marker(path=tmp_path), log=tmp_path / "log", limit_seconds=600, failure=BuildError,
        doing="it",
    )  # fmt: skip
    assert found.names
    assert "jemalloc_bg_thd" not in found.names
