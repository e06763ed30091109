"""Clean environment: the logged model is loaded and answers where nothing is installed but its own requirements.

    requirements.lock, else requirements.txt, by URI --uv--> a new virtual environment
    a new virtual environment --consumer.py--> the model's own input example, answered

A requirement that is missing, or an import of what only this machine has, shows here and nowhere else. uv does the
installing, from the package index that pip is set up with (`machine.pip_config`).
"""

import json
import logging
import shutil
import signal
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slmpack.errors import CheckError
from slmpack.figures import bytes_shown
from slmpack.log.interfaces import check_answer, signature_of
from slmpack.machine.environments import UvError, inherited, make_environment, resolve_requirements, run_to_log
from slmpack.machine.limits import limit_seconds
from slmpack.machine.private import empty_log
from slmpack.machine.runtimes import SETS
from slmpack.machine.store import lock, log_folder
from slmpack.progress import report
from slmpack.prove.clean_environment import consumer
from slmpack.prove.clean_environment.packages import installed_packages
from slmpack.prove.clean_environment.requirement_files import REQUIREMENTS, fetch_requirements, take_lock
from slmpack.records import Interface, LoggedModel, Record, Target, digest_of
from slmpack.reports import Check, CleanEnvironment
from slmpack.source.mlflow_errors import final_errors

logger = logging.getLogger(__name__)

ASK_LIMIT_SECONDS = 1800.0
ANSWER_TOKENS = 16
BYTECODE = "bytecode"
CUDA_PLATFORM = "x86_64-manylinux_2_28"  # what ONNX Runtime's wheels for CUDA 13 are built for
# A module that is importable in there would hide that the model needs it.
FORBIDDEN = {
    target: ("slmpack",) if target is Target.TRANSFORMERS else ("slmpack", "torch", "transformers") for target in Target
}


class Answer(Record):
    """What the model answered in the clean environment; times in seconds.

    Attributes:
        not_closed: why the network was closed to Python's sockets only; None: it was closed to everything.
    """

    answer: Any
    load_seconds: float
    answer_seconds: float
    not_closed: str | None


def check_clean_environment(model: LoggedModel, workspace: Path) -> CleanEnvironment:
    """Install what the logged model itself says it needs, in a new place, and ask it there.

    The environment is gone afterwards. One is made at a time, so that what a killed run left can be removed.

    Raises:
        CheckError: a requirement cannot be had, the model does not load or answer there, or it has to be helped by a
            module that it does not name.
        ConnectionError: the package index cannot be reached.
    """
    log = log_folder(workspace) / f"environment-{model.model_id}.log"
    empty_log(log)
    with _empty_folder(workspace) as folder:
        with final_errors(CheckError, f"to read {model.uri}"):
            source = _fetch(model, folder)
        started = time.monotonic()
        report("clean environment", 1, 3, "steps")
        locked = take_lock(folder)
        python = _make(folder, log, hashed=bool(locked))
        made = time.monotonic()
        packages = installed_packages(folder / "environment", locked)
        report("clean environment", 2, 3, "steps")
        with _bytecode_of_packages(folder, workspace):
            answer = _ask(model, source, python, folder, log)
        answered = time.monotonic()
        report("clean environment", 3, 3, "steps")
        cost = _cost(folder / "environment", made - started, answered - made)
        cost += f", {'each with a hash of its lock' if locked else 'without hashes'}"
    logger.info("clean environment of %s: %s", model.model_id, cost)
    found = _check(answer.answer, model)
    checks = (
        Check(name="clean environment", found=cost),
        Check(name="answer in a clean environment", found=found),
        Check(name="network of the clean environment", found=_network(answer)),
    )
    return CleanEnvironment(checks=checks, packages=packages)


def _network(answer: Answer) -> str:
    if answer.not_closed is None:
        return "closed by the kernel; no attempt to reach another machine, by any library"
    return f"closed to Python's sockets only, where there was no attempt: {answer.not_closed}"


def check_resolution(model: LoggedModel, workspace: Path) -> Check:
    """Ask the package index for all that the logged model needs on a machine with a GPU; nothing is installed.

    Raises:
        CheckError: a requirement cannot be had, or one brings ONNX Runtime for CPUs, which owns the same import name.
        ConnectionError: the package index cannot be reached.
    """
    log = log_folder(workspace) / f"environment-{model.model_id}.log"
    empty_log(log)
    with _empty_folder(workspace) as folder:
        with final_errors(CheckError, f"to read {model.uri}"):
            fetch_requirements(model, folder)
        try:
            lines = resolve_requirements(folder / REQUIREMENTS, CUDA_PLATFORM, log, CheckError)
        except UvError as refused:
            raise _unmade(refused, log) from refused
    names = {line.partition("==")[0].strip() for line in lines}
    if wrong := sorted(names & set(SETS["cpu"])):
        raise CheckError(
            f"clean environment: {wrong[0]} beside {SETS['cuda'][0]}",
            "one of the two",
            f"see which of its {REQUIREMENTS} asks for it; the log is {log}",
        )
    return Check(name="clean environment resolves", found=f"{len(lines)} packages for {CUDA_PLATFORM}, none installed")


@contextmanager
def _empty_folder(workspace: Path) -> Iterator[Path]:
    folder = workspace / "scratch" / "clean-environment"
    with lock(workspace, folder.name):
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed: we hold its lock
        folder.mkdir(parents=True)
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

    artifacts = fetch_requirements(model, folder)
    scheme = urlsplit(artifacts.location).scheme
    if urlsplit(get_tracking_uri()).scheme in {"http", "https"} and scheme == "mlflow-artifacts":
        return model.uri
    return str(artifacts.path_of("", folder / "model"))


def _make(folder: Path, log: Path, *, hashed: bool = False) -> Path:
    """Make the environment with uv and return its interpreter."""
    try:
        return make_environment(folder / "environment", folder / REQUIREMENTS, log, CheckError, hashed=hashed)
    except UvError as refused:
        raise _unmade(refused, log) from refused


@contextmanager
def _bytecode_of_packages(folder: Path, workspace: Path) -> Iterator[None]:
    """Lend the environment what Python has compiled of the same packages before, and keep it if the block succeeds.

    To compile them takes longer than to load and ask a small model. Python compares a file's time and size before it
    uses its bytecode. Nothing of the model's own code is kept, and nothing after a failure.
    """
    environment = folder / "environment"
    packages = sorted(path.name for path in environment.glob("lib/python*/site-packages/*.dist-info"))
    kept = workspace / BYTECODE / digest_of(packages)
    compiled = {"packages": environment, "python": Path(sysconfig.get_path("stdlib"))}
    places = {kept / name: folder / BYTECODE / path.relative_to(path.anchor) for name, path in compiled.items()}
    for stored, lent in places.items():
        lent.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            stored.rename(lent)
    yield
    kept.mkdir(parents=True, exist_ok=True)
    for stored, lent in places.items():
        with suppress(OSError):  # it costs the next one seconds
            lent.rename(stored)


def _unmade(refused: UvError, log: Path) -> Exception:
    if refused.is_unreachable:
        return ConnectionError(f"uv could not reach the package index: {str(refused)[:300]}; the log is {log}")
    return CheckError(
        f"clean environment: {str(refused)[:300]}",
        f"a {REQUIREMENTS} that the package index can serve",
        f"log the model again with versions it has; the log is {log}",
    )


def _ask(model: LoggedModel, source: str, python: Path, folder: Path, log: Path) -> Answer:
    """Run the consumer in the environment and return what it found: first it downloads, then it has no network."""
    (folder / "tmp").mkdir()
    limit = "max_new_tokens" if model.package.target is Target.TRANSFORMERS else "max_tokens"
    parameters = {"forbidden": FORBIDDEN[model.package.target], "model_config": {limit: ANSWER_TOKENS}}

    def run(step: str, request: dict[str, object]) -> dict[str, Any]:
        return _run_consumer(python, step, parameters | request, model.package.size_bytes, log)

    if source == model.uri:
        (folder / "model").mkdir()
        source = run("fetch", {"source": source, "into": str(folder / "model")})["folder"]
    return Answer.model_validate(run("ask", {"source": source}))


def _run_consumer(python: Path, step: str, parameters: dict[str, object], size_bytes: int, log: Path) -> dict[str, Any]:
    """Run one step of the consumer and return what it found.

    Args:
        python: the environment's interpreter; the consumer works in the folder that the environment is in.
        step: `fetch` or `ask`.
        parameters: what the step is about.
        size_bytes: of the package, which decides how long the step may take.
        log: what is printed is appended to it.

    Raises:
        CheckError: it failed at something, was killed, or took too long.
    """
    folder = python.parents[2]
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)  # of the step before
    request.write_text(json.dumps(parameters | {"result": str(result)}))
    # Bytecode is beside the environment, where the second step finds what the first compiled: a store on this machine
    # is read in place, and bytecode in it would later be run unlooked at.
    bytecode = f"pycache_prefix={folder / BYTECODE}"
    command = [str(python), "-I", "-P", "-X", bytecode, consumer.__file__, step, str(request)]
    code = run_to_log(command, _consumer_environment(folder), folder, log, limit_seconds(ASK_LIMIT_SECONDS, size_bytes))
    if code or not result.exists():
        how_ended = "was killed by signal 9" if code == -signal.SIGKILL else f"ended with code {code}"
        raise CheckError(
            f"clean environment: the process that runs the model {how_ended}", "an answer", f"the log is {log}"
        )
    answer: dict[str, Any] = json.loads(result.read_text())
    if "step" in answer:
        raise CheckError(
            f"clean environment: {answer['step']} failed with {answer['kind']}: {answer['message'][:300]}",
            f"a model that needs nothing but its {REQUIREMENTS}",
            f"the log is {log}",
        )
    return answer


def _consumer_environment(folder: Path) -> dict[str, str]:
    """Return what the consumer sees: the server if there is one, no pickles, no Hub and none of its files from here."""
    import mlflow

    stores = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    servers = {name: uri for name, uri in stores.items() if urlsplit(uri).scheme in {"http", "https"}}
    return (
        inherited()
        | servers
        | {
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "TMPDIR": str(folder / "tmp"),
        }
    )


def _cost(environment: Path, make_seconds: float, ask_seconds: float) -> str:
    packages = len(list(environment.glob("lib/python*/site-packages/*.dist-info")))
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    return f"{packages} packages, {bytes_shown(size)}, made in {make_seconds:.1f} s, answered in {ask_seconds:.1f} s"


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
