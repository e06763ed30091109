"""An artifact server that lists files which lie elsewhere: nothing is written outside the folder that was named."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.exceptions import MlflowException

from slmpack.errors import CheckError
from slmpack.log.artifacts import Artifacts
from slmpack.source.mlflow_errors import final_errors

OUTSIDE = (
    "../../evil", "/tmp/slmpack-evil", "a/../../../evil", "%2e%2e/%2e%2e/evil", "file:///tmp/slmpack-evil",
)  # fmt: skip
STRANGE = ("%252e%252e/evil", "\0evil", "..\\..\\evil")  # refused, or names as any other on this system


class Hostile(ThreadingHTTPServer):
    """Lists the files that a test chooses, and sends the same bytes for each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.names: tuple[str, ...] = ()


class Handler(BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        files = [{"path": name, "is_dir": False, "file_size": 4} for name in self.server.names]
        is_list = urlsplit(self.path).path.endswith("/artifacts")
        body = json.dumps({"files": files}).encode() if is_list else b"evil"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing to the tests' output."""


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    with Hostile() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to download into, in two others."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    return tmp_path / "a" / "b"


def download(hostile: Hostile, name: str, into: Path) -> None:
    hostile.names = (name,)
    artifacts = Artifacts(f"http://127.0.0.1:{hostile.server_port}/api/2.0/mlflow-artifacts/artifacts/")
    with final_errors(CheckError, "to list"):
        for each in artifacts.sizes():
            artifacts.copy(each, into)


def files_outside(place: Path, tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(place)]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_that_would_lie_outside_is_refused(hostile: Hostile, place: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckError, match=r"^MLflow refused to list: "):
        download(hostile, name, place)
    assert files_outside(place, tmp_path) == []
    assert not Path("/tmp/slmpack-evil").exists()


@pytest.mark.parametrize("name", STRANGE)
def test_no_name_is_written_outside(hostile: Hostile, place: Path, tmp_path: Path, name: str) -> None:
    with suppress(CheckError, MlflowException, ValueError):
        download(hostile, name, place)
    assert files_outside(place, tmp_path) == []
