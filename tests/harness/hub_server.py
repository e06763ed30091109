"""A server on loopback that speaks as much of the Hugging Face Hub's HTTP API as its client needs for a model.

    GET  /api/models/{repo}[/revision/{revision}]    commit, card, gated, files
    GET  /api/models/{repo}/tree/{revision}          files and sizes
    HEAD, GET  /{repo}/resolve/{commit}/{file}       content, with ETag, Range and refusals

Source: the Hub's OpenAPI description and the headers that huggingface_hub reads (`X-Repo-Commit`, `X-Error-Code`).
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 20


@dataclass
class Repository:
    """A model repository: the files of a folder at one commit, whose content the client remembers.

    `commit`: named after the folder if empty.
    `token`: what a reader of its files must send; None when anybody may read them.
    """

    folder: Path
    commit: str = ""
    branches: tuple[str, ...] = ("main",)
    card: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        self.commit = self.commit or hashlib.sha1(str(self.folder).encode()).hexdigest()

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """Serves repositories from a thread; `requests` is what was asked.

    `break_once`: the name of a file whose first download stops half way; `fail_with`: a status that answers everything.
    """

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.begin(repositories)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def begin(self, repositories: dict[str, Repository]) -> None:
        """Serve these repositories, as a server does that was just started."""
        self.repositories = repositories
        self.requests: list[Request] = []
        self.break_once: str | None = None
        self.fail_with: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def metadata_requests(self) -> list[Request]:
        return [request for request in self.requests if request.path.startswith("/api/")]

    def downloads(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def downloaded_files(self) -> set[str]:
        return {request.path.split("/resolve/")[1].split("/", 1)[1] for request in self.downloads()}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_arguments: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.hub.fail_with:
            self._refuse(self.hub.fail_with, "", "the server is ill")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._about(match[1], match[2] or "main", self._info)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._about(match[1], match[2], self._tree)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[3])
        else:
            self._refuse(404, "", "no such page")

    def _about(self, name: str, revision: str, describe: Any) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token(repository)):
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision != repository.commit and revision not in repository.branches:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            self._send_json(describe(name, repository))

    def _info(self, name: str, repository: Repository) -> dict[str, Any]:
        return {
            "id": name, "sha": repository.commit, "private": repository.private, "cardData": repository.card,
            "gated": "auto" if repository.token and not repository.private else False,
            "siblings": [{"rfilename": file} for file in repository.files()],
        }  # fmt: skip

    def _tree(self, _name: str, repository: Repository) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": file,
                "size": (repository.folder / file).stat().st_size,
                "oid": _oid(repository.folder / file),
            }
            for file in repository.files()
        ]

    def _file(self, name: str, file: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif not self._has_token(repository):
            known = self.headers.get("Authorization") is not None
            self._refuse(403 if known else 401, "GatedRepo", "Access to this model is restricted")
        elif file not in repository.files():
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(repository, file)

    def _has_token(self, repository: Repository) -> bool:
        return repository.token is None or self.headers.get("Authorization") == f"Bearer {repository.token}"

    def _send_file(self, repository: Repository, file: str) -> None:
        path = repository.folder / file
        size = path.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("ETag", f'"{_oid(path)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "GET":
            self._send_content(path, start, size)

    def _send_content(self, path: Path, start: int, size: int) -> None:
        end = size
        if self.hub.break_once == path.name:
            self.hub.break_once, end, self.close_connection = None, size // 2, True
        with path.open("rb") as content:
            content.seek(start)
            while (left := end - content.tell()) > 0:
                self.wfile.write(content.read(min(BLOCK, left)))

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(path: Path) -> str:
    """Return what the Hub calls a file's content: sha256 of large files (Git LFS), else sha1 as Git does."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors" and path.stat().st_size < 1 << 30:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha1(path.name.encode()).hexdigest()
