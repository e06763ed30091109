"""Publishers in processes of their own, one a line of standard input, which all start to publish at once.

Each line has the proofs of one model as JSON; what is printed is the version that each of them was told, one a line.
"""

import contextlib
import multiprocessing
import sys
import traceback
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import mlflow
import mlflow.store.model_registry.sqlalchemy_store  # by each process otherwise
import mlflow.store.tracking.sqlalchemy_store
from mlflow.exceptions import MlflowException

from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import publish_version

TRIES = 10
START_SECONDS = 900  # whoever did not come by then has failed


def publish(line: str, uri: str, start: Barrier, told: "Queue[int | str]") -> None:
    """Put the version, or why there is none; something in any case, since the parent waits for it."""
    try:
        told.put(_published(line, uri, start))
    except BaseException as error:
        told.put("".join(traceback.format_exception(error)))


def _published(line: str, uri: str, start: Barrier) -> int:
    mlflow.set_tracking_uri(uri)
    proofs = Proofs.model_validate_json(line)
    mlflow.MlflowClient().search_registered_models()
    start.wait(START_SECONDS)
    for _ in range(TRIES - 1):
        with contextlib.suppress(MlflowException):  # SQLite lets one writer in at a time; a task would try again, too
            return publish_version(proofs.smoke.model, proofs).version
    return publish_version(proofs.smoke.model, proofs).version


def main() -> None:
    lines = sys.stdin.read().splitlines()
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    start, told = context.Barrier(len(lines)), context.Queue()
    processes = [context.Process(target=publish, args=(line, sys.argv[1], start, told)) for line in lines]
    for process in processes:
        process.start()
    for _ in processes:
        print(told.get(), flush=True)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
