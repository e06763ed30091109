"""Logging: what becomes of a package in MLflow, and what is left when it fails."""

import http.server
import logging
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.models import Model
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow_server import free_port

from slmpack import progress
from slmpack.errors import LogError, PublishError, UsageError
from slmpack.log.log import log_model, logged_digest
from slmpack.log.mlflow_server import require_registry
from slmpack.log.requirements import requirements_for
from slmpack.log.staging import link_or_copy
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target
from slmpack.source.logged_model import pin


@pytest.fixture(scope="module")
def own_workspace(workspace: Path) -> Iterator[Path]:
    """A workspace that no other run works in, on the file system of the packages."""
    folder = workspace / f"test-log-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def logged(store: Path, tiny_package: Package, own_workspace: Path) -> LoggedModel:
    return log_model(tiny_package, Interface.CHAT, "tiny", own_workspace, {"prefect_run": "run-1"})


def artifacts_of(model: LoggedModel) -> Path:
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    return Path(location.removeprefix("file://"))


def staging_of(workspace: Path) -> list[Path]:
    return list((workspace / "scratch").glob("log-*"))


class _InterruptAt(logging.Handler):
    """Presses Ctrl-C when the logging has come that far."""

    def __init__(self, files: int) -> None:
        super().__init__()
        self.left = files

    def emit(self, record: logging.LogRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_package_is_linked_and_read_only(logged: LoggedModel, tiny_package: Package, own_workspace: Path) -> None:
    folder = artifacts_of(logged) / "artifacts" / "package"

    for file in tiny_package.files:
        assert (folder / file.name).stat().st_ino == (tiny_package.path / file.name).stat().st_ino
    assert {path.stat().st_mode & 0o777 for path in artifacts_of(logged).rglob("*") if path.is_file()} == {0o444}
    assert staging_of(own_workspace) == []


@pytest.mark.slow
def test_logged_model_says_what_it_is(logged: LoggedModel, tiny_package: Package) -> None:
    info = mlflow.models.get_model_info(logged.uri)
    found = MlflowClient().get_logged_model(logged.model_id)
    run = MlflowClient().get_run(logged.run_id)

    assert info.signature is not None
    assert (info.signature.inputs, info.signature.outputs) == (CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA)
    assert info.metadata is not None
    assert info.metadata["task"] == "llm/v1/chat"
    assert info.metadata["slmpack"]["digest"] == logged.digest
    assert info.model_id == logged.model_id
    example = Model.load(logged.uri).load_input_example(logged.uri)
    assert isinstance(example, dict)
    assert example["messages"][0]["role"] == "user"
    assert str(found.status) == "READY"
    assert found.source_run_id == run.info.run_id
    assert run.info.status == "RUNNING"  # until it is published or refused
    assert run.data.params["digest"] == logged.digest
    assert run.data.tags["slmpack.prefect_run"] == "run-1"
    assert run.outputs is not None
    assert run.outputs.model_outputs[0].model_id == logged.model_id


@pytest.mark.slow
def test_transformers_weights_are_linked(store: Path, tiny_snapshot: Snapshot, own_workspace: Path) -> None:
    from slmpack.build.build import build_package

    package = build_package(tiny_snapshot, Target.TRANSFORMERS, None, own_workspace)

    model = log_model(package, Interface.CHAT, "tiny-1.5", own_workspace, {})

    source = (package.path / "model.safetensors").resolve()
    weights = artifacts_of(model) / "model" / "model.safetensors"
    assert weights.stat().st_size == source.stat().st_size
    assert not weights.is_symlink()
    assert weights.stat().st_mode & 0o777 == 0o444
    is_own = not (package.path / "model.safetensors").is_symlink()  # a link to the user's file is copied instead
    assert (weights.stat().st_ino == source.stat().st_ino) is is_own
    assert str(package.path) not in (artifacts_of(model) / "MLmodel").read_text()
    assert pin(model.uri).name == "tiny-1.5"  # as a source it is called what it was logged for, not tiny-1-5
    assert staging_of(own_workspace) == []


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3])
def test_interrupted_logging_leaves_no_model(
    store: Path, tiny_package: Package, own_workspace: Path, files: int
) -> None:
    handler = _InterruptAt(files)
    progress.logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_model(tiny_package, Interface.CHAT, "interrupted", own_workspace, {})
    finally:
        progress.logger.removeHandler(handler)

    experiment = MlflowClient().get_experiment_by_name("slmpack")
    assert experiment is not None
    models = MlflowClient().search_logged_models([experiment.experiment_id], filter_string="name = 'interrupted'")
    runs = MlflowClient().search_runs([experiment.experiment_id], "run_name = 'interrupted cpu-int4'")
    assert list(models) == []
    assert {run.info.status for run in runs} == {"KILLED"}
    assert staging_of(own_workspace) == []
    # not one file of it is left in the store
    assert not any("interrupted" in path.read_text() for path in store.rglob("MLmodel"))


@pytest.mark.slow
def test_artifact_store_that_cannot_be_written_is_an_error(
    mlflow_store: Path, tiny_package: Package, own_workspace: Path
) -> None:
    uri = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(f"sqlite:///{mlflow_store / 'blocked.db'}")
        (mlflow_store / "mlruns").write_text("a file where MLflow wants a folder")

        with pytest.raises(LogError, match=r"^the model failed: .*mlruns"):
            log_model(tiny_package, Interface.CHAT, "blocked", own_workspace, {})

        (run,) = MlflowClient().search_runs(["1"])
        assert run.info.status == "FAILED"
    finally:
        mlflow.set_tracking_uri(uri)


@pytest.mark.slow
def test_uv_project_in_the_working_folder_stays_out(store: Path, tiny_package: Package, own_workspace: Path) -> None:
    (store / "uv.lock").write_text('version = 1\nrequires-python = ">=3.11"\n')
    (store / "pyproject.toml").write_text('[project]\nname = "private"\nversion = "0"\n')
    try:
        model = log_model(tiny_package, Interface.PROMPT, "tiny", own_workspace, {})
    finally:
        (store / "uv.lock").unlink()
        (store / "pyproject.toml").unlink()

    assert not {path.name for path in artifacts_of(model).rglob("*")} & {"uv.lock", "pyproject.toml"}
    found = (artifacts_of(model) / "requirements.txt").read_text().split()
    assert tuple(found) == requirements_for(Target.CPU_INT4)


def test_prompt_interface_is_refused_for_transformers(tiny_package: Package, own_workspace: Path) -> None:
    package = tiny_package.model_copy(update={"target": Target.TRANSFORMERS, "recipe": None})

    with pytest.raises(UsageError, match="interface prompt for target transformers; chat"):
        log_model(package, Interface.PROMPT, "tiny", own_workspace, {})


def test_digest_depends_on_package_interface_and_target() -> None:
    digests = {
        logged_digest(package, interface, target)
        for package in ("a", "b") for interface in Interface for target in (Target.TRANSFORMERS, Target.CPU_INT4)
    }  # fmt: skip

    assert len(digests) == 8
    assert logged_digest("a", Interface.CHAT, Target.CPU_INT4) in digests


def test_requirements_are_exact_and_lean() -> None:
    for target in Target:
        assert all(line.count("==") == 1 and "+" not in line for line in requirements_for(target))
    names = {line.partition("==")[0] for line in requirements_for(Target.CPU_INT4)}
    assert not names & {"torch", "transformers", "mlflow"}


def test_what_may_change_is_copied_and_what_may_not_is_linked(tmp_path: Path) -> None:
    writable, fixed, link = tmp_path / "writable", tmp_path / "fixed", tmp_path / "link"
    writable.write_text("may change")
    fixed.write_text("is fixed")
    fixed.chmod(0o444)
    link.symlink_to(fixed)

    for source in (writable, fixed, link):
        link_or_copy(source, tmp_path / "into" / source.name)

    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "into").iterdir()}
    assert inodes["fixed"] == fixed.stat().st_ino
    assert inodes["writable"] != writable.stat().st_ino
    assert inodes["link"] != fixed.stat().st_ino
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "into").iterdir()} == {0o444}
    assert not (tmp_path / "into" / "link").is_symlink()


@pytest.fixture
def tracking() -> Iterator[None]:
    uri = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(uri)


def test_server_that_is_not_there_is_told_at_once(tracking: None) -> None:
    mlflow.set_tracking_uri(f"http://user:secret@127.0.0.1:{free_port()}")

    with pytest.raises(PublishError, match=r"MLflow server at http://\*\*\*@127.*connection refused.*MLFLOW_TRACKING"):
        require_registry()


@pytest.mark.parametrize(
    ("status", "told"),
    [(200, "not MLflow"), (401, "401.*set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"), (502, "502.*start")],
)
def test_server_that_is_not_mlflow_or_lets_nobody_in_is_refused(tracking: None, status: int, told: str) -> None:
    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")

        with pytest.raises(PublishError, match=told):
            require_registry()
        server.shutdown()


def test_a_worker_without_an_address_of_mlflow_refuses_its_default(
    tracking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set for this worker"):
        require_registry(shared=True)


def test_database_server_that_is_not_there_is_told_at_once(tracking: None) -> None:
    mlflow.set_tracking_uri(f"postgresql://user:secret@127.0.0.1:{free_port()}/mlflow")

    with pytest.raises(PublishError, match=r"\*\*\*@127.*refused"):
        require_registry()


def test_file_that_is_no_database_is_refused(tracking: None, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")

    with pytest.raises(PublishError, match="not a SQLite database"):
        require_registry()


def test_file_store_is_refused(tracking: None, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(tmp_path.as_uri())

    with pytest.raises(UsageError, match=r"MLflow refuses the file store .*sqlite"):
        require_registry()
