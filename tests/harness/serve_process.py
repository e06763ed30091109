"""`slmpack serve` as a process: started as a person does, asked over HTTP, stopped by signals."""

import json
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
from command_line import SLMPACK, children_with, environment

START_SECONDS = 600
PATIENCE_SECONDS = 600  # of a client, and of whoever waits for an end
LISTENING = re.compile(r"listening at (http://\S+?)/v1")


@dataclass
class ServeProcess:
    """A server that was started.

    Attributes:
        lines: of its standard error so far.
        address: such as http://127.0.0.1:8000.
    """

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    address: str = ""

    def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        """Return the status and the body of an answer to GET."""
        return self._ask(urllib.request.Request(self.address + path), key)

    def chat(self, key: str | None = None, **fields: Any) -> tuple[int, Any]:
        """Return the status and the body of the answer to a short chat."""
        return self._ask(urllib.request.Request(f"{self.address}/v1/chat/completions", body_of(fields)), key)

    def begin_stream(self, **fields: Any) -> HTTPConnection:
        """Send a chat that streams; `getresponse` waits for its first event."""
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=PATIENCE_SECONDS)
        body = body_of({"stream": True} | fields)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection

    def engine(self) -> psutil.Process:
        """Return the process that computes."""
        (found,) = children_with("slmpack.serve.engine_process", self.process.pid)
        return found

    def family(self) -> list[psutil.Process]:
        """Return the processes that the server has started, itself left out."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def stop(self, number: int = signal.SIGTERM, seconds: float = PATIENCE_SECONDS) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def _ask(self, request: urllib.request.Request, key: str | None) -> tuple[int, Any]:
        request.add_header("Content-Type", "application/json")
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, _parsed(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _parsed(error.read())


def body_of(fields: dict[str, Any]) -> bytes:
    """Return the body of a short chat, with the fields on top."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return json.dumps({"messages": messages, "max_tokens": 4, "temperature": 0} | fields).encode()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


@contextmanager
def running_server(
    arguments: Sequence[str | Path], folder: Path, *, command: Sequence[str | Path] = (SLMPACK,), **settings: Any
) -> Iterator[ServeProcess]:
    """Yield a server that listens at a free port; it and all that it started are killed afterwards.

    Args:
        folder: for its work files.
        settings: of the process, such as `env` or `user`.
    """
    words = [*command, "serve", *arguments, "--port", "0", "--workspace", folder / "work"]
    process = subprocess.Popen(
        [str(word) for word in words], stderr=subprocess.PIPE, text=True, **({"env": environment()} | settings)
    )
    server = ServeProcess(process)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    family: list[psutil.Process] = []
    try:
        _wait_until_listening(server)
        family = server.family()
        yield server
    finally:
        with suppress(psutil.NoSuchProcess):
            family += server.family() if process.poll() is None else []
        for each in family:
            with suppress(psutil.NoSuchProcess):  # it may end at any moment
                each.kill()
        process.kill()
        process.wait()
        reader.join(10)


def _read(server: ServeProcess) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line.rstrip("\n"))
        if found := LISTENING.search(line):
            server.address = found[1].replace("0.0.0.0", "127.0.0.1")


def _wait_until_listening(server: ServeProcess) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        if server.address and _is_healthy(server):
            return
        time.sleep(0.05)
    raise RuntimeError("\n".join(["the server does not answer:", *server.lines[-20:]]))


def _is_healthy(server: ServeProcess) -> bool:
    try:
        return server.get("/health")[0] == 200
    except OSError:
        return False


def is_running(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and is not waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def held(process: psutil.Process) -> Iterator[None]:
    """Stop a process meanwhile, so that what it does has not ended when the block looks; it may be killed there."""
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def wait_until_ended(processes: Sequence[psutil.Process], seconds: float = PATIENCE_SECONDS) -> list[psutil.Process]:
    """Return the processes that still run after that time, at best none."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in processes if is_running(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def events_of(connection: HTTPConnection) -> Iterator[Any]:
    """Yield the events of a stream as they come, `[DONE]` as it is."""
    for line in connection.getresponse():
        if line.startswith(b"data: "):
            text = line.removeprefix(b"data: ").strip().decode()
            yield text if text == "[DONE]" else json.loads(text)
