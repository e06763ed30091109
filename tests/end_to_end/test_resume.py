"""Resume: a run that was killed leaves what was complete, and nothing half-written that counts as whole."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import served
from command_line import SLMPACK, children_with, environment, objects, slmpack, versions
from live_folder import seen
from mlflow_database import write_empty_database

from slmpack.machine.store import damage

pytestmark = [pytest.mark.slow, pytest.mark.release]

LIMIT_SECONDS = 900.0


def wait_for(folder: Path, pattern: str, process: "subprocess.Popen[bytes]") -> Path:
    """Return the first file that appears under that name while the process runs."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := next(iter(seen(folder, pattern)), None):
            return found
        time.sleep(0.01)
    raise AssertionError(f"no {pattern} in {folder}")


def test_the_run_after_a_kill_in_the_middle_of_writing_weights_goes_on_and_publishes(
    tiny_phi3: Path, tmp_path: Path, prefect_api: str
) -> None:
    write_empty_database(tmp_path / "mlflow.db")
    workspace = tmp_path / "workspace"
    command = ["package", str(tiny_phi3), "--recipe", "small", "--json", "--workspace", str(workspace)]
    command += ["--waive-quality", "random weights have no quality"]
    process = subprocess.Popen(
        [SLMPACK, *command], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    (builder,) = served.wait_for(lambda: children_with("run_builder:", process.pid), LIMIT_SECONDS)
    half_written = wait_for(workspace, "scratch/packages-*/model.onnx.data", process)
    with contextlib.suppress(psutil.NoSuchProcess):  # who writes it may have ended; the package is tried out after that
        builder.suspend()  # else a fast machine has the whole package before the kill
    children = children_with("slmpack.machine.child", process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        builder.resume()  # a stopped process cannot notice that its parent is gone
    _, alive = psutil.wait_procs(children, timeout=600)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # Prefect's own server
    assert children and not alive
    assert not (workspace / "packages").exists()
    assert versions(tmp_path) == []
    (snapshot,) = (workspace / "snapshots").iterdir()
    fetched_at = snapshot.stat().st_mtime_ns

    done = slmpack(*command, cwd=tmp_path, PREFECT_API_URL=prefect_api)

    assert done.returncode == 0, done.stderr
    (outcome,) = objects(done)
    assert (outcome["status"], outcome["version"]) == ("published", 1)
    assert snapshot.stat().st_mtime_ns == fetched_at
    (package,) = (workspace / "packages").iterdir()
    assert damage(package) is None
    assert not half_written.exists()
