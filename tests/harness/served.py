"""A real `slmpack serve` process on a free port of the loopback, and what a client sees of it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from command_line import children_with
from openai import OpenAI
from places import PROJECT
from prometheus_client.parser import text_string_to_metric_families
from server_health import wait_until_healthy

from slmpack.log.chat_model import ChatModel
from slmpack.log.staging import staged_model
from slmpack.machine.process_tree import kill_tree
from slmpack.records import Interface, Package

T = TypeVar("T")
START_SECONDS, STOP_SECONDS, PATIENCE_SECONDS = 600, 600, 600
LISTENING = re.compile(r"listening at (http://\S+)/v1 ")


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        address: without the path, `http://127.0.0.1:PORT`.
        name: of the model in requests.
        folder: the logged model.
        log: the server's standard error.
    """

    address: str
    name: str
    folder: Path
    log: Path
    process: "subprocess.Popen[bytes]"

    def engine(self) -> psutil.Process:
        """Return the process that computes."""
        (found,) = children_with("slmpack.serve.engine_process", self.process.pid)
        return found

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        return self._answer(urllib.request.Request(f"{self.address}{path}"))

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Return the status and the JSON that answers a body: bytes as they are, everything else as JSON."""
        status, answer = self.post_raw(path, body, **headers)
        return status, json.loads(answer)

    def post_raw(self, path: str, body: object, **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of the answer, which may be a stream."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        return self._answer(urllib.request.Request(f"{self.address}{path}", content, named))

    def value(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; 0 where there is none."""
        text = self.get("/metrics")[1].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"slmpack_{metric}" and labels.items() <= sample.labels.items()
        )

    def _answer(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def serving(
    package: Package, folder: Path, workspace: Path, *options: str, interface: Interface = Interface.CHAT
) -> Iterator[Served]:
    """Serve a package as it is logged; the log is in `folder`, and the server is stopped by SIGTERM."""
    with (
        staged_model(package, interface, "tiny", "0" * 64, workspace) as model,
        serving_folder(model, folder, *options) as served,
    ):
        yield served


@contextmanager
def serving_folder(model: Path, folder: Path, *options: str) -> Iterator[Served]:
    """Serve the folder of a logged model."""
    log = folder / "serve.log"
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "serve",
        str(model),
        "--port",
        "0",
        "--workspace",
        str(folder),
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with log.open("wb") as written:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=written, stderr=written)
    try:
        address = _address(process, log)
        wait_until_healthy(f"{address}/health", process, log, START_SECONDS)
        yield Served(address, "tiny", model, log, process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        kill_tree(process.pid)
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the address that the server prints once it listens."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := LISTENING.search(log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def client_of(served: Served, seconds: float = PATIENCE_SECONDS) -> Iterator[OpenAI]:
    """Give OpenAI's own client, which tries once."""
    with OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=seconds) as found:
        yield found


def wrapper_of(served: Served) -> ChatModel:
    """Return the model that travels, loaded from the very folder that is served."""
    import mlflow

    return mlflow.pyfunc.load_model(str(served.folder)).unwrap_python_model()  # type: ignore[no-any-return]


def wait_for(condition: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """Return what a condition returns once it holds; raise if it never does."""
    deadline = time.monotonic() + seconds
    while not (held := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {seconds} s")
        time.sleep(0.02)
    return held
