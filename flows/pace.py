"""Pace: how far a stage is, in words: MB and the rate where bytes are counted, and the time that is left."""

import time

from slmpack.figures import bytes_shown
from slmpack.records import Progress

SETTLED_SECONDS = 1.0  # before it a rate is a guess


class Pace:
    """Follows one count of a stage, from its first report on."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._begun_with = 0
        self._done = 0

    def words(self, progress: Progress, now: float | None = None) -> str:
        """Return `45.2 MB of 90.0 MB, 12.3 MB/s, 4 s left`, or `3 of 6 answers`.

        Args:
            now: seconds of a clock that only goes on; None for this moment.
        """
        now = time.monotonic() if now is None else now
        if self._since is None or progress.done < self._done:  # counted anew, as the next file is
            self._since, self._begun_with = now, progress.done
        self._done = progress.done
        seconds = now - self._since
        rate = (progress.done - self._begun_with) / seconds if seconds >= SETTLED_SECONDS else 0.0
        return ", ".join(filter(None, (_amount(progress), _rate(progress, rate), _left(progress, rate))))


def _amount(progress: Progress) -> str:
    if not _counts_bytes(progress):
        of = "" if progress.total is None else f" of {progress.total:,}"
        return f"{progress.done:,}{of} {progress.unit}"
    what = progress.unit.removeprefix("bytes")
    of = "" if progress.total is None else f" of {bytes_shown(progress.total)}"
    return f"{bytes_shown(progress.done)}{of}{what}"


def _rate(progress: Progress, rate: float) -> str:
    return f"{bytes_shown(rate)}/s" if rate and _counts_bytes(progress) else ""


def _left(progress: Progress, rate: float) -> str:
    if not rate or progress.total is None or progress.done >= progress.total:
        return ""
    return f"{duration_shown((progress.total - progress.done) / rate)} left"


def _counts_bytes(progress: Progress) -> bool:
    return progress.unit.split()[0] == "bytes"


def duration_shown(seconds: float) -> str:
    """Return `4 s`, `2 min` or `1 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
