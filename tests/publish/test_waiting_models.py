"""Waiting: a model that was left unproved is found again until it is known that it does not hold."""

from collections.abc import Callable

import pytest
from made_proofs import proofs_of

from slmpack.machine.hardware import obstacle_to_prove
from slmpack.publish.publish import mark_refused
from slmpack.publish.unproved import find_unproved, find_unproved_wanted, leave_unproved
from slmpack.records import LoggedModel, Target

TARGET = Target.CUDA_INT4
WANTED = "a" * 64
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(obstacle_to_prove(TARGET) is None, reason="this machine has a GPU to prove it on"),
]


def test_a_model_that_was_refused_waits_for_nothing(name: str, log_it: Callable[..., LoggedModel]) -> None:
    model = log_it()
    package = model.package.model_copy(update={"target": TARGET})
    waiting = model.model_copy(update={"package": package})

    def found() -> list[str | None]:
        both = find_unproved_wanted(name, TARGET, WANTED), find_unproved(name, TARGET, [model.digest], "auto 1", WANTED)
        return [None if each is None else each.model_id for each in both]

    assert found() == [None, None]
    leave_unproved(waiting, proofs_of(waiting), "auto 1", WANTED)
    assert found() == [model.model_id] * 2
    mark_refused(waiting, "where the hardware is, it does not answer")
    assert found() == [None, None]
