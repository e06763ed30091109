"""Clean environment: the logged model is loaded and asked where nothing is installed but its own requirements.

    requirements.txt, by URI --uv--> a new virtual environment --consumer.py--> the model's own input example, answered

A requirement that is missing, or an import of what only this machine has, shows here and nowhere else. uv does the
installing, from the package index that pip is set up with (`package_index`).
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slmpack import consumer
from slmpack.child import kill_tree
from slmpack.errors import CheckError
from slmpack.integrity import artifact_location, is_local
from slmpack.interfaces import check_answer, signature_of
from slmpack.limits import limit_seconds
from slmpack.package_index import read_pip_config, settings_for_uv
from slmpack.progress import report
from slmpack.records import Check, Interface, LoggedModel, Record, Target
from slmpack.registry import final_errors
from slmpack.store import lock, log_folder
from slmpack.telemetry import SWITCHES

logger = logging.getLogger(__name__)

MAKE_LIMIT_SECONDS = 1800.0
ASK_LIMIT_SECONDS = 1800.0
ANSWER_TOKENS = 16
REQUIREMENTS = "requirements.txt"
UNREACHABLE = re.compile(r"error sending request|error decoding response body|timed out|HTTP status server error")
# A module that is importable in there would hide that the model needs it.
FORBIDDEN = {
    target: ("slmpack",) if target is Target.TRANSFORMERS else ("slmpack", "torch", "transformers") for target in Target
}


class Answer(Record):
    """What the model answered in the clean environment; times in seconds."""

    answer: Any
    load_seconds: float
    answer_seconds: float


def check_clean_environment(model: LoggedModel, workspace: Path) -> tuple[Check, ...]:
    """Install what the logged model itself says it needs, in a new place, and ask it there.

    The environment is gone afterwards. One is made at a time, so that what a killed run left can be removed.

    Raises:
        CheckError: a requirement cannot be had, the model does not load or answer there, or it has to be helped by a
            module that it does not name.
        ConnectionError: the package index cannot be reached.
    """
    log = log_folder(workspace) / f"environment-{model.model_id}.log"
    log.write_bytes(b"")
    with _empty_folder(workspace) as folder:
        with final_errors(CheckError, f"to read {model.uri}"):
            source = _fetch(model, folder)
        started = time.monotonic()
        report("clean environment", 1, 3, "steps")
        python = _make(folder, log)
        made = time.monotonic()
        report("clean environment", 2, 3, "steps")
        answer = _ask(model, source, python, folder, log)
        answered = time.monotonic()
        report("clean environment", 3, 3, "steps")
        cost = _cost(folder / "environment", made - started, answered - made)
    logger.info("clean environment of %s: %s", model.model_id, cost)
    found = _check(answer.answer, model)
    return Check(name="clean environment", found=cost), Check(name="answer in a clean environment", found=found)


@contextmanager
def _empty_folder(workspace: Path) -> Iterator[Path]:
    folder = workspace / "scratch" / "clean-environment"
    with lock(workspace, folder.name):
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed: we hold its lock
        folder.mkdir(parents=True)
        (folder / "uv.toml").touch()  # uv takes the nearest one: no project around the workspace has a say
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _fetch(model: LoggedModel, folder: Path) -> str:
    """Read the requirements by URI into `folder`; return what the consumer is to load.

    mlflow-skinny has no database driver and no cloud storage: it can load by URI only what an MLflow server hands
    out. Everything else is resolved here, in place where the store is on this machine.
    """
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = artifact_location(model)
    repository: Any = get_artifact_repository(location)
    repository.download_artifacts(REQUIREMENTS, str(folder))
    if urlsplit(get_tracking_uri()).scheme in {"http", "https"} and urlsplit(location).scheme == "mlflow-artifacts":
        return model.uri
    if is_local(location):
        return str(Path(repository.download_artifacts("")).absolute())
    (folder / "model").mkdir()
    return str(repository.download_artifacts("", str(folder / "model")))


def _make(folder: Path, log: Path) -> Path:
    """Make the environment with uv and return its interpreter."""
    from uv import find_uv_bin

    uv, settings = find_uv_bin(), settings_for_uv(read_pip_config(sys.executable))
    environment = folder / "environment"
    python = environment / "bin" / "python"
    offered = _inherited() | settings.environment | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    for command in (
        [uv, "venv", "--no-project", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--python", str(python), *settings.arguments, "--requirements", REQUIREMENTS],
    ):
        if run_to_log(command, offered, folder, log, MAKE_LIMIT_SECONDS):
            raise _uv_error(log)
    return python


def _uv_error(log: Path) -> Exception:
    reason = reason_of_uv(log.read_text(errors="replace"))
    if UNREACHABLE.search(reason):
        return ConnectionError(f"uv could not reach the package index: {reason[:300]}; the log is {log}")
    return CheckError(
        f"clean environment: {reason[:300]}",
        f"a {REQUIREMENTS} that the package index can serve",
        f"log the model again with versions it has; the log is {log}",
    )


def reason_of_uv(output: str) -> str:
    """Return uv's last error and its causes in one line."""
    start = max(output.rfind("error: "), 0)
    lines = (line.strip().removeprefix("error: ").removeprefix("cause: ") for line in output[start:].splitlines())
    return ": ".join(filter(None, lines)) or "uv failed without a word"


def _ask(model: LoggedModel, source: str, python: Path, folder: Path, log: Path) -> Answer:
    """Run the consumer in the environment and return what it found."""
    (folder / "tmp").mkdir()
    request, result = folder / "request.json", folder / "result.json"
    limit = "max_new_tokens" if model.package.target is Target.TRANSFORMERS else "max_tokens"
    asked = {
        "source": source,
        "forbidden": FORBIDDEN[model.package.target],
        "model_config": {limit: ANSWER_TOKENS},
        "result": str(result),
    }
    request.write_text(json.dumps(asked))
    # -B: a store on this machine is read in place, and bytecode in it would later be run unlooked at
    command = [str(python), "-I", "-P", "-B", consumer.__file__, str(request)]
    code = run_to_log(
        command, _consumer_environment(folder), folder, log,
        limit_seconds(ASK_LIMIT_SECONDS, model.package.size_bytes),
    )  # fmt: skip
    if code:
        how = "was killed by signal 9" if code == -signal.SIGKILL else f"ended with code {code}"
        raise CheckError(f"clean environment: the process that asks the model {how}", "an answer", f"the log is {log}")
    told = json.loads(result.read_text())
    if "step" in told:
        raise CheckError(
            f"clean environment: {told['step']} failed with {told['kind']}: {told['message'][:300]}",
            f"a model that needs nothing but its {REQUIREMENTS}",
            f"the log is {log}",
        )
    return Answer.model_validate(told)


def _inherited() -> dict[str, str]:
    """Return our own environment (proxies, certificates, credentials) without what points at this Python or store."""
    unwanted = ("PYTHON", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | SWITCHES


def _consumer_environment(folder: Path) -> dict[str, str]:
    """Return what the consumer sees: the server if there is one, no pickles, no Hub and none of its files kept here."""
    import mlflow

    stores = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    servers = {name: uri for name, uri in stores.items() if urlsplit(uri).scheme in {"http", "https"}}
    return _inherited() | servers | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip


def run_to_log(command: list[str], environment: dict[str, str], folder: Path, log: Path, limit_seconds: float) -> int:
    """Run in `folder`, everything printed to the log; return the exit code. No process is left behind.

    Raises:
        CheckError: it took too long.
    """
    with log.open("ab") as noise:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=noise, stderr=subprocess.STDOUT
        )
        try:
            return process.wait(limit_seconds)
        except subprocess.TimeoutExpired as error:
            found = f"clean environment: {Path(command[0]).name} took longer than {limit_seconds:.0f} s and was stopped"
            raise CheckError(found, "", f"the log is {log}") from error
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _cost(environment: Path, make_seconds: float, ask_seconds: float) -> str:
    packages = len(list(environment.glob("lib/python*/site-packages/*.dist-info")))
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    return f"{packages} packages, {size / 1e6:.0f} MB, made in {make_seconds:.1f} s, answered in {ask_seconds:.1f} s"


def _check(answer: object, model: LoggedModel) -> str:
    """Look at the answer, which comes in a list from a prompt model and from MLflow's transformers flavour."""
    if model.package.target is Target.TRANSFORMERS or model.interface is Interface.PROMPT:
        if not isinstance(answer, list) or len(answer) != 1:
            raise CheckError(f"clean environment: {str(answer)[:200]}", "a list of one answer", "check the wrapper")
        (answer,) = answer
    outputs = signature_of(model.interface).outputs
    assert outputs is not None
    check_answer(answer, outputs)
    text = answer if isinstance(answer, str) else answer["choices"][0]["message"].get("content")  # type: ignore[index]
    if not isinstance(text, str) or not text.strip():
        raise CheckError(f"clean environment: an answer with the text {text!r}", "some text", "check the wrapper")
    return text.strip()[:80]
