"""Machines, played by processes: each has a home of its own, hence a workspace of its own, and shares only servers.

    desk --package_targets--> Prefect server <--poll-- worker of pool `cpu`    HOME cpu-1
      |                        (PostgreSQL)  <--poll-- worker of pool `edge`   HOME edge-1, later edge-2
      +--checkpoints--> MLflow server <--packages--+
                        (PostgreSQL, artifacts)    +--versions--> a third place that has nothing but the URI

All of this is one machine; what tells them apart is the environment of each process.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import GuardedMlflow, forget_tracking_uri, running_guarded_mlflow_server
from places import PROJECT
from postgres import Postgres, running_postgres
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, running_prefect_server

from slmpack.machine.process_tree import kill_tree

Desk = subprocess.Popen[bytes]

TWIN = "package-cpu-int4-on-edge"  # the same target on machines of another pool
HEARTBEAT_SECONDS = 30
NAMES = ("alpha", "beta")
TARGETS = ("cpu-int4", "cpu-int8")
AT_A_TIME = 3  # runs of a deployment: those that crash must give their places back
PREFECT_USER = "admin:of-a-test"

PACKAGE_IN_POOLS = """
import json, sys
from flows.package_targets import package_targets
package_targets(**json.loads(sys.argv[1]), dispatch="pools")
"""
ASK_ALL = """
import sys, mlflow
for uri in sys.argv[1:]:
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = mlflow.pyfunc.load_model(uri).predict(asked)
    answer = answer[0] if isinstance(answer, list) else answer
    assert answer["usage"]["completion_tokens"] > 0, answer
    print(uri)
"""


@dataclass(frozen=True)
class Site:
    """The servers, and where the machines' homes are."""

    folder: Path
    prefect: PrefectServer
    mlflow: GuardedMlflow

    @property
    def asked(self) -> dict[str, Any]:
        """Return what every run is asked: random weights have no quality to lose, and a short text shows as much."""
        text = self.folder / "quality.txt"
        text.write_text((PROJECT / "CONTRIBUTING.md").read_text()[:1500])
        policy = {"max_perplexity_ratio": 1000.0, "allow_new_loops": True}
        return {"options": {"quality_text": str(text), "policy": policy}}

    def machine(self, name: str) -> dict[str, str]:
        """Return the environment of a machine; its home is made if it is new."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return self.prefect.environment(
            **self.mlflow.environment(),
            PREFECT_API_AUTH_STRING=PREFECT_USER,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY=str(HEARTBEAT_SECONDS),
            PREFECT_HOME=str(home / ".prefect"),
            HOME=str(home),
            UV_CACHE_DIR=uv_cache(),
            OMP_NUM_THREADS="1",
        )


def uv_cache() -> str:
    """Return the folder of uv's downloads, which the machines share as they would share a package mirror."""
    return os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Yield both servers on PostgreSQL; each wants a password, which this process knows."""
    with (
        running_postgres(folder) as postgres,
        running_guarded_mlflow_server(folder, postgres) as mlflow,
        running_prefect_server(folder, **prefect_settings(postgres)) as prefect,
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_API_URL: prefect.api, PREFECT_API_AUTH_STRING: PREFECT_USER}),
    ):
        for name, value in mlflow.environment().items():
            patch.setenv(name, value)
        forget_tracking_uri()
        yield Site(folder, prefect, mlflow)


def prefect_settings(postgres: Postgres) -> dict[str, str]:
    """Return what a Prefect server needs for PostgreSQL and a password."""
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres.database('prefect', 'pg_trgm')}",
        "PREFECT_SERVER_API_AUTH_STRING": PREFECT_USER,
    }


def deploy(site: Site) -> None:
    """Deploy as `make deploy` does; then let machines of the pool `edge` package for cpu-int8, and more at a time."""
    command = [sys.executable, "-m", "flows.deploy"]
    subprocess.run(command, env=site.machine("desk"), cwd=PROJECT, check=True, capture_output=True)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="edge", type="process"))
        for target in TARGETS:
            deployment = client.read_deployment_by_name(f"package-model/package-{target}")
            changed: dict[str, Any] = {"work_pool_name": "edge"} if target == "cpu-int8" else {}
            client.update_deployment(deployment.id, DeploymentUpdate(concurrency_limit=AT_A_TIME, **changed))
        twin = client.read_deployment_by_name("package-model/package-cpu-int4")
        client.create_deployment(
            twin.flow_id, TWIN, work_pool_name="edge", concurrency_limit=AT_A_TIME, parameters=twin.parameters,
            parameter_openapi_schema=twin.parameter_openapi_schema, pull_steps=twin.pull_steps, path=twin.path,
            entrypoint=twin.entrypoint, job_variables=twin.job_variables, tags=twin.tags, enforce_parameter_schema=True,
        )  # fmt: skip


@contextmanager
def packaging_in_pools(site: Site, sources: list[Path]) -> Iterator[list[Desk]]:
    """Package every source for every target from the desk, at once; whoever has not ended at the end is killed."""
    processes: list[Desk] = []
    with (site.folder / "desk.log").open("wb") as log:
        try:
            for source in sources:
                asked = {"source": str(source), "targets": TARGETS, "name": source.name, **site.asked}
                command = [sys.executable, "-c", PACKAGE_IN_POOLS, json.dumps(asked)]
                processes.append(
                    subprocess.Popen(command, env=site.machine("desk"), cwd=PROJECT, stdout=log, stderr=log)
                )
            yield processes
        finally:
            for process in processes:
                kill_tree(process.pid)
                process.wait()


def ask_elsewhere(site: Site, uris: list[str]) -> list[str]:
    """Load the models and ask them where there is nothing but the address and the password; return who answered."""
    home = site.folder / "elsewhere"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **site.mlflow.environment()}
    command = [sys.executable, "-P", "-c", ASK_ALL, *uris]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def write_variant(checkpoint: Path, folder: Path, seed: int) -> Path:
    """Write the checkpoint with other random weights, hence of another digest."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    return folder
