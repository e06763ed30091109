"""Time limits grow with what has to be read."""

from slmpack.machine.limits import limit_seconds


def test_a_larger_model_has_more_time_and_a_small_one_no_less() -> None:
    assert limit_seconds(100.0, 0) == limit_seconds(100.0, 4 * 10**9) == 100.0
    assert limit_seconds(100.0, 8 * 10**9) == 200.0
