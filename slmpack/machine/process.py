"""Run a process: follow it to its end, end it at its time limit or with its caller, and leave nothing of it behind.

A process that does a part of a job is started by `start_process` and followed in `running`: children of our own
(`slmpack.machine.child`), pip, uv, and the interpreters of other environments. All stay in our process group, so that
a signal to the group reaches them too. Two programs that give a short answer, `pip config list` and `nvidia-smi`, are
run by the standard library's `subprocess.run`.
"""

import contextlib
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

from slmpack.machine.cores import VARIABLE, threads_of_a_child
from slmpack.machine.process_tree import anonymous_bytes, kill_tree, private_bytes

SAMPLE_SECONDS = 0.25
NOTICEABLE_GROWTH = 1.02  # for private memory to be read again


class Process(Protocol):
    """A process as the one that started it sees it: what `subprocess.Popen` and `Fork` have in common."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def wait(self) -> int:
        """Wait for the end and return the exit code."""


class Running:
    """A process in `running`.

    Attributes:
        timed_out: whether it was ended at its time limit.
        seconds: wall time from its start to its end.
        peak_private_bytes: highest private memory of it and its children; 0 where that is not measured.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.timed_out = False
        self.seconds = 0.0
        self.peak_private_bytes = 0

    @property
    def output(self) -> IO[bytes]:
        """The pipe that its standard output was started with."""
        assert self._process.stdout is not None
        return self._process.stdout

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait()


def start_process(
    command: list[str],
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    files: Collection[int] = (),
) -> Process:
    """Start a program with its share of the cores; its standard input is a pipe that closes when we die.

    Args:
        environment: its environment; None: ours.
        folder: where it runs; None: where we are.
        files: descriptors of ours that are open in it as well.
    """
    if (threads := threads_of_a_child()) is not None:
        environment = dict(os.environ if environment is None else environment) | {VARIABLE: str(threads)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, pass_fds=files
    )


@contextlib.contextmanager
def running(
    start: Callable[[], Process], limit_seconds: float = math.inf, *, measured: bool = False
) -> Iterator[Running]:
    """Start a process and end it, with its children, where the block ends before it does.

    While the block waits for it, `end_children_of` this thread ends it too.

    Args:
        limit_seconds: so long after its start it is killed; the block then finds that it ended, and `timed_out`.
        measured: whether its private memory is measured, for which it stands still now and then.
    """
    started = time.monotonic()
    process = start()
    run = Running(process)
    watch = _Watch(process, run, time.monotonic() + limit_seconds, measured=measured)
    try:
        with _awaited(process):
            yield run
    finally:
        watch.stop()
        run.seconds = time.monotonic() - started


_running: dict[int, Process] = {}  # by the thread that waits for it


@contextlib.contextmanager
def _awaited(process: Process) -> Iterator[None]:
    _running[threading.get_ident()] = process
    try:
        yield
    finally:
        del _running[threading.get_ident()]


def end_children_of(thread: int, done: Callable[[], bool]) -> None:
    """Kill each process that a thread waits for, until the thread is done with its work."""
    while not done():
        if (process := _running.get(thread)) is not None:
            kill_tree(process.pid)
        time.sleep(SAMPLE_SECONDS / 5)


class _Watch:
    """Ends a process at its time limit, and samples its memory; `stop` leaves no process behind."""

    def __init__(self, process: Process, run: Running, deadline: float, *, measured: bool) -> None:
        self._process, self._run, self._deadline, self._measured = process, run, deadline, measured
        self._done = threading.Event()
        self._highest_anonymous = 0
        self._thread = threading.Thread(target=self._sample, name="slmpack-process-watch", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            if self._measured:
                self._measure()
            if time.monotonic() > self._deadline:
                self._run.timed_out = True
                kill_tree(self._process.pid)
                return

    def _measure(self) -> None:
        """Read the private memory, but only when the anonymous memory, most of it, has grown beyond its highest.

        The kernel counts anonymous pages as they come; for private ones it walks the whole page table, 25 ms a
        gigabyte, in which the child gets no page. So a peak may be found 2 % too low.
        """
        anonymous = anonymous_bytes(self._process.pid)
        if anonymous is None or anonymous > self._highest_anonymous:
            self._highest_anonymous = int((anonymous or 0) * NOTICEABLE_GROWTH)
            peak = max(self._run.peak_private_bytes, private_bytes(self._process.pid))
            self._run.peak_private_bytes = peak

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        if self._process.poll() is None:
            kill_tree(self._process.pid)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
