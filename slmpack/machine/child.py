"""Heavy or native work in a process of its own: cancelled, bounded and measured from here.

`run_in_child(function, argument, ...)` runs `function(argument)` in a new interpreter, or in a fork of one that has its
imports (`slmpack.machine.forks`), and returns its record. The child stays in our process group, so that what stops the
group stops it too; it leaves by itself when we die (its standard input closes). What it and its libraries print goes
to a log file. Its own standard output carries one JSON event a line: `progress`, `result` or `error`.

    parent --- argv: module:function, the argument as JSON ---> child
    parent <-- stdout: {"progress": ...} ... {"result": ...} --- child --- prints and native noise ---> log file

A stranger's chat template and tokenizer are programs: they may take all memory and never end. What runs them runs in a
child, in `limited`, which ends the child where they do; the parent then names the file.
"""

import contextlib
import importlib
import inspect
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import psutil

from slmpack import errors, progress
from slmpack.errors import SlmpackError
from slmpack.machine import surroundings
from slmpack.machine.cores import VARIABLE, threads_of_a_child
from slmpack.machine.expected import expected_error
from slmpack.machine.forks import Process, fork, imports_of
from slmpack.machine.private import open_log
from slmpack.plain_text import tag_text
from slmpack.records import Progress, Record

Argument = TypeVar("Argument", bound=Record)
Result = TypeVar("Result", bound=Record)

SAMPLE_SECONDS = 0.25
OWN_PAGES = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:", "Shared_Dirty:")
ANONYMOUS_PAGES = ("RssAnon:", "RssShmem:")
NOTICEABLE_GROWTH = 1.02  # for private memory to be read again
TEXT_SECONDS = 300.0  # for a stranger's template or tokenizer: a million tokens take some seconds
TEXT_BYTES = 4 << 30  # beyond what the child had; the largest published vocabularies take half of it at most


class TextMemoryError(MemoryError):
    """What ran within `limited` needed too much memory; the message names the file."""


class ChildRun(Record):
    """What a child cost: wall time in seconds, peak private memory in bytes, its children included."""

    seconds: float
    peak_private_bytes: int


def run_in_child(
    function: Callable[[Argument], Result],
    argument: Argument,
    *,
    log: Path,
    limit_seconds: float,
    failure: type[SlmpackError],
    doing: str,
) -> tuple[Result, ChildRun]:
    """Run `function(argument)`, a module-level function of the library, in a process of its own.

    Args:
        log: where the child's noise goes; named in every error.
        limit_seconds: after this long the child is killed.
        failure: raised when the child dies, hangs or fails in a way nobody foresaw.
        doing: what the child does, for that error: "the build".

    Raises:
        SlmpackError: of the class the child raised, or `failure`.
    """
    result_type: type[Result] = inspect.signature(function).return_annotation

    def start(noise: IO[bytes]) -> Process:
        text = argument.model_dump_json()
        child = None if imports_of(function) is None else fork(function, text, noise, limit_seconds)
        # -P: nothing from the working folder; -B: no bytecode beside a wrapper that is loaded in place
        command = [
            sys.executable,
            "-P",
            "-B",
            "-m",
            "slmpack.machine.child",
            f"{function.__module__}:{function.__qualname__}",
        ]
        return child or _start([*command, text], noise)

    result, run = _run(start, log, limit_seconds, failure, doing)
    return result_type.model_validate(result), run


def run_command(
    command: list[str],
    *,
    log: Path,
    limit_seconds: float,
    failure: type[SlmpackError],
    doing: str,
    environment: dict[str, str] | None = None,
) -> tuple[object, ChildRun]:
    """Run a command that tells events as a child does, and return its result as JSON has it.

    Args:
        environment: its environment; None: ours.

    The others are those of `run_in_child`, and so are the errors.
    """
    return _run(lambda noise: _start(command, noise, environment), log, limit_seconds, failure, doing)


def _start(command: list[str], noise: IO[bytes], environment: dict[str, str] | None = None) -> Process:
    if (threads := threads_of_a_child()) is not None:
        environment = dict(os.environ if environment is None else environment) | {VARIABLE: str(threads)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise)


def _run(
    start: Callable[[IO[bytes]], Process], log: Path, limit_seconds: float, failure: type[SlmpackError], doing: str
) -> tuple[object, ChildRun]:
    """Start a child and follow it to its end; the arguments, the result and the errors are those of `run_command`."""
    started = time.monotonic()
    with open_log(log) as noise:
        process = start(noise)
        watch = _Watch(process, limit_seconds)
        try:
            with awaited(process):
                last = _follow(process)
                returncode = process.wait()
        finally:
            watch.stop()
    run = ChildRun(seconds=time.monotonic() - started, peak_private_bytes=watch.peak_private_bytes)
    if "result" in last:
        return last["result"], run
    ours = getattr(errors, str(last.get("kind")), None)
    if isinstance(ours, type) and issubclass(ours, SlmpackError):
        raise ours(str(last["error"]))
    if (within := _broken_limit(returncode, last)) is not None:
        raise failure(
            f"{within} (in {doing})", "one that ends soon and takes little memory", f"correct it; the log is {log}"
        )
    found = _how_it_ended(returncode, last, limit_seconds if watch.timed_out else None)
    raise failure(f"{doing} {found}", "", f"the log is {log}")


_running: dict[int, Process] = {}  # by the thread that waits for it


@contextlib.contextmanager
def awaited(process: Process) -> Iterator[None]:
    """Let `end_children_of` this thread end the process, which the thread waits for."""
    _running[threading.get_ident()] = process
    try:
        yield
    finally:
        del _running[threading.get_ident()]


def end_children_of(thread: int, done: Callable[[], bool]) -> None:
    """Kill each child that a thread waits for, until the thread is done with its work."""
    while not done():
        if (process := _running.get(thread)) is not None:
            kill_tree(process.pid)
        time.sleep(SAMPLE_SECONDS / 5)


def _follow(process: Process) -> dict[str, object]:
    """Pass the child's progress on until it closes its output; return its last event."""
    assert process.stdout is not None
    last: dict[str, object] = {}
    limits: dict[str, object] = {}
    for line in process.stdout:
        if not line.endswith(b"\n"):  # killed while it wrote
            break
        last = json.loads(line)
        if "limits" in last:
            limits = last
        if "progress" in last:
            told = Progress.model_validate(last["progress"])
            progress.report(told.stage, told.done, told.total, told.unit)
    return {**limits, **last}


def _broken_limit(returncode: int, last: dict[str, object]) -> str | None:
    """Say which file broke a limit of `limited`, and which limit; None if none did."""
    if last.get("kind") == TextMemoryError.__name__:
        return str(last["error"])
    if not isinstance(limits := last.get("limits"), dict):
        return None
    if returncode == -signal.SIGALRM:
        return f"{limits['file']} did not end within {limits['seconds']:g} s"
    # C and Rust abort where Python raises; a runaway recursion of theirs overflows the stack.
    if returncode in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        return f"{limits['file']} needed more than {limits['gigabytes']:.1f} GB of memory, or crashed what reads it"
    return None


def _how_it_ended(returncode: int, last: dict[str, object], limit_seconds: float | None) -> str:
    if limit_seconds is not None:
        return f"took longer than {limit_seconds:.0f} s and was stopped"
    if "error" in last:
        return f"failed with {last['kind']}: {last['error']}"
    if returncode == -signal.SIGKILL:
        return "was killed by signal 9, as a machine does with what takes too much memory"
    return f"ended with code {returncode} and no result"


class _Watch:
    """Samples a child's memory and ends it at its time limit; `stop` leaves no process behind."""

    def __init__(self, process: Process, limit_seconds: float) -> None:
        self.peak_private_bytes = 0
        self.timed_out = False
        self._process = process
        self._deadline = time.monotonic() + limit_seconds
        self._done = threading.Event()
        self._highest_anonymous = 0
        self._thread = threading.Thread(target=self._sample, name="slmpack-child-watch", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._measure()
            if time.monotonic() > self._deadline:
                self.timed_out = True
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
            self.peak_private_bytes = max(self.peak_private_bytes, private_bytes(self._process.pid))

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        if self._process.poll() is None:
            kill_tree(self._process.pid)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _pids_of_tree(pid: int) -> list[int]:
    """Return the ids of a process and its children; psutil reads all processes of the machine for that."""
    lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
    if not lists:  # not Linux, or gone
        return [process.pid for process in _tree(pid)]
    found = [pid]
    for each in lists:
        with contextlib.suppress(OSError):  # a thread that ended
            found += [one for child in each.read_text().split() for one in _pids_of_tree(int(child))]
    return found


def private_bytes(pid: int) -> int:
    """Return the private memory of a process and its children, in bytes.

    That is their unique set size, and the written pages that a fork has in common with what it is a fork of: in an
    interpreter of its own they would be private, too.
    """
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            total += _own_bytes(process)
    return total


def anonymous_bytes(pid: int) -> int | None:
    """Return the anonymous memory of a process and its children, in bytes; None where the kernel does not say."""
    total = 0
    for each in _pids_of_tree(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            sizes = [line.split()[1] for line in status.splitlines() if line.startswith(ANONYMOUS_PAGES)]
            total += sum(map(int, sizes)) * 1024
    return total or None


def _own_bytes(process: psutil.Process) -> int:
    """Read proc(5)'s smaps_rollup once: while it is read, the process cannot get a page."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():  # not Linux
        return int(process.memory_full_info().uss)
    sizes = (line.split() for line in rollup.read_text().splitlines())
    return sum(int(size) * 1024 for name, size, *_ in sizes if name in OWN_PAGES)


def kill_tree(pid: int) -> None:
    """Kill a process and all its children."""
    _kill(_tree(pid))


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _leave_with_parent() -> None:
    """End this process and its children when the parent is gone: the kernel then closes our standard input."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold while the interpreter ends
        _, *children = _tree(os.getpid())
        _kill(children)
        os._exit(1)

    threading.Thread(target=wait, name="slmpack-parent-watch", daemon=True).start()


class _Events:
    """Where this process sends its events, if it is a child, and whether it is within `limited`."""

    stream: IO[str] | None = None
    is_limited = False


def _take_stdout() -> None:
    """Keep the standard output for events, and let everything else that is printed go to the log."""
    _Events.stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)


def send(**event: object) -> None:
    """Send an event to the parent; in a process that is no child there is none."""
    if _Events.stream is not None:
        _Events.stream.write(json.dumps(event) + "\n")


@contextlib.contextmanager
def limited(file: str, seconds: float = TEXT_SECONDS, size_bytes: int = TEXT_BYTES) -> Iterator[None]:
    """Bound the time and memory of a child while it runs what a stranger wrote; one that breaks them ends.

    Nothing is bounded in a process that is no child of `run_in_child`, or within another limit.

    Args:
        file: what is run, for the parent's error: "the chat template in config.json".
        size_bytes: private memory beyond what the process has now.
    """
    if _Events.stream is None or _Events.is_limited:
        yield
        return
    send(limits={"file": file, "seconds": seconds, "gigabytes": size_bytes / 2**30})
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = min(size for size in (_data_bytes() + size_bytes, soft, hard) if size != resource.RLIM_INFINITY)
    _Events.is_limited = True
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel ends us: no handler runs while C code does
        yield
    except MemoryError as error:
        raise TextMemoryError(f"{file} needed more than {size_bytes / 2**30:.1f} GB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        _Events.is_limited = False
        send(limits=None)


def _data_bytes() -> int:
    """Return what counts for RLIMIT_DATA: private memory that may be written, touched or not."""
    try:
        fields = Path("/proc/self/status").read_text().split("VmData:")[1].split(maxsplit=1)
    except (OSError, IndexError):  # no Linux
        return int(psutil.Process().memory_info().vms)
    return int(fields[0]) * 1024


def main() -> None:
    """Run in the child, in an interpreter of its own: call the function named in argv."""
    # The parent imports this module by its name; run as a program it is another, whose state nobody else sees.
    from slmpack.machine.child import run_target

    run_target(*sys.argv[1:])


def run_target(target: str, argument: str) -> None:
    """Run in the child: call `module:function` with its argument and send its result to the parent.

    Args:
        argument: the function's record as JSON.
    """
    _take_stdout()
    _leave_with_parent()

    class SendProgress(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(progress=record.progress.model_dump())  # type: ignore[attr-defined]

    progress.logger.addHandler(SendProgress())
    surroundings.prepare()
    module, name = target.split(":")
    try:
        function = getattr(importlib.import_module(module), name)
        (parameter,) = inspect.signature(function).parameters.values()
        result = function(parameter.annotation.model_validate_json(argument))
        send(result=result.model_dump(mode="json"))
    except BaseException as error:
        told = expected_error(error) or error
        send(error=tag_text(str(told)), kind=type(told).__name__)  # first: a full disk takes no traceback
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
