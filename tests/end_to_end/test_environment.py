"""The clean environment: a model that needs more than it says is refused, by name."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from command_line import children_with
from mlflow import MlflowClient
from mlflow_server import used_mlflow_server

from slmpack import progress
from slmpack.errors import CheckError
from slmpack.log.log import log_model
from slmpack.log.requirements_lock import LOCK
from slmpack.machine.environments import run_to_log
from slmpack.prove.clean_environment import consumer
from slmpack.prove.clean_environment.check import check_clean_environment, check_resolution
from slmpack.records import Interface, LoggedModel, Package


@pytest.fixture(scope="module")
def logged(tiny_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggedModel]:
    """A model in a store in sqlite, whose files each test changes and gives back."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        model = log_model(tiny_package, Interface.CHAT, "tiny", workspace, {})
        location = MlflowClient().get_logged_model(model.model_id).artifact_location
        (Path(location.removeprefix("file://")) / LOCK).unlink()  # as models of earlier releases have none
        yield model
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def locked(logged: LoggedModel, tiny_package: Package, workspace: Path) -> LoggedModel:
    """A model with its lock, in the same store."""
    return log_model(tiny_package, Interface.CHAT, "locked", workspace, {})


@contextmanager
def edited(model: LoggedModel, name: str, change: Callable[[str], str]) -> Iterator[None]:
    """Change a file of a logged model in its local store for a while."""
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    path = Path(location.removeprefix("file://")) / name
    before = path.read_text()
    path.unlink()  # read-only, and maybe another name of a file of the workspace
    path.write_text(change(before))
    try:
        yield
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that no test beside us makes an environment in."""
    return tmp_path_factory.mktemp("workspace")


def left_behind(workspace: Path) -> list[Path]:
    return list((workspace / "scratch").glob("clean-environment*"))


# ---------------------------------------------------------------------------------------------- whole checks


@pytest.mark.slow
def test_a_model_on_a_server_answers_with_nothing_installed_but_its_requirements(
    tiny_package: Package, place: Path, tmp_path: Path
) -> None:
    with used_mlflow_server(tmp_path):
        model = log_model(tiny_package, Interface.PROMPT, "tiny", place, {})
        found = check_clean_environment(model, place)
    cost, answer, network = found.checks
    packages = int(cost.found.split()[0])
    assert len(model.requirements) < packages < 80
    assert answer.found.strip()
    assert cost.found.endswith("each with a hash of its lock")
    assert all(each.sha256 for each in found.packages)
    licences = {each.name: each.licence for each in found.packages}
    assert len(licences) == packages
    assert "BSD" in str(licences["jinja2"])
    assert network.found.startswith("closed by the kernel" if has_namespaces() else "closed to Python's sockets only")
    assert not left_behind(place)
    (compiled,) = (place / "bytecode").iterdir()
    assert {path.name for path in compiled.iterdir()} == {"packages", "python"}  # nothing of the model's own code
    assert next(compiled.rglob("onnxruntime_genai/__init__*.pyc"))


@pytest.mark.slow
def test_a_missing_requirement_is_refused_with_the_name_of_its_module(logged: LoggedModel, place: Path) -> None:
    with (
        edited(logged, "requirements.txt", lambda text: text.replace("onnxruntime-genai==", "idna==3.10 # ")),
        pytest.raises(CheckError, match=r"loading the model failed.*No module named 'onnxruntime_genai'"),
    ):
        check_clean_environment(logged, place)
    assert not left_behind(place)


@pytest.mark.slow
def test_a_wrapper_that_imports_slmpack_is_refused(logged: LoggedModel, place: Path) -> None:
    with (
        edited(
            logged, "chat_model.py", lambda text: text.replace("import hashlib", "import slmpack\nimport hashlib", 1)
        ),
        pytest.raises(CheckError, match="No module named 'slmpack'"),
    ):
        check_clean_environment(logged, place)


@pytest.mark.slow
def test_a_release_that_does_not_exist_is_refused_by_name(logged: LoggedModel, place: Path) -> None:
    with (
        edited(logged, "requirements.txt", lambda text: text + "\nnumpy-financial==99.99\n"),
        pytest.raises(CheckError, match=r"numpy-financial==99\.99.*environment-m-.*\.log"),
    ):
        check_clean_environment(logged, place)
    assert not left_behind(place)


def zeroed(text: str) -> str:
    """Return a lock that expects other bytes of one package."""
    return re.sub(
        r"(?<=jinja2==3\.1\.6 )(\\\n *--hash=sha256:[0-9a-f]{64} ?)+", f"\\\n    --hash=sha256:{'0' * 64}", text
    )


@pytest.mark.slow
def test_a_package_with_another_hash_than_its_lock_has_is_not_installed(locked: LoggedModel, place: Path) -> None:
    with (
        edited(locked, LOCK, zeroed),
        pytest.raises(CheckError, match=r"(?i)clean environment: .*hash.*jinja2"),
    ):
        check_clean_environment(locked, place)
    assert not left_behind(place)


@pytest.mark.slow
def test_a_lock_that_does_not_fit_the_requirements_is_refused(locked: LoggedModel, place: Path) -> None:
    with (
        edited(locked, LOCK, lambda text: text.replace("jinja2==3.1.6", "jinja2==3.1.5")),
        pytest.raises(CheckError, match=r"requirements\.lock without jinja2==3\.1\.6"),
    ):
        check_clean_environment(locked, place)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["-r other.txt", "evil @ http://127.0.0.1:9/evil.whl", "idna>=3"])
def test_a_requirement_that_is_no_pin_is_refused_before_anything_is_installed(
    logged: LoggedModel, place: Path, line: str
) -> None:
    for check in (check_clean_environment, check_resolution):
        with (
            edited(logged, "requirements.txt", lambda text: f"{text}\n{line}\n"),
            pytest.raises(CheckError, match=f"the requirement {line!r}; a package and its version"),
        ):
            check(logged, place)
        assert (place / "logs" / f"environment-{logged.model_id}.log").read_bytes() == b""  # no installer was started


class _CtrlC(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_leaves_no_environment_and_no_lock(logged: LoggedModel, place: Path) -> None:
    handler = _CtrlC()
    progress.logger.addHandler(handler)
    try:
        for _ in range(2):  # the second would wait for ever if the first kept the lock
            with pytest.raises(KeyboardInterrupt):
                check_clean_environment(logged, place)
    finally:
        progress.logger.removeHandler(handler)
    assert not left_behind(place)


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_no_fault_of_the_model(
    logged: LoggedModel, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name, value in (
        ("INDEX_URL", "http://127.0.0.1:9/simple"),
        ("RETRIES", "0"),
        ("FIND_LINKS", ""),
        ("EXTRA_INDEX_URL", ""),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    with (
        edited(logged, "requirements.txt", lambda text: "slmpack-absent==1.0\n"),
        pytest.raises(ConnectionError, match="could not reach the package index"),
    ):
        check_clean_environment(logged, place)


# ---------------------------------------------------------------------------------------------- the children


def test_ctrl_c_kills_the_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # It presses Ctrl-C for us, once it runs, and would stay for an hour.
    code = "import os, time; print(os.getpid(), flush=True); os.kill(os.getppid(), 2); time.sleep(3600)"
    with pytest.raises(KeyboardInterrupt):
        run_to_log([sys.executable, "-c", code], dict(os.environ), tmp_path, log, 600)
    assert not psutil.pid_exists(int(log.read_text()))


def test_a_child_over_its_time_is_killed_and_its_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"import time; time.sleep(3600)  # {tmp_path}"  # which tells it from others, however far it comes
    with pytest.raises(CheckError, match=rf"took longer than 2 s and was stopped.*{log}"):
        run_to_log([sys.executable, "-c", code], dict(os.environ), tmp_path, log, 2)
    assert children_with(str(tmp_path)) == []


def test_the_consumer_ends_with_its_parent(tmp_path: Path) -> None:
    """Its standard input closes when the parent dies; here it is closed from the start."""
    request = tmp_path / "request.json"
    os.mkfifo(request)  # so that it waits for a request that never comes
    ended = subprocess.run(
        [sys.executable, "-I", consumer.__file__, "ask", str(request)],
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 1


ASKS_THE_NETWORK = """
import socket
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        QUESTION


set_model(Model())
"""


def save_model(folder: Path, code: str, question: str) -> dict[str, Any]:
    """Save a model that runs `question` when it is asked, ask it, and return what the consumer found."""
    (folder / "code.py").write_text(code.replace("QUESTION", question))
    saved: dict[str, Any] = {"python_model": str(folder / "code.py"), "pip_requirements": ["mlflow-skinny"]}
    mlflow.pyfunc.save_model(str(folder / "model"), input_example={"prompt": "hi"}, **saved)
    request: dict[str, object] = {
        "source": str(folder / "model"),
        "forbidden": [],
        "model_config": None,
        "result": str(folder / "result"),
    }
    return ask_consumer(request, folder)


def has_namespaces() -> bool:
    code = f"import sys; sys.path.insert(0, {str(Path(consumer.__file__).parent)!r}); import consumer as c"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(c.close_network())"], capture_output=True, check=True)
    return done.stdout.strip() == b"None"


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="the kernel allows no network namespace here")


@pytest.mark.slow
def test_a_model_that_asks_the_network_for_more_is_refused(tmp_path: Path) -> None:
    told = save_model(tmp_path, ASKS_THE_NETWORK, 'socket.create_connection(("127.0.0.1", 9))')
    assert told["kind"] == "NetworkError"
    assert "socket.getaddrinfo" in told["message"]


# What a library in C does; Python's audit events know nothing of it.
IN_C = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
def connect(family, kind, port, address):
    handle = libc.socket(family, kind, 0)
    middle = b"" if family == socket.AF_INET else bytes(4)
    name = struct.pack("=H", family) + struct.pack("!H", port) + middle + socket.inet_pton(family, address) + bytes(8)
    return libc.connect(handle, name, len(name))
"""


@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize("attempt", [
    "connect(socket.AF_INET, socket.SOCK_STREAM, 443, '203.0.113.9')",
    "connect(socket.AF_INET, socket.SOCK_DGRAM, 53, '203.0.113.9')",
    "connect(socket.AF_INET6, socket.SOCK_STREAM, 443, '2001:db8::9')",
    "libc.getaddrinfo(b'telemetry.example.org', b'443', None, ctypes.byref(ctypes.c_void_p()))",
])  # fmt: skip
def test_what_a_library_in_c_asks_the_network_is_counted(tmp_path: Path, attempt: str) -> None:
    told = save_model(tmp_path, IN_C + ASKS_THE_NETWORK, f"{attempt}; return ['x']")
    assert told.get("kind") == "NetworkError", told
    assert "attempts to reach another machine" in told["message"]


@pytest.mark.slow
def test_a_model_that_asks_nothing_answers_and_the_network_is_told(tmp_path: Path) -> None:
    told = save_model(tmp_path, ASKS_THE_NETWORK, "return ['x']")
    assert (told["answer"], "step" in told) == (["x"], False)
    assert (told["not_closed"] is None) == has_namespaces()


def test_a_module_that_must_not_be_there_is_refused(tmp_path: Path) -> None:
    told = consumer.fetch({"forbidden": ["no_such_module", "slmpack"]})
    assert (told["step"], told["message"]) == ("downloading the model", "slmpack can be imported here")


def ask_consumer(request: dict[str, object], folder: Path) -> dict[str, Any]:
    """Run the consumer in this environment: what it does there does not depend on the packages."""
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    run_to_log(
        [sys.executable, "-I", consumer.__file__, "ask", str(path)], dict(os.environ), folder, folder / "log", 900
    )
    told: dict[str, Any] = json.loads(Path(str(request["result"])).read_text())
    return told
