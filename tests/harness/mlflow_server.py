"""A real MLflow server on the loopback, with a database and artifacts of its own that it hands out itself."""

import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_database import write_empty_database
from server_health import wait_until_healthy

from slmpack.machine.process_tree import kill_tree

if TYPE_CHECKING:
    from postgres import Postgres

START_SECONDS = 600
_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_OF_CONNECTIONS = int(_CONNECTIONS.read_text().split()[0]) if _CONNECTIONS.exists() else 32_768
_PORTS = iter(range(12_000, max(_FIRST_OF_CONNECTIONS, 14_000)))
_claims: list[socket.socket] = []
DRIVER = "postgresql+psycopg2"  # plain `postgresql` means psycopg 3 to SQLAlchemy 2.1


@dataclass(frozen=True)
class GuardedMlflow:
    """An MLflow server that wants a password, and the one that its administrator has."""

    address: str
    password: str
    pid: int

    def environment(self) -> dict[str, str]:
        """Return all that a client needs to know."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


def free_port() -> int:
    """Return a port of the loopback that nobody listens on, nor will before the server that it is for.

    The kernel gives these to no connection, and other processes of the tests find them claimed.
    """
    for port in _PORTS:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0slmpack-tests-{port}")  # gone with this process, whatever ends it
            with socket.socket() as found:
                found.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port
    raise RuntimeError("no port is left")


@contextmanager
def running_mlflow_server(folder: Path) -> Iterator[str]:
    """Yield the address of a server that keeps everything in `folder`; its log is `folder`/server.log."""
    write_empty_database(folder / "server.db")
    options = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    with _running(folder, options, {}) as (address, _):
        yield address


@contextmanager
def running_guarded_mlflow_server(folder: Path, postgres: "Postgres") -> Iterator[GuardedMlflow]:
    """Yield a server with basic auth whose records and users are in PostgreSQL and whose artifacts are in `folder`."""
    settings, password = folder / "auth.ini", secrets.token_hex(16)
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {DRIVER}://{postgres.database('mlflow_users')}\n"
        "admin_username = admin\nauth_cache_ttl_seconds = 60\n"
    )
    settings.chmod(0o600)
    options = ["--serve-artifacts", "--app-name", "basic-auth"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": f"{DRIVER}://{postgres.database('mlflow')}",  # `ps` shows arguments to everybody
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    with _running(folder, options, environment) as (address, pid):
        yield GuardedMlflow(address, password, pid)


@contextmanager
def used_mlflow_server(folder: Path) -> Iterator[str]:
    """Yield a server that is this process's tracking server meanwhile."""
    import mlflow

    before = mlflow.get_tracking_uri()
    with running_mlflow_server(folder) as address:
        mlflow.set_tracking_uri(address)
        try:
            yield address
        finally:
            mlflow.set_tracking_uri(before)


@contextmanager
def _running(folder: Path, options: list[str], extra: dict[str, str]) -> Iterator[tuple[str, int]]:
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--artifacts-destination", str(folder / "artifacts"), *options,
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | extra
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            wait_until_healthy(f"{address}/health", process, folder / "server.log", START_SECONDS)
            yield address, process.pid
        finally:
            kill_tree(process.pid)
            process.wait()


@contextmanager
def running_scoring_server(model: Path, folder: Path) -> Iterator[str]:
    """Yield the address of the server that `mlflow models serve` starts for a model; its log is in `folder`."""
    from mlflow.pyfunc.scoring_server import get_cmd

    address = f"http://127.0.0.1:{(port := free_port())}"
    command, environment = get_cmd(str(model), port=port)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command)], env=environment, stdout=log, stderr=log, cwd=folder
        )
        try:
            wait_until_healthy(f"{address}/health", process, folder / "server.log", START_SECONDS)
            yield address
        finally:
            kill_tree(process.pid)
            process.wait()


def forget_tracking_uri() -> None:
    """Let this process ask the server that MLFLOW_TRACKING_URI names, whatever an earlier module has set."""
    import mlflow

    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
