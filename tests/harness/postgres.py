"""A real PostgreSQL server on the loopback: a private cluster from the system's package, gone at the end."""

import os
import pwd
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import chown, which
from typing import Any

import psycopg2
import pytest
from mlflow_server import free_port

START_SECONDS = 600
STOP_SECONDS = 600
ADMIN = "postgres"
# The shell ends the server when we close its standard input or die, however suddenly. SIGINT: PostgreSQL's fast stop.
UNTIL_WE_END = '"$@" & read -r _; kill -INT $!; wait'


@dataclass(frozen=True)
class Postgres:
    """Where the server listens and how its administrator gets in."""

    port: int
    password: str

    def database(self, name: str, *extensions: str) -> str:
        """Create a database; return what comes after `postgresql://` in its URL."""
        with _connected(self, ADMIN) as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
        with _connected(self, name) as cursor:
            for extension in extensions:
                cursor.execute(f'CREATE EXTENSION "{extension}"')
        return f"{ADMIN}:{self.password}@127.0.0.1:{self.port}/{name}"

    def dump(self, name: str) -> bytes:
        """Return all rows of a database as text."""
        command = [
            str(_programs() / "pg_dump"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--username",
            ADMIN,
            name,
        ]
        return subprocess.run(
            command, env=os.environ | {"PGPASSWORD": self.password}, capture_output=True, check=True
        ).stdout


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Yield an empty server; its log is `folder`/postgres.log. Skips the test where PostgreSQL is not installed.

    The cluster is beside `folder`, not in it: no other user may enter pytest's folders, and the path of a socket may
    have no more than 107 characters.
    """
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="slmpack-postgres-") as made:
        cluster, server = Path(made), Postgres(free_port(), secrets.token_hex(16))
        _initialise(programs, cluster, server.password)
        with (folder / "postgres.log").open("wb") as log:
            process = _start(programs, cluster, server.port, log)
            try:
                _wait_until_it_answers(server, process, folder / "postgres.log")
                yield server
            finally:
                _stop(process)


def _programs() -> Path:
    """Return the folder of PostgreSQL's newest programs, where Debian puts them or on the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    on_path = which("initdb")
    if not debian and on_path is None:
        pytest.skip("PostgreSQL is not installed; type: make system")
    return debian[-1].parent if debian else Path(str(on_path)).resolve().parent


def _initialise(programs: Path, cluster: Path, password: str) -> None:
    secret = cluster / "password"
    secret.write_text(password)
    if os.getuid() == 0:
        for path in (cluster, secret):
            chown(path, ADMIN, ADMIN)
    command: list[str | Path] = [
        programs / "initdb", "--pgdata", cluster / "data", "--username", ADMIN, "--auth", "scram-sha-256",
        "--pwfile", secret, "--no-sync", "--encoding", "UTF8", "--locale", "C",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=cluster, **_as_its_user())
    secret.unlink()


def _as_its_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: root runs it as the user that the system's package made."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(ADMIN)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _start(programs: Path, cluster: Path, port: int, log: Any) -> "subprocess.Popen[bytes]":
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": cluster,
        "fsync": "off",  # what is lost with the machine was a test's
        "max_connections": 200,
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    return subprocess.Popen(
        ["sh", "-c", UNTIL_WE_END, "sh", programs / "postgres", "-D", cluster / "data", *options],
        stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=cluster,
        start_new_session=True,  # Ctrl-C is for its clients, which it outlives
        **_as_its_user(),
    )  # fmt: skip


def _stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(STOP_SECONDS)


def _wait_until_it_answers(server: Postgres, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with _connected(server, ADMIN):
                return
        except psycopg2.OperationalError:
            time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def _connected(server: Postgres, database: str) -> Iterator[Any]:
    connection = psycopg2.connect(
        host="127.0.0.1", port=server.port, user=ADMIN, password=server.password, dbname=database
    )
    connection.autocommit = True  # CREATE DATABASE is refused in a transaction
    try:
        yield connection.cursor()
    finally:
        connection.close()
