"""How the next token is chosen."""

from collections import Counter

import numpy as np
import pytest

from slmpack.serve.sampling import Sampler, SamplingRule, log_softmax

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))


def shares(rule: SamplingRule, count: int = 20_000) -> dict[int, float]:
    sampler = Sampler(rule)
    found = Counter(sampler.choose(LOGITS).token for _ in range(count))
    return {token: found[token] / count for token in sorted(found)}


def test_without_a_temperature_the_likeliest_token_is_taken() -> None:
    assert shares(SamplingRule(), 50) == {0: 1.0}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    assert shares(SamplingRule(temperature=1, seed=1)) == pytest.approx(
        {0: 0.5, 1: 0.2, 2: 0.15, 3: 0.1, 4: 0.05}, abs=0.015
    )


def test_a_temperature_sharpens_before_top_p_cuts() -> None:
    """At 0.5 the probabilities are squared: .25 .04 .0225 .01 .0025 of .325; two tokens hold .89."""
    assert shares(SamplingRule(temperature=0.5, top_p=0.8, seed=1)) == pytest.approx({0: 25 / 29, 1: 4 / 29}, abs=0.015)


def test_top_k_leaves_the_likeliest() -> None:
    assert shares(SamplingRule(temperature=1, top_k=2, seed=1)) == pytest.approx({0: 5 / 7, 1: 2 / 7}, abs=0.015)


def test_top_p_counts_within_top_k() -> None:
    """Of .5 .2 .15 the first two hold .82, the first .59; of all five tokens it holds .5."""
    assert shares(SamplingRule(temperature=1, top_k=3, top_p=0.6, seed=1)) == pytest.approx(
        {0: 5 / 7, 1: 2 / 7}, abs=0.015
    )
    assert shares(SamplingRule(temperature=1, top_k=3, top_p=0.55, seed=1), 50) == {0: 1.0}


def test_min_p_is_a_part_of_the_likeliest() -> None:
    assert shares(SamplingRule(temperature=1, min_p=0.25, seed=1)) == pytest.approx(
        {0: 0.5 / 0.85, 1: 0.2 / 0.85, 2: 0.15 / 0.85}, abs=0.015
    )


def test_top_p_of_a_flat_vocabulary_looks_beyond_the_first_tokens() -> None:
    logits = np.zeros(10_000, np.float32)
    sampler = Sampler(SamplingRule(temperature=1, top_p=0.9, seed=3))
    assert max(sampler.choose(logits).token for _ in range(500)) > 4096


def test_a_seed_gives_the_same_tokens_and_none_gives_others() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingRule(temperature=1, seed=seed))
        return [sampler.choose(LOGITS).token for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_a_bias_bans_and_forces() -> None:
    assert Sampler(SamplingRule(bias={0: -100.0})).choose(LOGITS).token == 1
    assert Sampler(SamplingRule(bias={4: 100.0})).choose(LOGITS).token == 4


def test_the_presence_penalty_counts_once_and_that_of_frequency_each_time() -> None:
    logits = np.array([2.0, 1.4, 0.0], np.float32)

    def tokens(**penalty: float) -> list[int]:
        sampler = Sampler(SamplingRule(**penalty))  # type: ignore[arg-type]
        return [sampler.choose(logits).token for _ in range(5)]

    # 2.0 -> 1.0 and 1.4 -> 0.4, and no lower
    assert tokens(presence_penalty=1.0) == [0, 1, 0, 0, 0]
    # 2.0 1.4 | 1.0 1.4 | 1.0 0.4 | 0.0 0.4 0.0 | 0.0 -0.6 0.0
    assert tokens(frequency_penalty=1.0) == [0, 1, 0, 1, 0]


def test_a_mask_leaves_what_may_follow() -> None:
    mask = np.array([False, False, True, True, False])
    assert Sampler(SamplingRule()).choose(LOGITS, mask).token == 2
    sampler = Sampler(SamplingRule(temperature=1, seed=1))
    assert {sampler.choose(LOGITS, mask).token for _ in range(100)} == {2, 3}


def test_logprobs_are_those_of_the_model_whatever_is_added() -> None:
    rule = SamplingRule(bias={4: 100.0}, logprobs=2)
    chosen = Sampler(rule).choose(LOGITS)
    assert chosen.token == 4
    assert chosen.logprob == pytest.approx(np.log(0.05), abs=1e-6)
    assert [token for token, _ in chosen.likeliest] == [0, 1]
    assert [value for _, value in chosen.likeliest] == pytest.approx(np.log([0.5, 0.2]), abs=1e-6)
    assert Sampler(SamplingRule()).choose(LOGITS).logprob is None


def test_logits_are_not_changed() -> None:
    before = LOGITS.copy()
    Sampler(SamplingRule(temperature=1, bias={0: 5.0}, presence_penalty=1.0)).choose(LOGITS)
    np.testing.assert_array_equal(LOGITS, before)


def test_large_logits_do_not_overflow() -> None:
    logprobs = log_softmax(np.array([1e4, 0.0, -1e4], np.float32))
    assert logprobs[0] == 0.0
    assert np.isfinite(logprobs).all()
