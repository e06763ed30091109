"""What a person sees while a flow runs. All of it on stderr.

a terminal         one live line: the stage, its bar, how much is done and left; a line with a tick when it has ended
NO_COLOR, CI,      plain lines: when a stage begins and ends, what the library says meanwhile, and every few seconds
a file or a pipe   how far it is
"""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from flows.pace import Pace, duration_shown
from slmpack import progress, records
from slmpack.plain_text import harmless

if TYPE_CHECKING:
    from slmpack.publish.outcome import StageEvent

SECONDS_BETWEEN_LINES = 5.0
STAGE_CHARACTERS = 12
TICK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"


def is_live(console: Console) -> bool:
    """Say whether lines may be drawn over: on a terminal, unless the user or a build server wants plain ones."""
    wants_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("CI", "").lower() not in {"", "0", "false"}
    return console.is_terminal and not console.is_dumb_terminal and not wants_plain


class Display:
    """Shows the library's log lines and progress from `with` to its end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._shown = _Live(self._console) if is_live(self._console) else _Plain(self._console)
        self._handlers = (
            (progress.logger, _Handler(logging.NOTSET, self._shown.progress)),
            (logging.getLogger("slmpack"), _Handler(logging.INFO, self._shown.message)),
        )

    def __enter__(self) -> "Display":
        for logger, handler in self._handlers:
            logger.addHandler(handler)
        logging.getLogger("slmpack").setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
        self._shown.stop()

    def say(self, line: str) -> None:
        """Print one line for a person."""
        self._shown.say(line)

    def doing(self, what: str) -> None:
        """Say what takes its time before the first stage."""
        self._shown.doing(what)


class _Handler(logging.Handler):
    """Passes records on; a handler's own `close` is harmless, since Prefect closes every handler that it finds."""

    def __init__(self, level: int, show: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(level)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record)


class _Plain:
    """A line for every log record, and one every few seconds for what is counted."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._warned: set[str] = set()
        self._counts: dict[str, tuple[Pace, float, int]] = {}

    def say(self, line: str) -> None:
        self._console.print(harmless(line), markup=False, soft_wrap=True)

    def doing(self, what: str) -> None:
        self.say(f"{what} ...")

    def message(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if not _is_repeated(record, line, self._warned):
            self.say(line)

    def progress(self, record: logging.LogRecord) -> None:
        progress: records.Progress = record.progress  # type: ignore[attr-defined]
        now = time.monotonic()
        label = f"{progress.stage}, {progress.unit}"
        pace, shown_at, shown = self._counts.setdefault(label, (Pace(), now, -1))
        words = pace.words(progress)
        if progress.done == shown or (progress.done != progress.total and now - shown_at < SECONDS_BETWEEN_LINES):
            return
        self._counts[label] = (pace, now, progress.done)
        self.say(f"  {progress.stage}: {words}")

    def stop(self) -> None:
        """Leave everything as it is."""


class _Live:
    """One line that moves, for the stage that runs; above it a line for each that has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._bar.start()
        self._task: TaskID | None = None
        self._paces: dict[str, Pace] = {}
        self._warned: set[str] = set()
        self._said = ""

    def say(self, line: str) -> None:
        self._end_line()
        self._console.print(harmless(line), markup=False, soft_wrap=True)

    def doing(self, what: str) -> None:
        self._begin_line(what)

    def message(self, record: logging.LogRecord) -> None:
        event: StageEvent | None = getattr(record, "stage", None)
        line = harmless(record.getMessage())
        if event is not None:
            self._stage(event)
        elif record.levelno >= logging.WARNING:
            if not _is_repeated(record, line, self._warned):
                self._console.print(f"! {line}", style="yellow", markup=False, soft_wrap=True)
        else:
            self._said = " ".join(line.split())
            self._update(words=self._said)

    def _stage(self, event: "StageEvent") -> None:
        if event.seconds is None:
            self._begin_line(event.name)
            return
        self._end_line()
        mark = (TICK, "green") if event.held else (CROSS, "red")
        took = f" {event.name:<{STAGE_CHARACTERS}}{_took(event.seconds):>8}  "
        self._console.print(Text.assemble(mark, took, (self._said, "dim")), no_wrap=True, overflow="ellipsis")

    def progress(self, record: logging.LogRecord) -> None:
        progress: records.Progress = record.progress  # type: ignore[attr-defined]
        label = f"{progress.stage}, {progress.unit}"
        is_first = label not in self._paces
        words = self._paces.setdefault(label, Pace()).words(progress)
        if progress.total is not None and progress.done >= progress.total:  # its bar leaves; the stage goes on
            self._paces.pop(label)
            self._update(total=None, completed=0, words="")
        else:
            self._update(total=progress.total, completed=progress.done, words=words)
            if is_first:
                self._bar.refresh()  # a count that ends before the next frame, 0.1 s on, is seen, too

    def _begin_line(self, what: str) -> None:
        self._end_line()
        self._said = ""
        self._task = self._bar.add_task(f"{what:<{STAGE_CHARACTERS}}", total=None, words="")

    def _update(self, **changed: object) -> None:
        if self._task is None:
            return
        if "total" in changed:
            task = next(task for task in self._bar.tasks if task.id == self._task)
            task.total = changed.pop("total")  # type: ignore[assignment] # `update` takes None for no change
        self._bar.update(self._task, **changed)  # type: ignore[arg-type]

    def _end_line(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.refresh()  # else what is printed next is followed by the line once more
            self._task = None

    def stop(self) -> None:
        """Take the line away."""
        self._end_line()
        self._bar.stop()


def _is_repeated(record: logging.LogRecord, line: str, warned: set[str]) -> bool:
    """Say whether the same warning was shown before: a flow finds again what was found before it began."""
    if record.levelno < logging.WARNING:
        return False
    was_shown = line in warned
    warned.add(line)
    return was_shown


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else duration_shown(seconds)
