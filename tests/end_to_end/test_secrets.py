"""Secrets: each is planted where a user has it, and then every byte is searched that a run leaves anywhere.

The Hub's token, the password of a package index, MLflow's, the URL of its database, Prefect's password, the key that
signs and its password. Meanwhile the arguments of every process of the machine are read, as any user may.
"""

import base64
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from command_line import slmpack
from hub_server import HubServer, Repository
from live_folder import content_of, seen
from mlflow import MlflowClient
from mlflow_server import DRIVER, running_guarded_mlflow_server
from postgres import Postgres, running_postgres
from prefect_stack import running_prefect_server

from slmpack.log.experiment import EXPERIMENT
from slmpack.signing.keys import PASSWORD, new_key

pytestmark = pytest.mark.slow

SAMPLE_SECONDS = 0.02


class _RefusingIndex(BaseHTTPRequestHandler):
    """A package index that has nothing, and wants a password before it says so."""

    asked: list[str]

    def do_GET(self) -> None:
        """Answer pip and uv."""
        given = self.headers.get("Authorization", "")
        self.asked.append(given)
        self.send_response(404 if given else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def running_index() -> Iterator[tuple[int, list[str]]]:
    """Yield the port of such an index, and what was sent to it for a password."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Index", (_RefusingIndex,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()


class Arguments:
    """All arguments that processes of this machine have while it looks."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Arguments":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def seen(self) -> frozenset[str]:
        """Return what was seen until now; the thread goes on looking."""
        with self._lock:
            return frozenset(self._seen)

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for pid in psutil.pids():
                try:
                    found = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
                except OSError:  # it has ended
                    continue
                with self._lock:
                    self._seen.add(found)


@dataclass
class Place:
    """A machine with secrets, and all that its commands wrote.

    Attributes:
        secrets: by what they are.
        settings: the environment of its commands, secrets included.
        written: what they wrote to their outputs.
    """

    folder: Path
    workspace: Path
    secrets: dict[str, str]
    settings: dict[str, str]
    index_asked: list[str]
    postgres: Postgres
    arguments: Arguments
    written: list[str] = field(default_factory=list)

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        done = slmpack(*arguments, cwd=self.folder / "desk", **self.settings | settings)
        self.written += [done.stdout, done.stderr]
        return done


@pytest.fixture(scope="module")
def place(steady_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place where a model of a private repository was packaged and signed, into MLflow's database and its server."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("desk", "home", "temporary", "keys", "guarded", "prefect"):
        (folder / name).mkdir()
    planted = {name: secrets.token_hex(20) for name in ("index", "prefect", "key password")}
    planted["hub token"] = f"hf_{secrets.token_hex(17)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PASSWORD, planted["key password"])
        new_key(folder / "keys" / "release.pem")
    pem = (folder / "keys" / "release.pem").read_text()
    planted["signing key"] = pem.splitlines()[2]
    repository = Repository(steady_phi3, token=planted["hub token"], private=True)
    with (
        running_postgres(folder) as postgres,
        HubServer({"somebody/steady-phi3": repository}) as hub,
        running_index() as (port, asked),
        running_prefect_server(
            folder / "prefect", PREFECT_SERVER_API_AUTH_STRING=f"admin:{planted['prefect']}"
        ) as prefect,
        Arguments() as arguments,
    ):
        planted["database"] = postgres.password
        settings = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": planted["hub token"],
            "RELEASE_KEY": pem, PASSWORD: planted["key password"],
            "PIP_EXTRA_INDEX_URL": f"http://somebody:{planted['index']}@127.0.0.1:{port}/simple",
            "PREFECT_API_URL": prefect.api, "PREFECT_API_AUTH_STRING": f"admin:{planted['prefect']}",
            "PREFECT_HOME": str(folder / "home" / "prefect"), "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / ".cache"), "HF_HOME": str(folder / "home" / "hub"),
            "TMPDIR": str(folder / "temporary"), "UV_CACHE_DIR": str(Path.home() / ".cache" / "uv"),
        }  # fmt: skip
        yield Place(folder, folder / "workspace", planted, settings, asked, postgres, arguments)


def package(place: Place, **settings: str) -> None:
    done = place.run(
        "package", "hf://somebody/steady-phi3", "--signing-key", "env:RELEASE_KEY", "--json",
        "--workspace", str(place.workspace), **settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"status":"published"' in done.stdout, done.stdout


def found_in(place: Place, content: bytes) -> list[str]:
    """Return which secrets are in the content, as they are or as URLs and headers write them."""
    return [
        name
        for name, secret in place.secrets.items()
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")[:-2])
        if form.encode() in content
    ]


def test_a_run_over_the_url_of_a_database_with_every_secret_works(place: Place) -> None:
    address = f"{DRIVER}://{place.postgres.database('tracking')}"
    MlflowClient(address).create_experiment(EXPERIMENT, str(place.folder / "artifacts"))
    package(place, MLFLOW_TRACKING_URI=address)
    assert any(place.index_asked)  # with its password
    bad = place.run("package", "hf://somebody/nothing", MLFLOW_TRACKING_URI=address)
    assert bad.returncode == 1
    wrong = place.run(
        "chat", "models:/steady-phi3@nobody", "Hi", MLFLOW_TRACKING_URI=address.replace("/tracking", "/x")
    )
    assert wrong.returncode == 1


def test_a_run_over_a_server_with_a_password_works(place: Place) -> None:
    with running_guarded_mlflow_server(place.folder / "guarded", place.postgres) as server:
        place.secrets["mlflow"] = server.password
        package(place, **server.environment())
        asked = place.run("chat", "models:/steady-phi3@cpu-int4", "Hi", "--max-tokens", "2", **server.environment())
        assert asked.returncode == 0, asked.stderr
        wrong = server.environment() | {"MLFLOW_TRACKING_PASSWORD": (typo := f"{server.password}x")}
        assert place.run("verify", "models:/steady-phi3@cpu-int4", **wrong).returncode == 1
        place.secrets["mistyped"] = typo
    settings = place.folder / "guarded" / "auth.ini"
    settings.unlink()  # the server's own settings


def test_no_command_wrote_a_secret(place: Place) -> None:
    assert len(place.written) >= 10
    assert found_in(place, "\n".join(place.written).encode()) == []


def test_no_process_had_a_secret_in_its_arguments(place: Place) -> None:
    seen = place.arguments.seen()
    assert any("slmpack" in each for each in seen)
    assert [(each.split("\0")[:6], found) for each in seen if (found := found_in(place, each.encode()))] == []


def test_no_file_that_a_run_left_has_a_secret(place: Place) -> None:
    looked, bad = 0, []
    for path in seen(place.folder, "**/*"):  # the server of Prefect goes on writing there
        if path.is_file() and not path.is_symlink() and path.parent.name != "keys":
            looked += 1
            bad += [(str(path.relative_to(place.folder)), name) for name in found_in(place, content_of(path))]
    assert looked > 100
    assert bad == []


def test_no_row_of_a_database_has_a_secret(place: Place) -> None:
    for database in ("tracking", "mlflow", "mlflow_users"):
        assert found_in(place, place.postgres.dump(database)) == []
