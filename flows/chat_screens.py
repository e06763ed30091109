"""Where an interactive chat is read from and shown: a terminal, or a pipe with a question a line.

At a terminal Ctrl-C stops the answer under way, or drops the line that is being typed; at an empty prompt the second
one in a row ends the chat. Answers go to stdout, all else to stderr.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import NoReturn

from flows.cli_lines import complain, interrupted, take_over_ctrl_c
from slmpack.errors import SlmpackError, UsageError
from slmpack.plain_text import harmless, tag_text

PROMPT = "> "
MOST_PROMPT_BYTES = 16 << 20  # far beyond any context window
ALARM_SECONDS = 0.25
HINT = "Ctrl-C again, Ctrl-D or /exit ends the chat"


def show(piece: str) -> None:
    """Write a part of an answer; a pipe gets what the model said, byte for byte, a terminal nothing that it obeys."""
    sys.stdout.write(harmless(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


class _Screen:
    """What both have in common."""

    def write(self, piece: str) -> None:
        show(piece)

    def say(self, line: str) -> None:
        sys.stderr.write(f"{tag_text(line)}\n")
        sys.stderr.flush()

    def end_answer(self) -> None:
        show("\n")


class Pipe(_Screen):
    """Questions come one a line; the first failure, or Ctrl-C, ends the command."""

    def read(self) -> str | None:
        """Return the next line.

        Raises:
            UsageError: it is too long, or not text.
        """
        line = sys.stdin.buffer.readline(MOST_PROMPT_BYTES + 1)
        return read_text(line).rstrip("\r\n") if line else None

    def complain(self, error: SlmpackError) -> NoReturn:
        raise error

    def interruptible(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def stopped(self) -> NoReturn:
        raise KeyboardInterrupt


class Terminal(_Screen):
    """A person types, with readline's keys and history; a failure is shown, and the chat goes on."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # a Python that was built without it
            import readline  # noqa: F401 - `input` uses it once it is imported
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # ends the command
        signal.signal(signal.SIGALRM, lambda *_: None)
        self._ctrl_c = _CtrlC()
        signal.signal(signal.SIGINT, self._ctrl_c.press)
        take_over_ctrl_c()
        self._hinted = False
        self.say("/help lists the commands")

    def read(self) -> str | None:
        """Return the line that was typed; None at its end."""
        while True:
            try:
                with self._ctrl_c, _alarms():
                    line = _typed_line()
                line.encode()  # bytes that are no text come as halves of surrogate pairs
            except EOFError:
                sys.stderr.write("\n")
                return None
            except UnicodeError:
                self.complain(UsageError("the line is not UTF-8", "UTF-8 text", "type it again"))
                continue
            except KeyboardInterrupt:
                if self._ends_at_ctrl_c():
                    return None
                continue
            self._hinted = False
            return line

    def _ends_at_ctrl_c(self) -> bool:
        """Say whether this was the second Ctrl-C at an empty prompt."""
        self._require_running()
        sys.stderr.write("\n")
        if self._ctrl_c.typed:
            self._hinted = False
        elif self._hinted:
            return True
        else:
            self._hinted = True
            self.say(HINT)
        return False

    def complain(self, error: SlmpackError) -> None:
        complain(error, 0)

    def interruptible(self) -> AbstractContextManager[object]:
        return self._ctrl_c

    def stopped(self) -> None:
        self._require_running()
        show("\n")
        self.say("stopped; the answer belongs to the chat as far as it came")

    @staticmethod
    def _require_running() -> None:
        """Let what ends the whole command pass.

        Raises:
            KeyboardInterrupt: it does.
        """
        if interrupted.is_set():
            raise KeyboardInterrupt


class _CtrlC(AbstractContextManager["_CtrlC"]):
    """Raises KeyboardInterrupt for one Ctrl-C within its block, and for none elsewhere.

    Attributes:
        typed: what was on the line when Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.typed = ""
        self._is_awaited = False

    def __enter__(self) -> "_CtrlC":
        self._is_awaited = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_awaited = False

    def press(self, _number: int, _frame: FrameType | None) -> None:
        """Answer the signal."""
        if self._is_awaited:
            self._is_awaited = False
            if (readline := sys.modules.get("readline")) is not None:
                self.typed = readline.get_line_buffer()
            raise KeyboardInterrupt


@contextlib.contextmanager
def _alarms() -> Iterator[None]:
    """Interrupt what waits for a key now and then.

    Readline looks for signals only when its `select` ends. One that comes just before that, or to another thread, would
    wait for the next key.
    """
    signal.setitimer(signal.ITIMER_REAL, ALARM_SECONDS, ALARM_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _typed_line() -> str:
    """Return a line; `input` has readline's keys where both ends are a terminal, and writes its prompt to stdout."""
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.rstrip("\n")


def read_text(content: bytes) -> str:
    """Return the text that standard input held.

    Raises:
        UsageError: it is too long, or not text.
    """
    if len(content) > MOST_PROMPT_BYTES:
        raise UsageError(
            "the prompt on standard input is too long", f"at most {MOST_PROMPT_BYTES:,} bytes", "shorten it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"byte {error.start} of standard input is not UTF-8", "UTF-8 text", "convert it") from error
