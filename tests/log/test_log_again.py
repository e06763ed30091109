"""Logging, stopped and begun again: what is READY is whole, and what was refused is not gone on with."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from slmpack import progress
from slmpack.log.log import log_model
from slmpack.publish.publish import mark_refused
from slmpack.records import Interface, Package

pytestmark = pytest.mark.slow


@contextmanager
def statuses_while_logging() -> Iterator[set[str]]:
    """Collect the status of every logged model after each file that the artifact store is given."""
    found: set[str] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.progress.stage == "log":  # type: ignore[attr-defined]
                experiments = [each.experiment_id for each in MlflowClient().search_experiments()]
                found.update(str(each.status) for each in MlflowClient().search_logged_models(experiments))

    listener = Listener()
    progress.logger.addHandler(listener)
    try:
        yield found
    finally:
        progress.logger.removeHandler(listener)


def test_a_model_is_ready_only_when_all_of_its_files_are_there(
    mlflow_store: Path, tiny_package: Package, workspace: Path
) -> None:
    with statuses_while_logging() as found:
        model = log_model(tiny_package, Interface.CHAT, "tiny", workspace, {})
    assert found == {"PENDING"}  # so nobody takes it for whole whose publisher is killed meanwhile
    assert str(MlflowClient().get_logged_model(model.model_id).status) == "READY"


def test_a_retried_run_goes_on_with_what_it_logged_unless_that_was_refused(
    mlflow_store: Path, tiny_package: Package, workspace: Path
) -> None:
    def log(name: str = "tiny", run: str = "run-1") -> str:
        return log_model(tiny_package, Interface.CHAT, name, workspace, {"prefect_run": run}).model_id

    first = log_model(tiny_package, Interface.CHAT, "tiny", workspace, {"prefect_run": "run-1"})
    assert log() == first.model_id
    assert first.model_id not in {log(run="run-2"), log(name="another")}
    mark_refused(first, "it did not answer")
    assert log() != first.model_id
