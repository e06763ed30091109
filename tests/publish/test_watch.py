"""Watching registered models: what is new, and that Prefect is told of it once."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
from made_proofs import log_variant, publish
from mlflow import MlflowClient
from places import PROJECT
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_stack import PrefectServer, kept_client, running_prefect_server

from flows.watch_models import watch_models
from slmpack.build.build import build_package
from slmpack.errors import SourceError, UsageError
from slmpack.publish.watch import (
    ANNOUNCED,
    WATCH,
    SourceVersion,
    WatchResult,
    find_new_version,
    find_watched,
    mark_announced,
    summary_of,
)
from slmpack.records import Package, Snapshot, Target
from tasks.watch import EVENT, announce_version


@pytest.fixture(scope="module")
def tuned(store: Path, tiny_phi3: Path) -> str:
    """The id of a transformers model that was logged in MLflow, as a fine-tune is."""
    logged = mlflow.transformers.log_model(
        str(tiny_phi3), name="tuned", task="llm/v1/chat", pip_requirements=["transformers"]
    )
    return str(logged.model_id)


def register(name: str, model_id: str) -> str:
    """Register a logged model as the next version of `name`; return the version's URI."""
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, f"models:/{model_id}", model_id=model_id)
    return f"models:/{name}/{version.version}"


def new_source(name: str) -> str | None:
    found = find_new_version(name)
    return found.source if found is not None else None


def announce(name: str) -> None:
    found = find_new_version(name)
    assert found is not None
    mark_announced(found)


def announced_as(name: str, version: int) -> str | None:
    tags: dict[str, str] = MlflowClient().get_model_version(name, str(version)).tags
    return tags.get(ANNOUNCED)


def test_a_source_is_new_until_it_was_announced(tuned: str, name: str) -> None:
    source = register(name, tuned)
    assert new_source(name) == source
    assert new_source(name) == source
    announce(name)
    assert new_source(name) is None
    MlflowClient().delete_model_version_tag(name, "1", ANNOUNCED)
    assert new_source(name) == source


def test_only_the_newest_of_several_is_new(tuned: str, name: str) -> None:
    sources = [register(name, tuned) for _ in range(3)]
    assert new_source(name) == sources[2]
    announce(name)
    assert new_source(name) is None
    assert [announced_as(name, 1), announced_as(name, 2)] == [None, None]
    MlflowClient().delete_model_version(name, "3")
    assert new_source(name) == sources[1]


def test_a_package_is_never_new(
    tuned: str, name: str, tiny_package: Package, tiny_snapshot: Snapshot, workspace: Path
) -> None:
    source = register(name, tuned)
    assert publish(log_variant(tiny_package, "", name, workspace)).version == 2
    assert new_source(name) == source
    announce(name)
    as_transformers = build_package(tiny_snapshot, Target.TRANSFORMERS, None, workspace)
    for package in (tiny_package, as_transformers):  # registered by hand: the version itself has no tag
        register(name, log_variant(package, "by hand", name, workspace).model_id)
    assert new_source(name) is None


def test_a_copy_under_another_name_is_new_there(tuned: str, name: str) -> None:
    source = register(name, tuned)
    announce(name)
    copy = MlflowClient().copy_model_version(source, f"{name} in production")
    assert ANNOUNCED in copy.tags
    assert new_source(copy.name) == f"models:/{copy.name}/1"
    announce(copy.name)
    assert new_source(copy.name) is None


def test_a_version_that_cannot_be_packaged_hides_no_source(
    tuned: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = register(name, tuned)
    mlflow.pyfunc.log_model(
        name="echo", python_model=lambda model_input: model_input, pip_requirements=["numpy"],
        registered_model_name=name,
    )  # fmt: skip
    with caplog.at_level("INFO", "slmpack"):
        assert new_source(name) == source
    assert f"not announced: models:/{name}/2 has the flavours python_function" in caplog.text


def test_a_source_is_found_behind_many_packages(tuned: str, name: str) -> None:
    source = register(name, tuned)
    client = MlflowClient()
    for _ in range(55):
        client.create_model_version(name, f"models:/{tuned}", model_id=tuned, tags={"slmpack.digest": "0"})
    assert new_source(name) == source


def test_a_name_without_a_model_is_told(store: Path) -> None:
    with pytest.raises(SourceError, match="MLflow has no registered model 'nobody'; one to watch; register it"):
        find_new_version("nobody")
    with pytest.raises(UsageError, match='the model name "it\'s"'):
        find_new_version("it's")


def test_without_names_the_models_that_are_tagged_are_watched(store: Path) -> None:
    client = MlflowClient()
    for number in range(105):
        client.create_registered_model(f"watched {number}", tags={WATCH: "true"})
    client.create_registered_model("not watched", tags={WATCH: "false"})
    assert sorted(find_watched([])) == sorted(f"watched {number}" for number in range(105))
    assert find_watched(["b", "a", "b"]) == ["b", "a"]


def test_the_summary_names_what_is_new_and_what_is_wrong() -> None:
    looks = [
        WatchResult(name="a", announced="models:/a/3"),
        WatchResult(name="b"),
        WatchResult(name="c", reason="MLflow has no c"),
    ]
    assert summary_of(looks) == "3 models, 1 announced: models:/a/3; MLflow has no c"
    assert summary_of(looks[1:2]) == "1 model, 0 announced"
    assert summary_of([]) == "no registered model has the tag slmpack.watch with value true"


def poll(*names: str) -> Any:
    """Run the flow; return the state that it ends in."""
    return watch_models(list(names), return_state=True)


def payloads(name: str) -> list[dict[str, Any]]:
    """Return what Prefect's server was told of the model; it writes events down some seconds later."""
    published = EventFilter(
        event=EventNameFilter(name=[EVENT]), resource=EventResourceFilter(id=[f"slmpack.source.{name}"])
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if events := kept_client().read_events(published, limit=50).events:
            return [event.payload for event in events]
        time.sleep(0.5)
    return []


@pytest.mark.slow
def test_prefect_is_told_of_a_source_once(prefect_api: str, tuned: str, name: str) -> None:
    source = register(name, tuned)
    MlflowClient().set_registered_model_tag(name, WATCH, "true")
    state = watch_models(return_state=True)
    assert source in str(state.message)
    assert poll(name).message == "1 model, 0 announced"
    assert payloads(name) == [{"source": source, "name": name, "version": 1}]
    assert str(announced_as(name, 1)).endswith(f"as {source}")


@pytest.mark.slow
def test_a_name_without_a_model_fails_the_run_but_stops_no_other(prefect_api: str, tuned: str, name: str) -> None:
    source = register(name, tuned)
    state = poll("nobody", name)
    assert state.is_failed()
    assert state.message == (
        f"2 models, 1 announced: {source}; "
        "MLflow has no registered model 'nobody'; one to watch; register it, or watch another"
    )
    assert announced_as(name, 1) is not None


@contextmanager
def refusing_events(address: str) -> Iterator[str]:
    """Yield an address where all is as at `address`, but for events, which are refused."""
    parts = urlsplit(address)
    assert parts.hostname and parts.port
    server = (parts.hostname, parts.port)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                if chunk.startswith(b"POST /api/events "):
                    source.sendall(b"HTTP/1.1 422 No\r\nConnection: close\r\nContent-Length: 8\r\n\r\nno event")
                    source.shutdown(socket.SHUT_WR)
                    break
                sink.sendall(chunk)
            while source.recv(65536):  # the rest of what was refused
                pass
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                here, there = listener.accept()[0], socket.create_connection(server)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{parts.path}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_source_that_prefect_refused_to_hear_of_is_announced_by_the_next_poll(
    prefect_api: str, tuned: str, name: str
) -> None:
    source = register(name, tuned)
    with refusing_events(prefect_api) as address, temporary_settings({PREFECT_API_URL: address}):
        state = poll(name)
    assert state.is_failed()
    assert f"Prefect refused the event about {source}: 422 no event" in state.message
    assert announced_as(name, 1) is None
    assert poll(name).message == f"1 model, 1 announced: {source}"


@pytest.mark.slow
def test_a_short_outage_of_mlflow_is_waited_out(
    prefect_api: str, tuned: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = register(name, tuned)
    database = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///"))
    database.rename(tmp_path / "away")
    database.mkdir()  # a folder where the database was

    def mend() -> None:
        database.rmdir()
        (tmp_path / "away").rename(database)

    threading.Timer(1, mend).start()
    assert poll(name).message == f"1 model, 1 announced: {source}"


def deploy(server: PrefectServer) -> None:
    """Deploy what prefect.yaml has, without the schedules being on."""
    for pool in ("cpu", "cuda"):
        kept_client().create_work_pool(WorkPoolCreate(name=pool, type="process"))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=PROJECT, env=server.environment(), check=True, stdout=subprocess.DEVNULL)


def runs_of_package_all(count: int) -> list[FlowRun]:
    """Return the runs that its automation made of the deployment, oldest first, as soon as there are `count`."""
    deadline = time.monotonic() + 600
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("package-targets/package-all")
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        runs: list[FlowRun] = []
        while len(runs) < count and time.monotonic() < deadline:
            time.sleep(0.5)
            runs = client.read_flow_runs(deployment_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    defaults = {key: value for key, value in deployment.parameters.items() if key not in {"source", "name"}}
    for run in runs:
        assert run.created_by is not None and run.created_by.type == "AUTOMATION"
        assert run.parameters == defaults | {key: run.parameters[key] for key in ("source", "name")}
    return runs


@pytest.mark.slow
def test_a_new_source_has_package_all_run_and_a_package_has_not(
    tuned: str, name: str, tiny_package: Package, workspace: Path, tmp_path: Path
) -> None:
    with running_prefect_server(tmp_path) as server, temporary_settings({PREFECT_API_URL: server.api}):
        deploy(server)
        first = register(name, tuned)
        assert poll(name).message == f"1 model, 1 announced: {first}"
        (run,) = runs_of_package_all(1)
        assert (run.parameters["source"], run.parameters["name"]) == (first, name)
        assert publish(log_variant(tiny_package, "", name, workspace)).version == 2
        assert poll(name).message == "1 model, 0 announced"
        third = register(name, tuned)  # what comes later is acted on later
        assert poll(name).message == f"1 model, 1 announced: {third}"
        assert [run.parameters["source"] for run in runs_of_package_all(2)] == [first, third]


def test_without_a_server_nothing_is_announced() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(UsageError, match=r"only Prefect's temporary server.*; a server; set PREFECT_API_URL"),
    ):
        announce_version.fn(SourceVersion(name="tuned", version=1))
