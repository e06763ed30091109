"""What an operator may set of the waits, and what they are where nothing is set."""

import pytest

from slmpack.errors import UsageError
from slmpack.machine.waits import no_worker_seconds, retry_seconds
from tasks import policies


def test_a_remote_stage_is_tried_four_times_within_a_minute_and_a_worker_may_take_ten_minutes() -> None:
    assert retry_seconds() == [2.0, 10.0, 30.0]
    assert (policies.REMOTE["retries"], policies.REMOTE["retry_delay_seconds"]) == (3, [2.0, 10.0, 30.0])
    assert no_worker_seconds() == 600.0


def test_a_wait_that_is_set_replaces_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMPACK_RETRY_SECONDS", "0.5, 1")
    monkeypatch.setenv("SLMPACK_NO_WORKER_SECONDS", "8")
    assert (retry_seconds(), no_worker_seconds()) == ([0.5, 1.0], 8.0)


@pytest.mark.parametrize("wrong", ["", "soon", "-1", "1,,2", "inf", "nan"])
def test_a_wait_that_is_no_number_of_seconds_is_refused_by_its_variable(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, read in (("RETRY", retry_seconds), ("NO_WORKER", no_worker_seconds)):
        monkeypatch.setenv(f"SLMPACK_{variable}_SECONDS", wrong)
        with pytest.raises(UsageError, match=f"SLMPACK_{variable}_SECONDS is '{wrong}'; .*of 0 or more.*; unset it"):
            read()


def test_one_wait_is_expected_for_a_pool_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMPACK_NO_WORKER_SECONDS", "8,9")
    with pytest.raises(UsageError, match="SLMPACK_NO_WORKER_SECONDS is '8,9'; one number of 0 or more; unset it"):
        no_worker_seconds()
