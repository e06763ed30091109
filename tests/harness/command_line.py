"""Runs the real command in a process of its own, as a person would."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

SLMPACK = str(Path(sys.executable).parent / "slmpack")
# What the session around the tests may have set; each command starts from MLflow's and Prefect's own defaults.
NOT_INHERITED = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL")


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a command, with `extra` on top."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | extra


def slmpack(*arguments: str, cwd: Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    """Run `slmpack` to its end."""
    return subprocess.run(
        [SLMPACK, *arguments], cwd=cwd, env=environment(**extra), capture_output=True, text=True, check=False
    )


def objects(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """Return the JSON objects on stdout, one a line."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def error_lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return the lines on stderr that say what went wrong; there is no traceback."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("slmpack: ")]


def versions(folder: Path) -> list[str]:
    """Return every version that is registered in the sqlite store of `folder`, as name/version."""
    if not (folder / "mlflow.db").exists():
        return []
    found = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_model_versions()
    return [f"{version.name}/{version.version}" for version in found]


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes whose environment has this Prefect home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def children_with(words: str, pid: int | None = None) -> list[psutil.Process]:
    """Return the children of a process, or of this one, and theirs, that have the words in their command line."""
    found = []
    with contextlib.suppress(psutil.Error):  # each may end meanwhile
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if words in " ".join(child.cmdline()):
                    found.append(child)
    return found


def statuses_of(home: Path) -> set[str]:
    """Return the states of the processes of this Prefect home, such as psutil.STATUS_STOPPED."""
    found = set()
    for process in processes_of(home):
        with contextlib.suppress(psutil.Error):
            found.add(str(process.status()))
    return found
