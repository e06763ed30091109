"""The child's side of `slmpack.machine.child`: run one function, send its events to the parent, end with the parent."""

import importlib
import inspect
import json
import logging
import os
import sys
import threading
import traceback
from typing import IO

from slmpack import progress
from slmpack.machine import surroundings
from slmpack.machine.expected import expected_error
from slmpack.machine.process_tree import kill_children
from slmpack.plain_text import tag_text


class _Events:
    """Where this process sends its events, if it is a child."""

    stream: IO[str] | None = None


def is_child() -> bool:
    """Say whether this process is a child that sends events."""
    return _Events.stream is not None


def send(**event: object) -> None:
    """Send an event to the parent; in a process that is no child there is none."""
    if _Events.stream is not None:
        _Events.stream.write(json.dumps(event) + "\n")


def read_argument() -> str:
    """Return the line that the parent sends first; what comes after it, its end, is left to be read."""
    content = bytearray()
    while not content.endswith(b"\n"):
        if not (block := os.read(0, 1 << 16)):  # the parent is gone
            sys.exit(1)
        content += block
    return content.decode()


def run_target(target: str, argument: str) -> None:
    """Call `module:function` with its argument and send its result to the parent.

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
        reported = expected_error(error) or error
        # first: a full disk takes no traceback
        send(error=tag_text(str(reported)), kind=type(reported).__name__)
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()


def _take_stdout() -> None:
    """Keep the standard output for events, and let everything else that is printed go to the log."""
    _Events.stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)


def _leave_with_parent() -> None:
    """End this process and its children when the parent is gone: the kernel then closes our standard input."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold while the interpreter ends
        kill_children(os.getpid())
        os._exit(1)

    threading.Thread(target=wait, name="slmpack-parent-watch", daemon=True).start()
