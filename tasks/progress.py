"""Progress in the dashboard: how far a stage is that may take minutes, as an artifact of its task's run."""

import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from slmpack import progress, records

SECONDS_BETWEEN_UPDATES = 2.0  # each is a request and an event: one a tensor would drown the server


@contextmanager
def progress_artifact(stage: str) -> Iterator[None]:
    """Keep a progress artifact up to date with what the library reports until the block, or the function, ends."""
    artifact: Any = create_progress_artifact(0.0, key=f"{stage}-progress", description=f"{stage} begins")
    latest = _Latest()
    ended = threading.Event()
    context = contextvars.copy_context()  # the thread writes to the server that the task talks to
    updates = threading.Thread(target=context.run, args=(_update, artifact, latest, ended), daemon=True)
    progress.logger.addHandler(latest)
    updates.start()
    try:
        yield
        latest.all_done = True
    finally:
        progress.logger.removeHandler(latest)
        ended.set()
        updates.join()


class _Latest(logging.Handler):
    """Remembers the last report; reporting does not wait for a server."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: records.Progress | None = None
        self.all_done = False

    def emit(self, record: logging.LogRecord) -> None:
        self.latest = record.progress  # type: ignore[attr-defined]

    def shown(self) -> tuple[float, str] | None:
        """Return percent and words; None while nobody knows how much there is to do."""
        latest = self.latest
        if self.all_done:
            return 100.0, "done"
        if latest is None or not latest.total:
            return None
        return round(
            100.0 * latest.done / latest.total, 1
        ), f"{latest.stage}: {latest.done:,} of {latest.total:,} {latest.unit}"


def _update(artifact: UUID, latest: _Latest, ended: threading.Event) -> None:
    """Write what changed, every few seconds and at the end; a server that is away for a moment stops no stage."""
    written = None
    while not (last := ended.wait(SECONDS_BETWEEN_UPDATES)) or written != latest.shown():
        shown = latest.shown()
        if shown is not None and shown != written:
            with suppress(Exception):
                update_progress_artifact(artifact, progress=shown[0], description=shown[1])
        written = shown
        if last:
            return
