"""What every command says by itself: what it begins with, and what went wrong. Nothing heavy is imported for it."""

import socket
import sys
import threading

from flows.supervise import ENDS_BY_ITSELF, INTERACTIVE, INTERRUPTED

OK, FAILED, USAGE = 0, 1, 2
interrupted = threading.Event()  # set by the signal: it may come where a library makes an error of its own of it
supervisor: list[socket.socket] = []  # the line to the process that started this one; none in a test


def take_over_ctrl_c() -> None:
    """Say that from now on SIGINT is this command's own to answer; what ends the command is SIGTERM."""
    for line in supervisor:
        line.send(INTERACTIVE)


def end_by_itself() -> None:
    """Say that from now on this command ends by itself when it is interrupted, and takes its time for that."""
    for line in supervisor:
        line.send(ENDS_BY_ITSELF)


def begin(line: str) -> None:
    """Say what is being done, before what takes seconds to import."""
    from slmpack.plain_text import tag_text

    sys.stderr.write(f"{tag_text(line)} ...\n")
    sys.stderr.flush()


def complain(message: object, code: int) -> int:
    """Write an error in one line and return the exit code; what an interruption broke is not worth a line."""
    if interrupted.is_set():
        return INTERRUPTED
    from slmpack.plain_text import tag_text

    sys.stderr.write(f"{tag_text(f'slmpack: {message}')}\n")
    return code
