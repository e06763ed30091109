"""Publishing, step by step: which comes first, and what has to be known before the first."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from made_proofs import ALIAS, holder_of, proofs_of, publish, versions_of
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmpack.errors import PublishError
from slmpack.log.tags import PUBLISHED
from slmpack.publish.find import find_published
from slmpack.publish.publish import publish_version
from slmpack.records import LoggedModel, Target

LogIt = Callable[..., LoggedModel]
pytestmark = pytest.mark.slow


@contextmanager
def aliases_that_stay(store: Path) -> Iterator[None]:
    """Have the registry's database refuse every alias."""

    def execute(command: str) -> None:
        with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
            database.execute(command)

    for change in ("INSERT", "UPDATE"):
        execute(f"CREATE TRIGGER stay_{change} BEFORE {change} ON registered_model_aliases "
                "BEGIN SELECT RAISE(ABORT, 'no alias moves'); END")  # fmt: skip
    try:
        yield
    finally:
        for change in ("INSERT", "UPDATE"):
            execute(f"DROP TRIGGER stay_{change}")


def test_the_alias_moves_before_the_version_says_that_it_is_published(name: str, log_it: LogIt, store: Path) -> None:
    publish(log_it("a"))
    model = log_it("b")
    with aliases_that_stay(store), pytest.raises(MlflowException):
        publish(model)
    assert holder_of(name) == 1
    assert PUBLISHED not in MlflowClient().get_model_version(name, "2").tags
    assert find_published(name, model.digest, ALIAS) is None

    assert publish(model).version == 2
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)


def test_proofs_on_other_hardware_publish_nothing(name: str, log_it: LogIt) -> None:
    model = log_it()
    package = model.package.model_copy(update={"target": Target.CUDA_INT4})
    for_gpu = model.model_copy(update={"package": package})
    with pytest.raises(PublishError, match=r"a proof of models:/m-.* on cpu; proofs on cuda, for which it is"):
        publish_version(for_gpu, proofs_of(for_gpu))
    assert versions_of(name) == []
