"""Children that are forked from a process that has torch, transformers or MLflow imported.

To import them takes 1 to 6 seconds, and a command starts a dozen children. So a function says by `@forked_with(...)`
which modules it needs; the first such child of a command starts the server (`slmpack.machine.fork_server`), which
imports each module once, and every child is a fork of it:

    command --- line: pipes and log of one child ------------------> server, imports what the child needs
            --- control: target, argument, environment, folder ----> child, a fork of the server
            <-- control: process id, in the end the exit status ---- server

A fork shares the memory of the modules with the server; what it makes is its own and goes back when it ends. Functions
that measure memory or the time of a load have an interpreter of their own instead.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

from slmpack.machine.cores import threads_of_a_child

Function = TypeVar("Function", bound=Callable[..., Any])

IMPORTS = "_slmpack_imports"
TORCH = ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
MLFLOW = ("mlflow.pyfunc",)
# What MLflow imports when it opens a store in a database: a second of a processor for each child that does.
MLFLOW_DATABASE = "mlflow.store.tracking.sqlalchemy_store"
TOKENIZER = ("transformers.models.auto.tokenization_auto",)
# Variables that are read when they are used, and not when a module is imported: a change of theirs needs no new server.
# ORT_LIB_PATH is set by onnxruntime_genai itself, when it is imported, TORCHINDUCTOR_CACHE_DIR by torch and
# TOKENIZERS_PARALLELISM by transformers: a process that comes to use those needs no new server either.
READ_WHEN_USED = (
    "COLUMNS",
    "LINES",
    "LOGNAME",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "OLDPWD",
    "ORT_LIB_PATH",
    "PIP_",
    "PREFECT_",
    "PWD",
    "PYTEST_",
    "SLMPACK_",
    "TMPDIR",
    "TOKENIZERS_PARALLELISM",
    "TORCHINDUCTOR_CACHE_DIR",
    "UV_",
)


def forked_with(*modules: str) -> Callable[[Function], Function]:
    """Mark a function whose child is forked from a process that has these modules imported."""

    def mark(function: Function) -> Function:
        setattr(function, IMPORTS, modules)
        return function

    return mark


def imports_of(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the modules that a function's child finds imported; None: it needs an interpreter of its own."""
    return getattr(function, IMPORTS, None)


def _with_store(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules, and what MLflow's store needs where that is a database, as it is by default."""
    is_server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    return modules if is_server or not set(MLFLOW) <= set(modules) else (*modules, MLFLOW_DATABASE)


def prepare_children(*modules: str) -> None:
    """Let the server import what the next children need, while the caller does something else."""
    with contextlib.suppress(OSError):  # a child that finds no server has an interpreter of its own
        _servers.for_environment().import_early(_with_store(modules))


def fork(function: Callable[..., Any], argument: str, log: IO[bytes], limit_seconds: float) -> "Fork | None":
    """Start `function(argument)` in a fork; None where there is no server to fork.

    Args:
        argument: a record as JSON.
        log: where standard error goes, the server's as well while it imports.
        limit_seconds: for the imports.
    """
    modules = _with_store((function.__module__, *(imports_of(function) or ())))
    request: dict[str, object] = {
        "target": f"{function.__module__}:{function.__qualname__}",
        "argument": argument,
        "imports": modules,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "threads": threads_of_a_child(),
    }
    try:
        return _servers.for_environment().fork(request, log, limit_seconds)
    except OSError:  # it ended, or the machine has no processes or files left: an interpreter of its own says which
        return None


class Fork:
    """A child that the server forked and waits for; its control tells how it ended."""

    def __init__(self, control: socket.socket, stdin: int, stdout: int) -> None:
        self.stdin: IO[bytes] | None = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb")
        self._control = control
        self._lines = control.makefile("rb")
        self._returncode: int | None = None
        self.pid = 0

    def begin(self, request: dict[str, object], limit_seconds: float) -> None:
        """Send the request and take the process id.

        Raises:
            OSError: the server is gone, or took longer than that for its imports.
        """
        self._control.settimeout(limit_seconds)
        self._control.sendall(json.dumps(request).encode() + b"\n")
        if not (line := self._lines.readline()):
            raise OSError("the process that forks children ended")
        self._control.settimeout(None)
        self.pid = int(line)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self._returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._control, selectors.EVENT_READ)
                if selector.select(timeout=0):
                    self.wait()
        return self._returncode

    def wait(self) -> int:
        """Wait for the end and return the exit code; that of SIGKILL where the server ended first."""
        if self._returncode is None:
            line = self._lines.readline()
            self._returncode = int(line) if line else -signal.SIGKILL
            self._lines.close()
            self._control.close()
        return self._returncode

    @property
    def has_ended(self) -> bool:
        """Whether its parent waited for its end."""
        return self._returncode is not None

    def close(self) -> None:
        """Close what leads to a child that did not begin."""
        for stream in (self.stdin, self.stdout, self._lines, self._control):
            if stream is not None:
                stream.close()


class _Server:
    """One server process, as its parent sees it."""

    def __init__(self, key: object) -> None:
        self.key = key
        self._children: list[Fork] = []
        self._line, theirs = socket.socketpair()
        # It writes bytecode of what it imports, which is nothing of a model; what it forks does not.
        command = [sys.executable, "-P", "-m", "slmpack.machine.fork_server", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def import_early(self, modules: tuple[str, ...]) -> None:
        """Ask for modules; nothing is forked and nothing answers."""
        ours, theirs = socket.socketpair()
        with ours, theirs, Path(os.devnull).open("wb") as nothing:
            socket.send_fds(self._line, [b"!"], [nothing.fileno(), nothing.fileno(), nothing.fileno(), theirs.fileno()])
            ours.sendall(json.dumps({"imports": modules}).encode() + b"\n")

    def fork(self, request: dict[str, object], log: IO[bytes], limit_seconds: float) -> Fork:
        """Start a child; OSError where the server is gone."""
        (stdin, our_stdin), (our_stdout, stdout) = os.pipe(), os.pipe()
        ours, theirs = socket.socketpair()
        child = Fork(ours, our_stdin, our_stdout)
        self._children = [*(each for each in self._children if not each.has_ended), child]
        try:
            with theirs:
                socket.send_fds(self._line, [b"!"], [stdin, stdout, log.fileno(), theirs.fileno()])
            child.begin(request, limit_seconds)
        except BaseException:
            self._children.remove(child)
            child.close()
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        return child

    def ended(self) -> bool:
        return self._process.poll() is not None

    def is_idle(self) -> bool:
        """Say whether no child of it is at work, and none is about to be."""
        return all(each.has_ended for each in self._children)

    def close(self) -> None:
        """End it, also while it imports; what it forked ends with its parent, which is this process."""
        self._line.close()
        self._process.kill()
        self._process.wait()


class _Servers:
    """The server of this process and its environment; those of earlier environments end with their last child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._pid = 0
        self._earlier: list[_Server] = []

    def for_environment(self) -> _Server:
        key = _read_at_import(os.environ.items())
        with self._lock:
            if self._pid != os.getpid():  # ours is the parent's, if we are a fork
                self._server, self._pid, self._earlier = None, os.getpid(), []
                atexit.register(self.close)
            if self._server is not None and (self._server.ended() or self._server.key != key):
                self._earlier.append(self._server)  # another thread may have a child of it
                self._server = None
            for server in [each for each in self._earlier if each.is_idle()]:
                self._earlier.remove(server)
                server.close()
            if self._server is None:
                self._server = _Server(key)
            return self._server

    def close(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                for server in filter(None, [self._server, *self._earlier]):
                    server.close()
                self._server, self._earlier = None, []


def _read_at_import(variables: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in variables if not name.startswith(READ_WHEN_USED)}


_servers = _Servers()
