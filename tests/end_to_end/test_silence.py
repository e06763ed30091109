"""Silence: nothing but the package index is asked, and nothing is written but where it was said.

The commands have nothing of ours in their environment, and a home folder that is empty.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import SLMPACK
from traced import Trace, bare_environment, needs_strace, read_log, run_traced

from slmpack.signing.keys import new_key

pytestmark = [pytest.mark.slow, needs_strace]

LOAD = """
import mlflow
model = mlflow.pyfunc.load_model("models:/steady-phi3@cpu-int4")
model.predict({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
"""
CHECKED = LOAD.replace("import mlflow", "import slmpack").replace(
    "mlflow.pyfunc.load_model(", 'slmpack.load(trust="trust.toml", uri='
)
# Serves the version, asks it, and stops the server.
SERVE = """
import json, re, subprocess, sys, urllib.request
server = subprocess.Popen([sys.argv[1], "serve", *sys.argv[2:]], stderr=subprocess.PIPE, text=True)
address = next(found[1] for line in server.stderr if (found := re.search(r"listening at (http://\\S+?)/v1", line)))
body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}).encode()
request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
assert json.load(urllib.request.urlopen(request))["choices"]
server.terminate()
rest = server.stderr.read()
assert server.wait() == 0, rest
"""
# What a stranger might leave in a folder that somebody works in: it says that it was run.
PLANTED_MODULES = (
    "mlflow", "prefect", "onnxruntime", "onnxruntime_genai", "onnx", "torch", "transformers", "tokenizers", "numpy",
    "jinja2", "yaml", "pydantic", "slmpack", "flows", "tasks", "sitecustomize", "usercustomize", "chat_model",
)  # fmt: skip
PLANTED_LIBRARIES = ("libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime-genai.so", "custom_ops.so",
                     "libonnxruntime_providers_shared.so", "libcuda.so.1")  # fmt: skip
LIBRARY = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) { close(open("%s/ran-library", O_CREAT | O_WRONLY, 0600)); }
"""
AFTERWARDS = 'mlflow.MlflowClient().create_registered_model("another")  # which MLflow reports, by default'


VFORK, STARTED = ("1", "vfork", "", "2"), ("2", "execve", '"/usr/bin/uv", ["uv"]', "0")
ASKED = ("2", "connect", '3, {sa_family=AF_INET, sin_addr=inet_addr("203.0.113.9")}, 16', "0")


@pytest.mark.parametrize("calls", [(VFORK, STARTED), (STARTED, VFORK)])
def test_a_program_is_known_by_its_name_whichever_call_the_log_has_first(calls: tuple[Any, ...]) -> None:
    """The parent's call returns when the child has started its program: two events, in the log in either order."""
    parent = ("1", "execve", '"/usr/bin/python", ["python"]', "0")
    assert read_log((parent, *calls, ASKED), Path()).attempts == (("uv", "203.0.113.9"),)


class Person:
    """Somebody with an empty home folder, who runs commands in a folder with an MLflow store."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work, self.temporary = folder / "home", folder / "work", folder / "tmp"
        for each in (self.home, self.work, self.temporary):
            each.mkdir()

    def run(self, *command: str, **extra: str) -> Trace:
        environment = bare_environment(HOME=str(self.home), TMPDIR=str(self.temporary), **extra)
        done, trace = run_traced([*command], self.work, environment)
        assert done.returncode == 0, done.stderr
        return trace

    def outside(self, trace: Trace, *places: Path) -> list[str]:
        return trace.written_outside(self.work, self.temporary, *places)


@pytest.fixture(scope="module")
def uv_cache() -> Path:
    return Path.home() / ".cache" / "uv"


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Person:
    return Person(tmp_path_factory.mktemp("person"))


@pytest.fixture(scope="module")
def main_job(person: Person, steady_phi3: Path, workspace: Path, uv_cache: Path) -> Trace:
    """The main job with a tiny model, which is signed; the others ask what it published."""
    key = new_key(person.work / "release.pem")
    policy = f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['steady-*']\n"
    (person.work / "trust.toml").write_text(policy)
    command = (
        SLMPACK, "package", str(steady_phi3), "--workspace", str(workspace), "--force", "--signing-key", "release.pem",
    )  # fmt: skip
    return person.run(*command, PREFECT_HOME=str(person.work / "prefect"), UV_CACHE_DIR=str(uv_cache))


def test_the_main_job_asks_the_package_index_and_nobody_else(main_job: Trace) -> None:
    assert {program for program, _ in main_job.attempts} <= {"uv"}


def test_the_main_job_writes_where_it_was_told_to(
    main_job: Trace, person: Person, workspace: Path, uv_cache: Path
) -> None:
    assert any(path.endswith("mlflow.db") for path in main_job.written)  # or nothing was traced
    assert person.outside(main_job, workspace, uv_cache) == []


@pytest.mark.usefixtures("main_job")
def test_chat_asks_nobody_and_writes_nothing_elsewhere(person: Person) -> None:
    trace = person.run(SLMPACK, "chat", "models:/steady-phi3@cpu-int4", "Hi", "--trust", "trust.toml")
    assert trace.attempts == ()
    assert person.outside(trace) == []


@pytest.mark.usefixtures("main_job")
def test_a_server_asks_nobody_and_writes_nothing_elsewhere(person: Person) -> None:
    uri = "models:/steady-phi3@cpu-int4"
    options = ("--port", "0", "--trust", "trust.toml", "--workspace", str(person.work / "served"))
    trace = person.run(sys.executable, "-c", SERVE, SLMPACK, uri, *options)
    assert trace.attempts == ()
    assert person.outside(trace) == []


@pytest.mark.usefixtures("main_job")
def test_a_consumer_that_checks_the_signature_asks_nobody(person: Person) -> None:
    trace = person.run(sys.executable, "-c", CHECKED)
    assert trace.attempts == ()
    assert person.outside(trace) == []


@pytest.mark.usefixtures("main_job")
def test_who_loads_a_version_asks_nobody_and_only_mlflow_itself_writes_when_it_is_imported(person: Person) -> None:
    trace = person.run(sys.executable, "-c", LOAD)
    assert trace.attempts == ()
    assert person.outside(trace, person.home / ".config") == []
    assert {Path(path).name for path in person.outside(trace)} <= {
        ".config",
        "mlflow",
        "telemetry.tmp",
        "telemetry.json",
    }
    silent = person.run(
        sys.executable, "-c", LOAD, MLFLOW_DISABLE_TELEMETRY="true", XDG_CONFIG_HOME=str(person.home / "x")
    )
    assert person.outside(silent) == []


@pytest.mark.usefixtures("main_job")
def test_once_a_version_is_loaded_mlflow_reports_nothing_more(person: Person) -> None:
    assert person.run(sys.executable, "-c", f"{LOAD}\n{AFTERWARDS}\nimport time; time.sleep(2)").attempts == ()


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with modules and libraries of the names that commands load, each of which says that it was run."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED_MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / f'ran-{name}')!r}, 'w').close()\n")
    if compiler := shutil.which("cc"):
        (tmp_path / "library.c").write_text(LIBRARY % tmp_path)
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / PLANTED_LIBRARIES[0]), str(tmp_path / "library.c")]
        subprocess.run(command, check=True)
        for name in PLANTED_LIBRARIES[1:]:
            shutil.copy(folder / PLANTED_LIBRARIES[0], folder / name)
    return folder


@pytest.mark.usefixtures("main_job")
def test_nothing_that_lies_in_the_working_folder_is_run(
    person: Person, planted: Path, steady_phi3: Path, workspace: Path
) -> None:
    uri, trust = "models:/steady-phi3@cpu-int4", str(person.work / "trust.toml")
    store = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{person.work / 'mlflow.db'}", "PREFECT_HOME": str(person.work / "prefect"),
        "HOME": str(person.home), "TMPDIR": str(person.temporary),
    }  # fmt: skip
    for command in (
        [SLMPACK, "chat", uri, "Hi", "--trust", trust],
        [SLMPACK, "package", str(steady_phi3), "--workspace", str(workspace)],
        [sys.executable, "-P", "-c", SERVE, SLMPACK, uri, "--port", "0", "--workspace", str(person.work / "served")],
    ):
        done = subprocess.run(
            [str(word) for word in command], cwd=planted, env=bare_environment(**store), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert [path.name for path in planted.parent.glob("ran-*")] == []
    assert planted_ones_run(planted)  # or this test would see nothing


def planted_ones_run(folder: Path) -> bool:
    """Say whether a planted module leaves its mark where it is imported, and the library where it is loaded."""
    subprocess.run([sys.executable, "-c", "import tokenizers"], cwd=folder, check=True)
    marks = ["ran-tokenizers"]
    if (library := folder / PLANTED_LIBRARIES[0]).exists():
        subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], cwd=folder, check=True)
        marks.append("ran-library")
    return all((folder.parent / mark).exists() for mark in marks)
