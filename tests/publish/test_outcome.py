"""Outcome: what a run says in which no recipe passed."""

from slmpack.errors import BuildError, QualityError, RecipeError
from slmpack.publish.attempts import error_of, last_refused, unbuilt_attempt
from slmpack.publish.outcome import failed_outcome
from slmpack.publish.page.attempt import Attempt
from slmpack.records import Recipe, Target
from slmpack.reports import Quality, Speed

QUALITY = Quality(
    perplexity=14.4, source_perplexity=12, perplexity_ratio=1.2, mean_kl=0.02, p99_kl=0.3, top1_agreement=0.9,
    tokens=2000, new_loops=0, seconds_per_1000_tokens=3,
)  # fmt: skip
SPEED = Speed(decode_tokens_per_second=61.25, ttft_ms=80, load_seconds=1, peak_rss_bytes=4 * 10**8)
REFUSED = Attempt(
    recipe="small", size_bytes=10**8, quality=QUALITY, speed=SPEED, status="refused",
    reason="perplexity ratio 1.20; at most 1.10; the next recipe is tried",
)  # fmt: skip
ODD = unbuilt_attempt(Recipe.BALANCED, RecipeError("rows of 3 blocks", "an even number", "use --recipe small"))
LARGE = unbuilt_attempt(Recipe.ACCURATE, RecipeError("19.2 GB are needed", "12.1 GB are free", "use --recipe small"))


def test_an_unbuilt_attempt_has_a_reason_and_no_figures() -> None:
    assert (ODD.recipe, ODD.status, ODD.size_bytes, ODD.quality, ODD.speed) == (
        "balanced",
        "not built",
        None,
        None,
        None,
    )
    assert ODD.reason == "rows of 3 blocks; an even number; use --recipe small"


def test_when_no_recipe_can_be_built_the_last_reason_is_told_with_the_others() -> None:
    error = error_of((ODD, LARGE))
    assert isinstance(error, BuildError)
    assert str(error) == (
        "accurate: not built: 19.2 GB are needed; 12.1 GB are free; use --recipe small; "
        "also tried: balanced: not built: rows of 3 blocks"
    )
    outcome = failed_outcome(Target.CPU_INT4, error)
    assert (outcome.status, outcome.recipe, outcome.size_bytes) == ("failed", None, None)
    assert outcome.reason == str(error)


def test_a_refusal_by_the_policy_counts_for_more_than_a_recipe_that_was_not_built() -> None:
    error = error_of((REFUSED, ODD))
    assert isinstance(error, QualityError)
    assert error.quality == QUALITY
    assert str(error).endswith("use --recipe small; also tried: small: perplexity ratio 1.20")
    outcome = failed_outcome(Target.CPU_INT4, error)
    assert (outcome.status, outcome.recipe, outcome.size_bytes) == ("refused", "small", 10**8)
    assert outcome.speed == SPEED


def test_the_last_refused_attempt_is_the_dearest_that_was_built() -> None:
    assert last_refused((REFUSED, ODD, LARGE)) is REFUSED
    assert last_refused((ODD, LARGE)) is None
