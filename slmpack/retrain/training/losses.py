"""The loss curve, while a training runs: the child writes a line a step, its parent reads them.

child --losses.jsonl, a `TrainingPoint` a line--> `following` --on_point--> log, metrics, a page
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slmpack.records import Record

logger = logging.getLogger(__name__)

LOSSES = "losses.jsonl"
LOOK_SECONDS = 1.0


class TrainingPoint(Record):
    """How training stood after a step.

    Attributes:
        step: steps done, from 1.
        steps: how many there will be.
        loss: mean cross-entropy of this step's answers, nats a token.
        learning_rate: that this step was made with.
        tokens: read since the beginning, padding left out.
        seconds: trained since the beginning, those of an interrupted run up to its checkpoint included.
        tokens_per_second: since this process began.
        seconds_left: as fast as since this process began.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    tokens_per_second: float
    seconds_left: float

    @property
    def shown(self) -> str:
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        return (
            f"step {self.step} of {self.steps}: loss {self.loss:.3f}, {self.tokens_per_second:,.0f} tokens/s, "
            f"{left} left"
        )


OnPoint = Callable[[TrainingPoint], object]


def read_points(path: Path) -> list[TrainingPoint]:
    """Return the points of a file, the last one only if it is whole; none if there is no file."""
    return _read_from(path, 0)[0]


def _read_from(path: Path, position: int) -> tuple[list[TrainingPoint], int]:
    """Return the whole lines after a byte, and the byte after them."""
    if not path.is_file():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        *lines, rest = file.read().split(b"\n")
        return [TrainingPoint.model_validate_json(line) for line in lines], file.tell() - len(rest)


def write_points(path: Path, points: list[TrainingPoint]) -> None:
    """Write a file anew."""
    path.write_text("".join(f"{point.model_dump_json()}\n" for point in points))


@contextmanager
def following(path: Path, on_point: OnPoint) -> Iterator[None]:
    """Call `on_point` with every point of a file, those that are there first, in another thread and this context.

    If it fails it is not called again, and training goes on: the whole curve is in the result.
    """
    done = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            last = done.wait(LOOK_SECONDS)
            points, position = _read_from(path, position)
            for point in points:
                try:
                    on_point(point)
                except Exception as error:
                    logger.warning("the loss curve ends here (%s: %s)", type(error).__name__, error)
                    return
            if last:
                return

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(follow,), name="slmpack-losses", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
