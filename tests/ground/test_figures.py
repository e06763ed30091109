"""Figures: a number has one text, wherever it is shown and however often it was read back."""

import math
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from made_proofs import ALIAS, QUALITY, SPEED, proofs_of

from slmpack.figures import (
    bytes_shown,
    divergence_shown,
    fixed,
    limit_shown,
    milliseconds_shown,
    perplexity_shown,
    rate_shown,
    ratio_shown,
    share_shown,
    tag_of,
)
from slmpack.prove.timing import LEAST_REPEATS, REPEATS, measure_speed, spread_of
from slmpack.publish.find import find_published
from slmpack.publish.outcome import StageTimer, published_outcome, unchanged_outcome
from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.frontier import frontier_svg
from slmpack.publish.publish import publish_version
from slmpack.publish.summary import json_of, summary_lines
from slmpack.records import LoggedModel
from slmpack.reports import QualityPolicy

# Each of them lies just above the middle of two shown numbers, and its six digits just at it.
BETWEEN = QUALITY.model_copy(update={"perplexity_ratio": 1.07950004, "mean_kl": 0.18765003, "perplexity": 12.345003})
TIMED = SPEED.model_copy(update={
    "decode_tokens_per_second": 72.450004, "ttft_ms": 126.50004, "peak_rss_bytes": 459_150_123,
    "decode_p10_tokens_per_second": 70.150001, "decode_p90_tokens_per_second": 73.25, "ttft_p10_ms": 120.5,
    "ttft_p90_ms": 140.0, "speed_repeats": 5, "load_per_core": 0.355,
})  # fmt: skip


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (ratio_shown, 1.07950004, "1.080"), (ratio_shown, 1.0795, "1.080"), (ratio_shown, 1.0794999, "1.080"),
        (ratio_shown, math.nan, "nan"), (ratio_shown, 1e300, "1e+300"), (perplexity_shown, 12.6, "12.60"),
        (perplexity_shown, 1.23456, "1.235"), (perplexity_shown, 12345.6, "12,346"),
        (perplexity_shown, math.inf, "inf"),
        (limit_shown, 1.1, "1.10"), (limit_shown, 1.123, "1.123"), (limit_shown, 1000.0, "1,000.00"),
        (divergence_shown, 0.18765, "0.1876"), (share_shown, 0.875, "87.5%"), (rate_shown, 1234.56, "1,234.6"),
        (milliseconds_shown, 126.5, "126"), (bytes_shown, 90_039_855, "90.0 MB"), (bytes_shown, 7.25e9, "7.25 GB"),
        (bytes_shown, 999_999_999.0, "1.00 GB"),
    ],
)  # fmt: skip
def test_a_figure_is_written_in_its_digits(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text


@pytest.mark.parametrize("decimals", range(5))
def test_what_is_read_back_from_a_tag_is_written_like_the_number_itself(decimals: int) -> None:
    for step in range(2000):
        value = 0.9 + step * 1.00001e-4 + 4e-7
        assert fixed(value, decimals) == fixed(float(tag_of(value)), decimals)


@pytest.mark.slow
def test_a_figure_is_one_text_by_package_unchanged_page_summary_and_plot(
    store: Path, log_it: Callable[[], LoggedModel], name: str
) -> None:
    model = log_it()
    size = model.package.size_bytes
    attempt = Attempt(recipe="small", size_bytes=size, quality=BETWEEN, speed=TIMED, status="published")
    made = proofs_of(model, quality=BETWEEN, attempts=(attempt,))
    proofs = made.model_copy(update={"smoke": made.smoke.model_copy(update={"speed": TIMED})})

    published = publish_version(model, proofs)
    first = summary_lines(published_outcome(published, proofs, StageTimer()))
    found = find_published(name, model.digest, ALIAS)
    assert found is not None
    unchanged = unchanged_outcome(found, StageTimer())
    page = mlflow.artifacts.load_text(f"{published.page_uri}")

    assert summary_lines(unchanged)[1] == first[1]
    for text in ("1.080", "72.4 tokens/s (70.2 to 73.2)", "126 ms", "459.2 MB", bytes_shown(size)):
        assert text in first[1]
    for text in ("1.080", "0.1876", "72.4", "70.2 to 73.2", "126 ms", "459.2 MB", "12.34 over 12.00",
                 "load average 0.36 per core", bytes_shown(size)):  # fmt: skip
        assert text in page, text
    for text in ("1.080", "72.4", "126", "459.2 MB", bytes_shown(size)):
        assert f"| {text} |" in published.summary, published.summary
    plot = frontier_svg((attempt,), QualityPolicy())
    assert f"{bytes_shown(size)} at 1.080" in plot
    assert "72.4 tokens/s" in plot
    for text in ("1.079", "0.1877", "72.5", "12.35"):
        assert text not in page
    assert '"ttft_ms"' in json_of(unchanged)
    assert "p90" not in json_of(unchanged)  # the contract's object


def test_speed_is_the_median_of_repeats_with_its_spread_and_the_machines_load() -> None:
    timings = iter([(100.0, 50.0), (110.0, 40.0), (120.0, 60.0), (130.0, 45.0), (900.0, 5.0)])
    speed = measure_speed(lambda: next(timings), 1.5, lambda: 10**8)
    assert (speed.speed_repeats, speed.ttft_ms, speed.decode_tokens_per_second) == (REPEATS, 120.0, 45.0)
    assert (speed.ttft_p10_ms, speed.ttft_p90_ms) == spread_of([100.0, 110.0, 120.0, 130.0, 900.0])
    assert speed.decode_p10_tokens_per_second is not None
    assert speed.decode_p90_tokens_per_second is not None
    assert 5.0 < speed.decode_p10_tokens_per_second < 45.0 < speed.decode_p90_tokens_per_second < 60.0
    assert speed.load_per_core is not None
    assert LEAST_REPEATS <= REPEATS
