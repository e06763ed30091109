"""The frontier: every attempt is there, nothing breaks the drawing, and the same attempts give the same bytes."""

import math
import re
from itertools import pairwise
from typing import Literal
from xml.etree import ElementTree

import pytest

from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.frontier import frontier_svg
from slmpack.reports import Quality, QualityPolicy, Speed

POLICY = QualityPolicy(max_perplexity_ratio=1.1)
SVG = "{http://www.w3.org/2000/svg}"


def quality(ratio: float) -> Quality:
    return Quality(
        perplexity=12 * ratio, source_perplexity=12, perplexity_ratio=ratio, mean_kl=0.02, p99_kl=0.3,
        top1_agreement=0.9, tokens=2000, new_loops=0, seconds_per_1000_tokens=3,
    )  # fmt: skip


def attempt(
    recipe: str, megabytes: float, ratio: float | None, status: Literal["published", "refused", "failed"] = "refused"
) -> Attempt:
    speed = Speed(decode_tokens_per_second=61.25, ttft_ms=80, load_seconds=1, peak_rss_bytes=4 * 10**8)
    measured = None if ratio is None else quality(ratio)
    return Attempt(recipe=recipe, size_bytes=int(megabytes * 1e6), quality=measured, speed=speed, status=status)


EIGHT = (
    attempt("small", 110, 1.16), attempt("stock-small", 110, 1.31), attempt("balanced", 118, 1.061, "published"),
    attempt("stock-mixed", 121, 1.12), attempt("accurate", 134, 1.03), attempt("best", 118, 1.05),
    attempt("seventh", 118, 1.05), attempt("eighth", 118, 1.051, "failed"),
)  # fmt: skip


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Every text of the drawing with its place, which also proves that the drawing is well-formed XML."""
    return {
        "".join(text.itertext()): (float(text.get("x", "nan")), float(text.get("y", "nan")))
        for text in ElementTree.fromstring(svg).iter(f"{SVG}text")
    }


@pytest.mark.parametrize("count", range(1, 9))
def test_labels_every_rung_with_recipe_and_speed_and_no_label_covers_another(count: int) -> None:
    attempts = EIGHT[:count]
    svg = frontier_svg(attempts, POLICY)
    found = texts(svg)
    labels = [found[one.recipe + (", chosen" if one.status == "published" else "")] for one in attempts]
    heights = sorted(y for _, y in labels)
    assert all(below - above > 20 for above, below in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < found["size, MB"][1]
    assert {x for x, _ in labels} == {labels[0][0]}, "labels stand in one column"
    assert svg.count(">61.2 tokens/s<") == count
    assert "limit 1.10" in found


def test_same_rungs_give_the_same_bytes() -> None:
    assert frontier_svg(EIGHT, POLICY) == frontier_svg(EIGHT, POLICY)


def test_draws_the_chosen_rung_below_the_limit_and_a_refused_one_above_it() -> None:
    attempts = (attempt("good", 118, 1.02, "published"), attempt("bad", 100, 1.3))
    found = texts(frontier_svg(attempts, POLICY))
    assert found["bad"][1] < found["limit 1.10"][1] < found["good, chosen"][1]


def test_keeps_good_rungs_apart_when_one_is_far_off() -> None:
    svg = frontier_svg(
        (attempt("good", 118, 1.02, "published"), attempt("fair", 110, 1.09), attempt("lost", 90, 5e4)), POLICY
    )
    drawn = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', svg)
    good, fair, lost = (float(y) for _, y in drawn[-3:])
    assert good - fair > 5
    assert fair - lost > 50


@pytest.mark.parametrize("ratio", [None, math.nan, math.inf, -1.0, 0.0, 1e300])
def test_lists_a_rung_without_a_usable_ratio_below_the_drawing(ratio: float | None) -> None:
    found = texts(frontier_svg((EIGHT[2], attempt("broken", 100, ratio, "failed")), POLICY))
    (line,) = [text for text in found if text.startswith("broken, 100.0 MB, 61.2 tokens/s: ")]
    assert found[line][1] > found["size, MB"][1]


def test_says_why_a_rung_was_not_built_and_gives_it_no_figures() -> None:
    reason = "rows of 3 blocks; an even number; use --recipe small"
    unbuilt = Attempt(recipe="balanced", size_bytes=None, quality=None, speed=None, status="not built", reason=reason)
    svg = frontier_svg((EIGHT[0], unbuilt, EIGHT[4]), POLICY)
    (line,) = [text for text in texts(svg) if text.startswith("balanced")]
    assert line == "balanced, not built: rows of 3 blocks; an even number; use --recipe sma…"
    assert "balanced not built" in svg
    assert "balanced, not built" in next(iter(texts(frontier_svg((unbuilt,), POLICY))))


def test_draws_nothing_but_lines_of_text_when_no_rung_was_measured() -> None:
    found = texts(frontier_svg((attempt("one", 100, None, "failed"), attempt("two", 110, None, "failed")), POLICY))
    assert sorted(text.partition(",")[0] for text in found) == ["one", "two"]
    assert not texts(frontier_svg((), POLICY))


def test_takes_hostile_names_and_reasons_as_text() -> None:
    name = "$x^2$<script>\x00\ud800"
    found = texts(frontier_svg((attempt(name, 100, 1.01), attempt("<b>" * 999, 100, None)), POLICY))
    assert "$x^2$<script>\ufffd\ufffd" in found
    assert max(map(len, found)) < 100


def test_has_no_date_no_font_file_and_no_address() -> None:
    svg = frontier_svg(EIGHT, POLICY)
    assert svg.startswith("<svg ")
    assert "<metadata" not in svg
    assert not re.search(r'(href|src)="(?!#)', svg)
    assert set(re.findall(r"https?://[^\"]+", svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_follows_the_colours_of_its_page() -> None:
    svg = frontier_svg(EIGHT, POLICY)
    styles = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
    assert {style for style in styles if style.startswith("#")} == set()
    assert any(style.startswith("var(--good") for style in styles)
