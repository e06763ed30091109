"""The real command with a terminal of its own, or with pipes: what is typed, and what it says."""

import codecs
import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from pathlib import Path

from command_line import SLMPACK, environment

CTRL_C, CTRL_D = "\x03", "\x04"
SILENT_SECONDS = 600.0


class TerminalCommand:
    """`slmpack` in a session of its own, with a terminal or a pipe for what it says, all of it in `said`."""

    def __init__(self, arguments: list[str], folder: Path, *, terminal: bool, **extra: str) -> None:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.ours = ours
        self.process = subprocess.Popen(
            [SLMPACK, *arguments], cwd=folder, stdin=theirs if terminal else subprocess.DEVNULL, stdout=theirs,
            stderr=theirs, env=environment(TERM="xterm", **extra),
            start_new_session=True, preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509
        )  # fmt: skip
        os.close(theirs)
        self.said = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a block may end within a character

    def press(self, keys: str) -> None:
        """Type into the terminal."""
        os.write(self.ours, keys.encode())

    def until(self, words: str, seconds: float = SILENT_SECONDS) -> None:
        """Read until it has said so."""
        deadline = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self.read(), self.said

    def code(self) -> int:
        """Read to the end and return the exit code."""
        while self.read():
            pass
        return self.process.wait()

    def lines(self) -> list[str]:
        """Return what it said without the sequences for terminals."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.said).splitlines()

    def read(self) -> bool:
        """Add what it says next; False at the end."""
        assert select.select([self.ours], [], [], SILENT_SECONDS)[0], f"silent after {self.said!r}"
        try:
            block = os.read(self.ours, 4096)
        except OSError:  # how Linux says that the other end of a terminal is closed
            return False
        self.said += self._decoder.decode(block)
        return bool(block)


def _take_terminal() -> None:
    """Make the standard input the controlling terminal, so that Ctrl-C there interrupts this process's group."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
