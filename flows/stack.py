"""Everything on this machine: MLflow's server, Prefect's server, the deployments, and one worker of the pool `cpu`.

`make stack`, or `python -m flows.stack`. Honcho runs the processes and writes what they say, each line with its name.
Ctrl-C, SIGTERM or the end of any of them ends them all.

    mlflow, prefect     begin at once
    worker              waits for both, deploys, says where to click, and becomes Prefect's worker
"""

import argparse
import os
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from uuid import uuid4

import psutil
from honcho import manager as honcho

from flows.supervise import INTERRUPTED
from slmpack.errors import SlmpackError, UsageError
from slmpack.machine.surroundings import prepare_home

HOST = "127.0.0.1"
MARK = "SLMPACK_STACK"  # tells the stack's processes from others: runs are in sessions of their own
KILL_SECONDS = 2  # after the first has ended: a worker whose server is gone waits for it
ASKED_TO_END = (130, 143)  # Honcho's codes after SIGINT and SIGTERM
READY = """\
ready; Ctrl-C stops everything
MLflow:  {mlflow}  models, versions and their proofs
Prefect: {prefect}  click Deployments, package-cpu-int4, Run: Quick run packages the built-in model,
         Custom run lets you choose
"""


def run_stack(mlflow_port: int, prefect_port: int) -> int:
    """Run everything until a signal ends it or a part of it ends; leave no process behind. Return the exit code."""
    require_free(mlflow_port, "MLFLOW_PORT")
    require_free(prefect_port, "PREFECT_PORT")
    mlflow, prefect = f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}"
    environment = os.environ | {
        MARK: (mark := uuid4().hex),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # or there are five more processes, for evaluations
        "MLFLOW_TRACKING_URI": mlflow,
        "PREFECT_API_URL": f"{prefect}/api",
        "PYTHONUNBUFFERED": "1",
    }
    honcho.KILL_WAIT = KILL_SECONDS
    manager = honcho.Manager()
    for name, arguments in commands(mlflow_port, prefect_port).items():
        manager.add_process(name, shlex.join(["exec", sys.executable, "-m", *arguments]), env=environment)
    try:
        manager.loop()
    finally:
        end_marked(mark)
    return 0 if manager.returncode in ASKED_TO_END else 1


def commands(mlflow_port: int, prefect_port: int) -> dict[str, list[str]]:
    """Return what each process runs."""
    return {
        "mlflow": [
            "mlflow",
            "server",
            "--host",
            HOST,
            "--port",
            str(mlflow_port),
            "--workers",
            "1",
            "--backend-store-uri",
            "sqlite:///mlflow.db",
            "--artifacts-destination",
            "mlartifacts",
        ],
        "prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
        "worker": ["flows.stack", "--worker"],
    }


def require_free(port: int, variable: str) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        UsageError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be taken ({error.strerror})",
                "a free one",
                f"stop what listens there, or type: make stack {variable}={port + 1}",
            ) from error


def end_marked(mark: str) -> None:
    """Kill what is left of the stack, such as a run whose worker is gone."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def become_worker() -> None:
    """Wait for the servers, deploy, tell where they are, and go on as Prefect's worker."""
    from flows.deploy import deploy  # Prefect reads its settings, which name the server, when it is imported

    mlflow, api = os.environ["MLFLOW_TRACKING_URI"], os.environ["PREFECT_API_URL"]
    await_health(f"{mlflow}/health")
    await_health(f"{api}/health")
    deploy()
    sys.stdout.write(READY.format(mlflow=mlflow, prefect=api.removesuffix("/api")))
    sys.stdout.flush()
    worker = ["prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--name", "stack"]
    os.execv(sys.executable, [sys.executable, "-m", *worker])  # noqa: S606 - the process is to become the worker


def await_health(address: str) -> None:
    """Wait until a server answers; if it ends instead, Honcho ends the waiting process."""
    while True:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(address, timeout=5):  # noqa: S310
            return
        time.sleep(0.2)


def main() -> int:
    """Run the stack; an expected failure is one line on stderr."""
    parser = argparse.ArgumentParser(prog="flows.stack", description="MLflow, Prefect and a worker on this machine.")
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    try:
        prepare_home(None)
        if parsed.worker:
            become_worker()
        return run_stack(parsed.mlflow_port, parsed.prefect_port)
    except SlmpackError as error:
        sys.stderr.write(f"slmpack: {error}\n")
        return 1
    except KeyboardInterrupt:  # before Honcho listens for it
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
