"""A worker whose MLflow is a SQLite file: what its runs publish is still there when their folders are gone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from machines import ASK_ALL, uv_cache
from mlflow import MlflowClient
from mlflow_database import write_empty_database
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import running_prefect_server, running_worker

from slmpack.machine.process_tree import kill_tree
from tasks.outcome import read_outcome

pytestmark = [pytest.mark.slow, pytest.mark.release]

LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Site:
    """A Prefect server with one worker, and the folder of the database."""

    folder: Path
    asked: dict[str, Any]

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'store' / 'mlflow.db'}"

    def package(self) -> FlowRun:
        """Package on the worker, and return the run when it has ended."""
        run: Any = run_deployment(
            "package-model/package-cpu-int4", parameters=self.asked, timeout=LIMIT_SECONDS, poll_interval=1
        )
        assert isinstance(run, FlowRun)
        return run


@pytest.fixture
def site(tmp_path: Path, town_phi3: Path) -> Iterator[Site]:
    asked = {
        "source": str(town_phi3), "name": "tiny", "workspace": str(tmp_path / "workspace"),
        "options": {"recipe": "small", "waive_quality": "random weights, for a test"},
    }  # fmt: skip
    site = Site(tmp_path, asked)
    (tmp_path / "store").mkdir()
    write_empty_database(tmp_path / "store" / "mlflow.db")
    with running_prefect_server(tmp_path) as prefect, temporary_settings({PREFECT_API_URL: prefect.api}):
        machine = prefect.environment(MLFLOW_TRACKING_URI=site.database, OMP_NUM_THREADS="1", UV_CACHE_DIR=uv_cache())
        subprocess.run([sys.executable, "-m", "flows.deploy"], env=machine, cwd=tmp_path, check=True)
        with running_worker("cpu", tmp_path, machine, "cpu-1") as worker:
            yield site
            kill_tree(worker.pid)


def test_what_a_worker_publishes_into_a_sqlite_file_outlives_its_run_and_is_not_replaced_until_it_is_gone(
    site: Site, tmp_path: Path
) -> None:
    first, again = site.package(), site.package()

    told = [str(run.state and run.state.message) for run in (first, again)]
    assert [text.partition(":")[0] for text in told] == ["published", "unchanged"], told
    client = MlflowClient(site.database)
    (version,) = client.search_model_versions("name = 'tiny'")
    assert client.get_model_version_by_alias("tiny", "cpu-int4").version == version.version
    location = client.get_logged_model(version.tags["slmpack.model_id"]).artifact_location
    assert Path(location.removeprefix("file://")).is_relative_to(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "elsewhere"),
        "MLFLOW_TRACKING_URI": site.database,
    }
    asked = subprocess.run(
        [sys.executable, "-P", "-c", ASK_ALL, "models:/tiny@cpu-int4"], env=environment, cwd=tmp_path / "elsewhere",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr

    shutil.rmtree(location.removeprefix("file://"))
    replaced = site.package()

    reason = client.get_model_version("tiny", "1").tags["slmpack.unhealthy"]
    assert f"its files are gone from {location}" in reason
    assert str(replaced.state and replaced.state.message).startswith("published: tiny version 2")
    outcome = read_outcome(replaced.id)
    assert outcome is not None
    assert outcome.unhealthy == (f"version 1 was published and cannot be used, {reason}",)
    assert outcome.unhealthy[0] in str(replaced.state and replaced.state.message)
