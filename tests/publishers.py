"""Publishers in processes of their own, one a line of standard input, which all start to publish at once.

Each line is a smoke report as JSON; what is printed is the version that each of them was told, one a line.
"""

import multiprocessing
import sys
import traceback
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import mlflow
from mlflow.exceptions import MlflowException

from slmpack.publish import publish_version
from slmpack.records import SmokeReport, ValidationReport

TRIES = 10


def publish(report: str, uri: str, start: Barrier, told: "Queue[int | str]") -> None:
    mlflow.set_tracking_uri(uri)
    smoke = SmokeReport.model_validate_json(report)
    validation = ValidationReport(model=smoke.model, checks=smoke.checks)
    mlflow.MlflowClient().search_registered_models()
    start.wait()
    for _ in range(TRIES):
        try:
            told.put(publish_version(smoke.model, validation, smoke, force=False, trace={}).version)
            return
        except MlflowException as error:  # SQLite lets one writer in at a time; a task would try again, too
            last = "".join(traceback.format_exception(error))
        except BaseException as error:
            last = "".join(traceback.format_exception(error))
            break
    told.put(last)


def main() -> None:
    reports = sys.stdin.read().splitlines()
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    start, told = context.Barrier(len(reports)), context.Queue()
    processes = [context.Process(target=publish, args=(report, sys.argv[1], start, told)) for report in reports]
    for process in processes:
        process.start()
    for _ in processes:
        print(told.get(), flush=True)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
