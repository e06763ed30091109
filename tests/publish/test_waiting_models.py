"""Waiting: a model that was left unproved is found again until it is known that it does not hold."""

from collections.abc import Callable

import pytest
from made_proofs import proofs_of

from slmpack.machine.hardware import unprovable_error
from slmpack.publish.find import Search
from slmpack.publish.publish import mark_refused
from slmpack.publish.unproved import leave_unproved, waiting_before
from slmpack.records import LoggedModel, Target

TARGET = Target.CUDA_INT4
KEY = "a" * 64
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unprovable_error(TARGET) is None, reason="this machine has a GPU to prove it on"),
]


def test_a_model_that_was_refused_waits_for_nothing(name: str, log_it: Callable[..., LoggedModel]) -> None:
    model = log_it()
    package = model.package.model_copy(update={"target": TARGET})
    waiting = model.model_copy(update={"package": package})

    def found() -> list[str | None]:
        search = Search(name=name, target=TARGET, alias=str(TARGET), fingerprint="auto 1", request_key=KEY)
        both = [waiting_before(each) for each in (search, search.model_copy(update={"digests": (model.digest,)}))]
        return [None if each is None else each.model_id for each in both]

    assert found() == [None, None]
    leave_unproved(waiting, proofs_of(waiting), "auto 1", KEY)
    assert found() == [model.model_id] * 2
    mark_refused(waiting, "where the hardware is, it does not answer")
    assert found() == [None, None]
