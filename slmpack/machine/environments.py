"""uv environment: a virtual environment made by uv from a list of requirements, and processes of it.

uv does the installing, from the package index that pip is set up with (`pip_config`). Everything that is printed
goes to a log.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from slmpack.errors import CheckError, SlmpackError
from slmpack.machine.pip_config import read_pip_config, settings_for_uv
from slmpack.machine.private import append_log
from slmpack.machine.process import Process, running, start_process
from slmpack.records import digest_of
from slmpack.telemetry import SWITCHES

MAKE_LIMIT_SECONDS = 1800.0
UNREACHABLE = re.compile(
    r"error sending request|error decoding response body|timed out|HTTP status server error|underlying connection|"
    r"tcp connect error|dns error|tunnel error"
)
CLEAN_ENVIRONMENT = "clean environment"


class UvError(Exception):
    """uv could not install; `str()` of it is uv's reason, in one line."""

    @property
    def is_unreachable(self) -> bool:
        """Whether uv could not reach the package index."""
        return UNREACHABLE.search(str(self)) is not None


def make_environment(
    environment: Path,
    requirements: Path,
    log: Path,
    failure: type[SlmpackError],
    doing: str = CLEAN_ENVIRONMENT,
    *,
    compiled: bool = False,
    hashed: bool = False,
) -> Path:
    """Make the virtual environment `environment`, a folder that is not there yet, and return its interpreter.

    It may be renamed: what is in it finds its own place, but for the scripts in `bin`.

    Args:
        environment: its parent is where uv runs; a `uv.toml` there keeps those of enclosing folders away.
        requirements: a file, one requirement a line.
        log: what uv prints is appended to it.
        failure: raised when uv takes too long.
        doing: what it is for, in that error.
        hashed: whether all requirements have hashes, which what is installed must have.
        compiled: whether bytecode is written for all of it, which pays where the environment is used again.

    Raises:
        UvError: the package index has not all of it, or cannot be reached.
    """
    folder, python = environment.parent, environment / "bin" / "python"
    uv, arguments, offered = _uv_in(folder)
    if compiled:
        arguments = (*arguments, "--compile-bytecode")
    if hashed:
        arguments = (*arguments, "--require-hashes")
    for command in (
        [uv, "venv", "--no-project", "--relocatable", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--python", str(python), *arguments, "--requirements", str(requirements)],
    ):
        if run_to_log(command, offered, folder, log, MAKE_LIMIT_SECONDS, failure, doing):
            raise UvError(reason_of_uv(log.read_text(errors="replace")))
    return python


def resolve_requirements(requirements: Path, platform: str, log: Path, failure: type[SlmpackError]) -> tuple[str, ...]:
    """Return all that would be installed for a file of requirements, `name==version` each; nothing is downloaded.

    Args:
        requirements: its folder is where uv runs.
        platform: in uv's words, such as `x86_64-manylinux_2_28`: wheels for another machine than this one.
        log: what uv prints is appended to it.
        failure: raised when uv takes too long.

    Raises:
        UvError: the package index has not all of it, or cannot be reached.
    """
    options = ("--python-platform", platform)
    text = _compiled(requirements, options, log, failure, MAKE_LIMIT_SECONDS)
    return tuple(line for line in text.splitlines() if "==" in line)


def lock_requirements(requirements: Path, log: Path, failure: type[SlmpackError], limit_seconds: float) -> str:
    """Return what `resolve_requirements` does, for this machine, as a file of pins with the hashes that the index has.

    Raises:
        UvError: as `resolve_requirements`.
    """
    return _compiled(requirements, ("--generate-hashes",), log, failure, limit_seconds)


def _compiled(
    requirements: Path, options: tuple[str, ...], log: Path, failure: type[SlmpackError], limit_seconds: float
) -> str:
    folder, result = requirements.parent, requirements.with_suffix(".resolved")
    uv, arguments, offered = _uv_in(folder)
    command = [uv, "pip", "compile", "--python", sys.executable, "--no-header", "--no-annotate", *options, *arguments]
    command += ["--output-file", str(result), str(requirements)]
    if run_to_log(command, offered, folder, log, limit_seconds, failure):
        raise UvError(reason_of_uv(log.read_text(errors="replace")))
    return result.read_text()


def index_digest() -> str:
    """Return what tells one setting of the package index from another; nothing of it can be read in there.

    pip's files are read once for each setting of its variables: pip takes a third of a second to start.
    """
    return _index_digest(tuple(sorted(each for each in os.environ.items() if each[0].startswith(("PIP_", "UV_")))))


@cache
def _index_digest(variables: tuple[tuple[str, str], ...]) -> str:
    return digest_of([variables, settings_for_uv(read_pip_config(sys.executable)).model_dump()])


def _uv_in(folder: Path) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Return uv, its arguments and its environment, for a run in `folder`."""
    from uv import find_uv_bin

    settings = settings_for_uv(read_pip_config(sys.executable))
    (folder / "uv.toml").touch()
    offered = inherited() | settings.environment | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    return find_uv_bin(), settings.arguments, offered


def inherited() -> dict[str, str]:
    """Return our own environment (proxies, certificates, credentials) without what points at this Python or store."""
    unwanted = ("PYTHON", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | SWITCHES


def reason_of_uv(output: str) -> str:
    """Return uv's last error and its causes in one line."""
    start = max(output.rfind("error: "), 0)
    lines = (line.strip().removeprefix("error: ").removeprefix("cause: ") for line in output[start:].splitlines())
    return ": ".join(filter(None, lines)) or "uv failed without a word"


def run_to_log(
    command: list[str],
    environment: dict[str, str],
    folder: Path,
    log: Path,
    limit_seconds: float,
    failure: type[SlmpackError] = CheckError,
    doing: str = CLEAN_ENVIRONMENT,
) -> int:
    """Run in `folder`, everything printed to the log; return the exit code. No process is left behind.

    Raises:
        SlmpackError: `failure`: it took too long.
    """
    with append_log(log) as noise:

        def start() -> Process:
            return start_process(
                command, stdout=noise, stderr=subprocess.STDOUT, environment=environment, folder=folder
            )

        with running(start, limit_seconds) as process:
            code = process.wait()
    if process.timed_out:
        found = f"{doing}: {Path(command[0]).name} took longer than {limit_seconds:.0f} s and was stopped"
        raise failure(found, "", f"the log is {log}")
    return code
