"""Heavy or native work in a process of its own: cancelled, bounded and measured from here.

`run_in_child(function, argument, ...)` runs `function(argument)` in a new interpreter and returns its record. The
child stays in our process group, so that whatever stops the group stops it too; it leaves by itself when we die
(its standard input closes). What it and its libraries print goes to a log file. Its own standard output carries one
JSON event a line: `progress`, `result` or `error`.

    parent --- argv: module:function, the argument as JSON ---> child
    parent <-- stdout: {"progress": ...} ... {"result": ...} --- child --- prints and native noise ---> log file
"""

import contextlib
import importlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import psutil

from slmpack import errors, progress, surroundings
from slmpack.errors import SlmpackError
from slmpack.expected import expected_error
from slmpack.plain_text import tag_text
from slmpack.private import open_log
from slmpack.records import Progress, Record

Argument = TypeVar("Argument", bound=Record)
Result = TypeVar("Result", bound=Record)

SAMPLE_SECONDS = 0.25


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
    # -P: nothing from the working folder; -B: no bytecode beside a wrapper that is loaded in place
    command = [sys.executable, "-P", "-B", "-m", "slmpack.child", f"{function.__module__}:{function.__qualname__}",
               argument.model_dump_json()]  # fmt: skip
    result, run = run_command(command, log=log, limit_seconds=limit_seconds, failure=failure, doing=doing)
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
    started = time.monotonic()
    with open_log(log) as noise:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise
        )  # fmt: skip
        watch = _Watch(process, limit_seconds)
        try:
            last = _follow(process)
            process.wait()
        finally:
            watch.stop()
    run = ChildRun(seconds=time.monotonic() - started, peak_private_bytes=watch.peak_private_bytes)
    if "result" in last:
        return last["result"], run
    ours = getattr(errors, str(last.get("kind")), None)
    if isinstance(ours, type) and issubclass(ours, SlmpackError):
        raise ours(str(last["error"]))
    found = _how_it_ended(process.returncode, last, limit_seconds if watch.timed_out else None)
    raise failure(f"{doing} {found}", "", f"the log is {log}")


def _follow(process: "subprocess.Popen[bytes]") -> dict[str, object]:
    """Pass the child's progress on until it closes its output; return its last event."""
    assert process.stdout is not None
    last: dict[str, object] = {}
    for line in process.stdout:
        if not line.endswith(b"\n"):  # killed while it wrote
            break
        last = json.loads(line)
        if "progress" in last:
            told = Progress.model_validate(last["progress"])
            progress.report(told.stage, told.done, told.total, told.unit)
    return last


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

    def __init__(self, process: "subprocess.Popen[bytes]", limit_seconds: float) -> None:
        self.peak_private_bytes = 0
        self.timed_out = False
        self._process = process
        self._deadline = time.monotonic() + limit_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="slmpack-child-watch", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_private_bytes = max(self.peak_private_bytes, private_bytes(self._process.pid))
            if time.monotonic() > self._deadline:
                self.timed_out = True
                kill_tree(self._process.pid)
                return

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


def private_bytes(pid: int) -> int:
    """Return the private memory (unique set size) of a process and its children, in bytes."""
    total = 0
    for process in _tree(pid):
        try:
            total += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


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


def _take_stdout() -> IO[str]:
    """Keep the standard output for events, and let everything else that is printed go to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events


def main() -> None:
    """Run in the child: call the function named in argv and send its result to the parent."""
    events = _take_stdout()
    _leave_with_parent()

    def send(**event: object) -> None:
        events.write(json.dumps(event) + "\n")

    class SendProgress(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(progress=record.progress.model_dump())  # type: ignore[attr-defined]

    progress.logger.addHandler(SendProgress())
    surroundings.prepare()
    module, name = sys.argv[1].split(":")
    try:
        function = getattr(importlib.import_module(module), name)
        (parameter,) = inspect.signature(function).parameters.values()
        result = function(parameter.annotation.model_validate_json(sys.argv[2]))
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
