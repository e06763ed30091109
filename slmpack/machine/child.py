"""Heavy or native work in a process of its own: cancelled, bounded and measured from here.

`run_in_child(function, argument, ...)` runs `function(argument)` in a new interpreter, or in a fork of one that has its
imports (`slmpack.machine.forks`), and returns its record. The child stays in our process group, so that what stops the
group stops it too; it leaves by itself when we die (its standard input closes). What it and its libraries print goes
to a log file. Its own standard output carries one JSON event a line: `progress`, `result` or `error`.

    parent --- argv: module:function; stdin: the argument as JSON, a line ---> child
    parent <-- stdout: {"progress": ...} ... {"result": ...} --- child --- prints and native noise ---> log file

The argument may hold a password, as the URL of a database does, and every user of a machine reads what is in argv.

A stranger's chat template and tokenizer are programs: they may take all memory and never end. What runs them runs in a
child, in `limited`, which ends the child where they do; the parent then names the file.
"""

import contextlib
import inspect
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

import psutil

from slmpack import errors, progress
from slmpack.errors import SlmpackError
from slmpack.machine.child_main import is_child, send
from slmpack.machine.forks import fork, imports_of
from slmpack.machine.private import open_log
from slmpack.machine.process import Process, Running, running, start_process
from slmpack.records import Progress, Record

Argument = TypeVar("Argument", bound=Record)
Result = TypeVar("Result", bound=Record)

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
        target = f"{function.__module__}:{function.__qualname__}"
        # -P: nothing from the working folder; -B: no bytecode beside a wrapper that is loaded in place
        command = [sys.executable, "-P", "-B", "-m", "slmpack.machine.child", target]
        return child or _with_argument(start_process(command, stdout=subprocess.PIPE, stderr=noise), text)

    result, run = _run(start, log, limit_seconds, failure, doing)
    return result_type.model_validate(result), run


def _with_argument(child: Process, text: str) -> Process:
    """Send a new child its argument; its standard input stays open, since the child ends when that is closed."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which is noticed where it is followed
        child.stdin.write(text.encode() + b"\n")
        child.stdin.flush()
    return child


def run_command(
    command: list[str],
    *,
    log: Path,
    limit_seconds: float,
    failure: type[SlmpackError],
    doing: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[object, ChildRun]:
    """Run a command that sends events as a child does, and return its result as JSON has it.

    Args:
        environment: its environment; None: ours.

    The others are those of `run_in_child`, and so are the errors.
    """

    def start(noise: IO[bytes]) -> Process:
        return start_process(command, stdout=subprocess.PIPE, stderr=noise, environment=environment)

    return _run(start, log, limit_seconds, failure, doing)


def _run(
    start: Callable[[IO[bytes]], Process], log: Path, limit_seconds: float, failure: type[SlmpackError], doing: str
) -> tuple[object, ChildRun]:
    """Start a child and follow it to its end; the arguments, the result and the errors are those of `run_command`."""
    with open_log(log) as noise, running(lambda: start(noise), limit_seconds, measured=True) as child:
        last = _follow(child)
        returncode = child.wait()
    if "result" in last:
        return last["result"], ChildRun(seconds=child.seconds, peak_private_bytes=child.peak_private_bytes)
    ours = getattr(errors, str(last.get("kind")), None)
    if isinstance(ours, type) and issubclass(ours, SlmpackError):
        raise ours(str(last["error"]))
    if (within := _broken_limit(returncode, last)) is not None:
        raise failure(
            f"{within} (in {doing})", "one that ends soon and takes little memory", f"correct it; the log is {log}"
        )
    found = _how_it_ended(returncode, last, limit_seconds if child.timed_out else None)
    raise failure(f"{doing} {found}", "", f"the log is {log}")


def _follow(child: Running) -> dict[str, object]:
    """Pass the child's progress on until it closes its output; return its last event."""
    last: dict[str, object] = {}
    limits: dict[str, object] = {}
    for line in child.output:
        if not line.endswith(b"\n"):  # killed while it wrote
            break
        last = json.loads(line)
        if "limits" in last:
            limits = last
        if "progress" in last:
            step = Progress.model_validate(last["progress"])
            progress.report(step.stage, step.done, step.total, step.unit)
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


@contextlib.contextmanager
def limited(file: str, seconds: float = TEXT_SECONDS, size_bytes: int = TEXT_BYTES) -> Iterator[None]:
    """Bound the time and memory of a child while it runs what a stranger wrote; one that breaks them ends.

    Nothing is bounded in a process that is no child of `run_in_child`, or within another limit.

    Args:
        file: what is run, for the parent's error: "the chat template in config.json".
        size_bytes: private memory beyond what the process has now.
    """
    if not is_child() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    send(limits={"file": file, "seconds": seconds, "gigabytes": size_bytes / 2**30})
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = min(size for size in (_data_bytes() + size_bytes, soft, hard) if size != resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel ends us: no handler runs while C code does
        yield
    except MemoryError as error:
        raise TextMemoryError(f"{file} needed more than {size_bytes / 2**30:.1f} GB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        send(limits=None)


def _data_bytes() -> int:
    """Return what counts for RLIMIT_DATA: private memory that may be written, touched or not."""
    try:
        fields = Path("/proc/self/status").read_text().split("VmData:")[1].split(maxsplit=1)
    except (OSError, IndexError):  # no Linux
        return int(psutil.Process().memory_info().vms)
    return int(fields[0]) * 1024


def main() -> None:
    """Run in the child, in an interpreter of its own: call the function named in argv with what standard input has."""
    # The parent imports this module by its name; run as a program it is a copy, whose state nobody else sees.
    from slmpack.machine.child_main import read_argument, run_target

    (target,) = sys.argv[1:]
    run_target(target, read_argument())


if __name__ == "__main__":
    main()
