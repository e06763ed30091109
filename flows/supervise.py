"""The process that a person starts: it starts the one that works, and alone meets the terminal's signals.

    terminal, docker stop, CI --signals--> this process --one SIGINT--> worker, leader of a session of its own
                                                                         +-- builds, Prefect's temporary server, pip

A Ctrl-C goes to every process of the foreground group. Were Prefect's server one of them, it would be gone before the
flow has cleaned up, and each request for its state would be tried for minutes. So the worker has a session of its own,
is interrupted once, and has GRACE_SECONDS to clean up; then, or on a second Ctrl-C, its whole session is killed. A
worker whose supervisor is killed finds its end of the line closed, and kills its session itself.

A command that a person types to, `chat` without a prompt, says so on the line: then every Ctrl-C is passed on, and none
ends it. SIGTERM and SIGHUP end it as any other. One that ends by itself once it is interrupted, `serve`, says so, too:
then it has the time that it takes, and a second signal kills it.

Only the standard library is imported here: the first line is to come at once.
"""

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time

GRACE_SECONDS = 3.5
POLL_SECONDS = 1.0  # a process that the worker forked may hold its end of the line
SECONDS_OF_ONE_SIGNAL = 0.3  # `timeout` and make pass on to us what the group has had already
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BEGINS = b"!"
INTERACTIVE = b"?"  # SIGINT is the worker's own to answer from now on
ENDS_BY_ITSELF = b"~"  # when it is interrupted, with code 0, after the answers under way
INTERRUPTED = 130  # also how a worker says that it was interrupted and has cleaned up
LINE = "slmpack: interrupted; nothing was registered; run the same command to go on\n"


def supervise(arguments: list[str]) -> int:
    """Run a command in a worker and return its exit code: the worker's, or 128 and the number of a signal."""
    signals = _receive_signals()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "flows.cli_worker", str(theirs.fileno()), *arguments]
    with subprocess.Popen(command, start_new_session=True, pass_fds=[theirs.fileno()]) as worker:
        theirs.close()
        supervision = _Supervision(worker, ours, signals)
        try:
            number = supervision.follow()
            said = supervision.hear_rest()
        finally:  # its id is not given to another process before we have waited for it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)
    code = worker.returncode
    if supervision.ends_by_itself and code == 0 and said == 0:
        return 0
    if code == INTERRUPTED or (number is not None and code < 0):
        return _interrupted(number or signal.SIGINT)
    if code < 0:
        sys.stderr.write(
            f"slmpack: the command was killed by signal {-code}, as a machine does with what takes too "
            "much memory; expected it to reach its end; run the same command to go on\n"
        )
        return 128 - code
    if said is None:
        sys.stderr.write(
            f"slmpack: the command was left in its middle with code {code}, as the code of a loaded model "
            "can do; expected it to reach its end; load only models that you trust\n"
        )
        return code or 1
    return said  # not the exit code: code that ran in there may have set that


def _interrupted(number: int) -> int:
    """Say so, on a terminal below what was drawn there, and return the exit code."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[J\x1b[?25h")  # a killed worker leaves bars behind, and no cursor
    sys.stderr.write(LINE)
    return 128 + number


class _Supervision:
    """Waits for the worker's end, and ends it when a signal says so."""

    def __init__(self, worker: "subprocess.Popen[bytes]", line: socket.socket, signals: int) -> None:
        self._worker, self._line, self._signals = worker, line, signals
        self._works = False  # the worker has begun something that is to be cleaned up
        self._is_interactive = False
        self.ends_by_itself = False
        self._said: int | None = None  # the exit code that the worker ends with, as it says itself
        self._number: int | None = None
        self._since = 0.0

    def follow(self) -> int | None:
        """Return when the worker has ended or is to be killed; the signal, if there was one."""
        while not _has_ended(self._worker.pid):
            grace = math.inf if self.ends_by_itself else GRACE_SECONDS
            left = POLL_SECONDS if self._number is None else self._since + grace - time.monotonic()
            if left <= 0:
                break
            ready, _, _ = select.select([self._line.fileno(), self._signals], [], [], min(left, POLL_SECONDS))
            if self._signals in ready and any(map(self._is_last, os.read(self._signals, 64))):
                break
            if self._line.fileno() in ready:
                self._hear()
        return self._number

    def _hear(self) -> None:
        """Take what the worker says: BEGINS when it begins its work, how signals end it, in the end its exit code."""
        if said := self._line.recv(1):
            self._take(said)
        else:
            os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOWAIT)

    def hear_rest(self) -> int | None:
        """Return the exit code that the worker said before it ended; None if it did not come that far."""
        self._line.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while said := self._line.recv(1):
                self._take(said)
        return self._said

    def _take(self, said: bytes) -> None:
        self._works = True
        self._is_interactive = self._is_interactive or said == INTERACTIVE
        self.ends_by_itself = self.ends_by_itself or said == ENDS_BY_ITSELF
        self._said = None if said in (BEGINS, INTERACTIVE, ENDS_BY_ITSELF) else said[0]

    def _is_last(self, number: int) -> bool:
        """Act on a signal; say whether there is nothing left to wait for."""
        if number == signal.SIGTSTP:
            self._pause()
        if number == signal.SIGWINCH or (number == signal.SIGINT and self._is_interactive):
            self._worker.send_signal(number)
            return False
        if number not in ENDS:
            return False
        if self._number is None:
            self._number, self._since = number, time.monotonic()
            ends = signal.SIGTERM if self._is_interactive else signal.SIGINT
            self._worker.send_signal(ends if self._works else signal.SIGKILL)
            return False
        return time.monotonic() - self._since > SECONDS_OF_ONE_SIGNAL

    def _pause(self) -> None:
        """Stop with all that works, as Ctrl-Z asks, and go on with it."""
        os.killpg(self._worker.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(self._worker.pid, signal.SIGCONT)


def _receive_signals() -> int:
    """Return a file descriptor from which the numbers of the signals are read; one that is ignored stays so."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for each in (*ENDS, signal.SIGTSTP, signal.SIGWINCH):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: None)
    return reading


def _has_ended(pid: int) -> bool:
    """Say whether a child has ended; its id stays its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
