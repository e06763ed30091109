"""The process that `slmpack.machine.forks` starts: it imports modules, and forks the children of one command.

It has no threads of Python's or of an allocator, runs nothing of a model, and ends when its line closes; so do its
children.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from slmpack.machine.cores import VARIABLE

# pandas imports Arrow, whose allocator has a thread of its own: what it holds while we fork stays held in the child.
NO_THREAD_OF_JEMALLOC = ("JE_ARROW_MALLOC_CONF", "background_thread:false")


class _Parent:
    """The server's side: takes requests from the line, forks, and says how each child ended."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._controls: dict[int, socket.socket] = {}
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)

    def serve(self) -> dict[str, Any] | None:
        """Serve until the line closes, then return None; a fork returns its request instead."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal signals the children itself
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._line, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self._line:
                        os.read(self._woken, 4096)
                        self._say_who_ended()
                    elif (request := self._take()) is not None:
                        return request or None

    def _take(self) -> dict[str, Any] | None:
        """Take a request; return it in the fork, nothing in the server, an empty one when the line is closed."""
        sent, files, _, _ = socket.recv_fds(self._line, 1, 4)
        if not sent:
            return {}
        stdin, stdout, log, control = files
        line = socket.socket(fileno=control)
        with line.makefile("rb") as lines:
            request: dict[str, Any] = json.loads(lines.readline())
        _import_all(request["imports"], log)
        pid = 0
        if "target" in request and (pid := os.fork()) == 0:
            self._become_child(line, stdin, stdout, log)
            return request
        for each in (stdin, stdout, log):
            os.close(each)
        if pid:
            self._controls[pid] = line
            self._send(line, pid)
        else:
            line.close()
        return None

    def _become_child(self, line: socket.socket, *streams: int) -> None:
        """Be as a new interpreter is: its own streams and signals, no way to the others, random numbers of its own."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.dont_write_bytecode = True  # beside a wrapper that is loaded in place
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        for each in (self._line, line, *self._controls.values()):
            each.close()
        os.close(self._woken)
        os.close(self._wakes)
        random.seed()
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed()

    def _say_who_ended(self) -> None:
        while self._controls:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            line = self._controls.pop(pid)
            self._send(line, os.waitstatus_to_exitcode(status))
            line.close()

    @staticmethod
    def _send(line: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, or does not want to know
            line.sendall(f"{number}\n".encode())


def _import_all(modules: Iterable[str], log: int) -> None:
    """Import what is not yet there; what cannot be imported is left to the child, whose error it is."""
    missing = [module for module in modules if module not in sys.modules]
    if not missing:
        return
    os.dup2(log, 2)
    gc.disable()  # nothing that a module makes is garbage
    for module in missing:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.enable()
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    gc.collect()
    gc.freeze()  # a collection in a child would write to every object, and so copy the pages that it shares


def main() -> None:
    """Serve the requests of one command; in a fork, run the requested function."""
    from slmpack.machine import surroundings

    surroundings.prepare()
    os.environ.setdefault(*NO_THREAD_OF_JEMALLOC)
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    request = _Parent(line).serve()
    if request is None:
        return
    from slmpack.machine.child_main import run_target

    setproctitle(f"{sys.executable} -m slmpack.machine.child {request['target']}")  # ps shows what works
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if (threads := request["threads"]) is not None:
        os.environ[VARIABLE] = str(threads)
        if (torch := sys.modules.get("torch")) is not None:  # it has read the variable already
            torch.set_num_threads(threads)
    run_target(request["target"], request["argument"])


if __name__ == "__main__":
    # As a module of that name: a second copy would have a state of its own.
    importlib.import_module("slmpack.machine.fork_server").main()
