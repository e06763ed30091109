"""A real Prefect server on the loopback, and real workers, each with a home of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import NOT_INHERITED
from mlflow_server import free_port
from prefect_database import write_empty_database
from server_health import wait_until_healthy

from slmpack.machine.process_tree import kill_tree
from slmpack.telemetry import SWITCHES

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

START_SECONDS = 600
_clients: "dict[str, SyncPrefectClient]" = {}


@dataclass(frozen=True)
class PrefectServer:
    """Where the server answers, and what a client needs to know of it."""

    api: str
    folder: Path

    @property
    def address(self) -> str:
        """Where a browser finds the dashboard."""
        return self.api.removesuffix("/api")

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the environment of a client, with `extra` on top; nothing of the tests' own settings is in it."""
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        return kept | SWITCHES | {"PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.folder / "client")} | extra


@contextmanager
def running_prefect_server(folder: Path, **environment: str) -> Iterator[PrefectServer]:
    """Yield a server that keeps everything in `folder`, where its log is, too: prefect-server.log.

    Args:
        folder: its home; its database is SQLite there unless the environment says otherwise.
        environment: settings of the server, such as PREFECT_SERVER_DATABASE_CONNECTION_URL.
    """
    server = PrefectServer(f"http://127.0.0.1:{(port := free_port())}/api", folder)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = server.environment(PREFECT_HOME=str(folder / "prefect"), **environment)
    log = folder / "prefect-server.log"
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in environment:
        write_empty_database(folder / "prefect")
    with log.open("wb") as noise:
        process = subprocess.Popen(command, env=settings, stdout=noise, stderr=noise, cwd=folder)
        try:
            wait_until_healthy(f"{server.api}/health", process, log, START_SECONDS)
            yield server
        finally:
            if (client := _clients.pop(server.api, None)) is not None:
                client.__exit__(None, None, None)
            kill_tree(process.pid)
            process.wait()


def kept_client() -> "SyncPrefectClient":
    """Return this process's client of the server to which its settings lead, for as long as that server runs.

    For those who look again and again: to make one costs it and us ten times as much as to ask.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    address = str(PREFECT_API_URL.value())
    if address not in _clients:
        _clients[address] = get_client(sync_client=True).__enter__()
    return _clients[address]


@contextmanager
def used_prefect_server(folder: Path) -> Iterator[PrefectServer]:
    """Yield a server to which the flows of this process talk meanwhile."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with running_prefect_server(folder) as server, temporary_settings({PREFECT_API_URL: server.api}):
        try:
            yield server
        finally:
            _send_what_is_left()


def _send_what_is_left() -> None:
    """Wait until the server has the logs and events of this process, which would look for it until they are sent."""
    import inspect

    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def drain() -> None:
        for each in (APILogWorker.drain_all(), EventsWorker.drain_all()):
            if inspect.isawaitable(each):
                await each

    run_coro_as_sync(drain())


@contextmanager
def running_worker(
    pool: str, folder: Path, environment: dict[str, str], name: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a process worker of `pool`; its home is `folder`/`name`, its log beside it: `name`.log.

    It shares uv's downloads with the rest of the machine, as machines would share a package mirror.
    """
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
    shared = {"UV_CACHE_DIR": str(Path.home() / ".cache" / "uv"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    settings = shared | environment | {
        "HOME": str(home), "PREFECT_HOME": str(home / ".prefect"),
    }  # fmt: skip
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=settings, stdout=log, stderr=log, cwd=home,
            preexec_fn=_with_default_interrupt,  # noqa: PLW1509 - a shell's `&` may have had it ignored
        )  # fmt: skip
        try:
            yield process
        finally:
            kill_tree(process.pid)
            process.wait()


def _with_default_interrupt() -> None:
    """A worker that inherits an ignored SIGINT ignores SIGTERM, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def deploy(folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Deploy from anywhere, as `make deploy` does from the project."""
    command = [sys.executable, "-m", "flows.deploy"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
