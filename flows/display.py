"""What a person sees while a flow runs: a live display on a terminal, plain lines elsewhere. All of it on stderr."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from slmpack import progress, records
from slmpack.plain_text import harmless

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Shows the library's log lines and progress from `with` to its end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = _Bars(self._console) if self._console.is_terminal else None
        shown = self._bars or _Lines(self._console)
        self._handlers = ((progress.logger, shown), (logging.getLogger("slmpack"), _Messages(self._console)))

    def __enter__(self) -> "Display":
        for logger, handler in self._handlers:
            logger.addHandler(handler)
        logging.getLogger("slmpack").setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Print one line for a person."""
        self._console.print(harmless(line), markup=False, soft_wrap=True)


class _Messages(logging.Handler):
    """The library's own log lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(harmless(record.getMessage()), markup=False, soft_wrap=True)


class _Bars(logging.Handler):
    """One bar for each stage and unit, on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (TextColumn("{task.description:>28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._progress.start()
        self._tasks: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        told: records.Progress = record.progress  # type: ignore[attr-defined]
        label = f"{told.stage}, {told.unit}"
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label)
        self._progress.update(self._tasks[label], completed=told.done, total=told.total)

    def stop(self) -> None:
        """Take the bars away. Not `close`: whoever sets up logging anew, as Prefect does, closes every handler."""
        self._progress.stop()


class _Lines(logging.Handler):
    """A line every few seconds, and one when all is done."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._shown: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        told: records.Progress = record.progress  # type: ignore[attr-defined]
        label, now = f"{told.stage}, {told.unit}", time.monotonic()
        shown_at, shown = self._shown.setdefault(label, (now, -1))
        if told.done == shown or (told.done != told.total and now - shown_at < SECONDS_BETWEEN_LINES):
            return
        self._shown[label] = (now, told.done)
        of = f" of {told.total:,}" if told.total is not None else ""
        self._console.print(f"  {told.stage}: {told.done:,}{of} {told.unit}", markup=False, soft_wrap=True)
