"""Timing: the speed of one answer, measured several times, with its spread and what else the machine did meanwhile."""

import os
import statistics
import time
from collections.abc import Callable

from slmpack.progress import report
from slmpack.reports import Speed

REPEATS, LEAST_REPEATS = 5, 3
ENOUGH_SECONDS = 20.0  # after that, a slow model answers no more often than LEAST_REPEATS

Timing = tuple[float, float]  # milliseconds to the first token, decoded tokens a second


def measure_speed(once: Callable[[], Timing], load_seconds: float, peak_rss_bytes: Callable[[], int]) -> Speed:
    """Measure an answer several times; the figures are medians, with the 10th and the 90th percentile beside them.

    Args:
        once: asks for one answer.
        load_seconds: what loading took.
        peak_rss_bytes: read at the end.
    """
    timings = _repeat(once)
    first_ms, decode = ([timing[index] for timing in timings] for index in (0, 1))
    (ttft_p10, ttft_p90), (decode_p10, decode_p90) = spread_of(first_ms), spread_of(decode)
    return Speed(
        decode_tokens_per_second=statistics.median(decode),
        ttft_ms=statistics.median(first_ms),
        load_seconds=load_seconds,
        peak_rss_bytes=peak_rss_bytes(),
        decode_p10_tokens_per_second=decode_p10,
        decode_p90_tokens_per_second=decode_p90,
        ttft_p10_ms=ttft_p10,
        ttft_p90_ms=ttft_p90,
        speed_repeats=len(timings),
        load_per_core=load_per_core(),
    )


def _repeat(once: Callable[[], Timing]) -> list[Timing]:
    timings: list[Timing] = []
    started = time.perf_counter()
    while len(timings) < REPEATS:
        if len(timings) >= LEAST_REPEATS and time.perf_counter() - started > ENOUGH_SECONDS:
            break
        timings.append(once())
        report("smoke", len(timings), REPEATS, "timed answers")
    return timings


def spread_of(values: list[float]) -> tuple[float, float]:
    """Return the 10th and the 90th percentile of two values or more, interpolated."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def load_per_core() -> float:
    """Return the system's load average of the last minute by its logical cores: 1.0 is a machine that is just busy."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)
