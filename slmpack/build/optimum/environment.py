"""The exporter's environment: made by uv from pinned requirements when it is first needed, once a workspace.

    <workspace>/environments/<key>/    a virtual environment; the key is that of its requirements and its Python

optimum-onnx wants a transformers that is older than ours. The environment is made in `scratch/` and renamed into
place, so a whole one is never half one; one process makes it, and if that is killed, the next one does.
"""

import logging
import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement

from slmpack.errors import BuildError
from slmpack.machine.environments import UvError, make_environment
from slmpack.machine.private import empty_log
from slmpack.machine.store import lock, log_folder, require_space
from slmpack.progress import report
from slmpack.records import digest_of

logger = logging.getLogger(__name__)

REQUIREMENTS = "requirements.txt"
ENVIRONMENTS = "environments"
DOING = "the exporter's environment"
NEEDED_BYTES = 2 * 10**9  # with torch for CPUs it takes 1.2 GB


def exporter_requirements() -> str:
    """Return the pinned requirements, one a line."""
    return (files("slmpack.build.optimum") / REQUIREMENTS).read_text(encoding="utf-8")


def pinned_versions(requirements: str) -> dict[str, str]:
    """Return name -> version of exact pins."""
    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {each.name: str(each.specifier).removeprefix("==") for each in parsed}


def exporter_python(workspace: Path, requirements: str | None = None) -> Path:
    """Return the interpreter of the exporter's environment, which is made if it is not there.

    Args:
        requirements: what it has, exact pins, one a line; None: `exporter_requirements`.

    Raises:
        BuildError: it cannot be made: there is no package index, or the index has not all of it.
        WorkspaceError: there is no room for it.
    """
    requirements = exporter_requirements() if requirements is None else requirements
    key = digest_of([requirements, sys.version, sys.platform, sys.base_prefix])
    place = workspace / ENVIRONMENTS / key
    with lock(workspace, f"{ENVIRONMENTS}-{key}"):
        if not _python(place).exists():  # a link to a Python that is gone does not exist either
            _make(place, requirements, workspace)
    return _python(place)


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _make(place: Path, requirements: str, workspace: Path) -> None:
    require_space(workspace, NEEDED_BYTES, DOING)
    logger.info("making the exporter's environment, once for this workspace: %s", _named(requirements))
    for left in (place, *(workspace / "scratch").glob(f"{ENVIRONMENTS}-{place.name}-*")):
        shutil.rmtree(left, ignore_errors=True)  # left by a run that was killed: we hold its lock
    # a folder of our own, since the uv of a run that was killed may still write into the other
    scratch = workspace / "scratch" / f"{ENVIRONMENTS}-{place.name}-{os.getpid()}"
    scratch.mkdir(parents=True)
    try:
        report("exporter", 0, 2, "steps")
        environment = _install(scratch, requirements, log_folder(workspace) / f"exporter-{place.name[:12]}.log")
        report("exporter", 1, 2, "steps")
        place.parent.mkdir(parents=True, exist_ok=True)
        environment.rename(place)
        report("exporter", 2, 2, "steps")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _install(folder: Path, requirements: str, log: Path) -> Path:
    """Make the environment in `folder`, from where it may be moved."""
    (folder / REQUIREMENTS).write_text(requirements, encoding="utf-8")
    empty_log(log)
    try:
        make_environment(folder / "environment", folder / REQUIREMENTS, log, BuildError, DOING, compiled=True)
    except UvError as error:
        raise BuildError(
            f"{DOING} cannot be made: {str(error)[:300]}",
            f"a package index, as pip is set up with, that has {_named(requirements)} and what it needs",
            f"set one up, or use --target transformers; the log is {log}",
        ) from error
    return folder / "environment"


def _named(requirements: str) -> str:
    versions = pinned_versions(requirements)
    name = "optimum-onnx" if "optimum-onnx" in versions else next(iter(versions), "nothing")
    return f"{name} {versions.get(name, '')}".strip()
