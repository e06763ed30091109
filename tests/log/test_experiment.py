"""The experiment: its artifacts last as long as the database that names them, or nothing is begun."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from command_line import environment, objects, slmpack
from mlflow import MlflowClient
from mlflow_database import write_empty_database

from slmpack.errors import LogError, UsageError
from slmpack.log.experiment import EXPERIMENT, experiment_id, location_beside, require_experiment
from slmpack.log.lifetime import database_folder, temporary_folder, why_temporary
from slmpack.log.mlflow_server import is_without_a_store, require_registry

WORK = Path("/srv/work")
RUN = Path(tempfile.gettempdir(), "tmpa1b2c3d4prefect")
RELATIVE, IN_RUN, TEMPORARY = "relative to", "in the working folder of this run", "in the temporary folder"
POSTGRES, SERVER, LOOPBACK = "postgresql://db/mlflow", "https://mlflow.example", "http://127.0.0.1:5000"


def test_a_folder_without_a_store_is_told_by_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert is_without_a_store()
    (tmp_path / "mlflow.db").touch()
    assert not is_without_a_store()
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert not is_without_a_store()


@pytest.mark.parametrize(
    ("uri", "location", "working", "on_worker", "found"),
    [
        ("sqlite:///mlflow.db", "mlruns", WORK, False, None),
        ("sqlite:///mlflow.db", "mlruns/1", RUN, False, None),  # both go together
        ("sqlite:////srv/work/mlflow.db", "./mlruns", WORK, False, None),
        ("sqlite:////srv/store/mlflow.db", "./mlruns", WORK, False, RELATIVE),
        ("sqlite:////srv/store/mlflow.db", "file:mlruns/1", WORK, False, RELATIVE),
        ("sqlite:////srv/store/mlflow.db", "/srv/store/mlruns/1", RUN, True, None),
        ("sqlite:////srv/store/mlflow.db", "file:///srv/store/a%20b/1", RUN, True, None),
        ("sqlite:////srv/store/mlflow.db", "/srv/work/mlruns/1", WORK, False, None),
        ("sqlite:////srv/store/mlflow.db", "/srv/work/mlruns/1", WORK, True, IN_RUN),
        ("sqlite:////srv/work/store/mlflow.db", "/srv/work/mlruns/1", WORK, True, None),
        ("sqlite:////srv/store/mlflow.db", f"{RUN}/mlruns/1", RUN, True, IN_RUN),
        ("sqlite:////srv/store/mlflow.db", f"{RUN}/mlruns/1", WORK, False, TEMPORARY),  # of an earlier run
        ("sqlite:////tmp/store/mlflow.db", f"{RUN}/mlruns/1", WORK, False, TEMPORARY),
        ("sqlite:////tmp/store/mlflow.db", "/tmp/store/elsewhere/1", RUN, True, None),
        ("sqlite:////tmp/mlflow.db", "/tmp/mlruns/1", WORK, False, None),
        ("sqlite:////tmp/mlflow.db", f"{RUN}/mlruns/1", WORK, False, TEMPORARY),
        ("sqlite:////srv/store/mlflow.db", "/dev/shm/mlruns/1", WORK, False, TEMPORARY),
        ("sqlite+pysqlite:////srv/store/mlflow.db?timeout=9", "s3://bucket/1", RUN, True, None),
        (POSTGRES, "mlruns", WORK, False, RELATIVE),
        (POSTGRES, "/srv/shared/1", WORK, True, None),
        (POSTGRES, "/tmp/shared/1", WORK, False, TEMPORARY),
        (SERVER, "mlflow-artifacts:/1", RUN, True, None),
        (SERVER, "gs://bucket/1", RUN, True, None),
        (SERVER, "abfss://container@account.dfs.core.windows.net/1", RUN, True, None),
        (SERVER, "dbfs:/databricks/mlflow/1", RUN, True, None),
        (SERVER, "/srv/shared/1", RUN, True, None),
        (SERVER, "./mlruns/1", WORK, False, RELATIVE),
        (SERVER, "file:///tmp/mlruns/1", WORK, False, TEMPORARY),
        (SERVER, f"{RUN}/mlruns/1", RUN, True, IN_RUN),
        (LOOPBACK, "/tmp/server/mlruns/1", WORK, False, None),  # its database may be in the same folder
        (LOOPBACK, f"{RUN}/mlruns/1", RUN, True, IN_RUN),
    ],
)
def test_a_place_is_refused_when_it_is_gone_before_the_database(
    uri: str, location: str, working: Path, on_worker: bool, found: str | None
) -> None:
    reason = why_temporary(location, uri, working, on_worker)
    assert (reason is None) == (found is None), reason
    assert found is None or found in str(reason)


@pytest.mark.parametrize(
    ("uri", "working", "beside"),
    [
        ("sqlite:///mlflow.db", WORK, None),
        ("sqlite:////srv/work/mlflow.db", WORK, None),
        ("sqlite:////srv/store/mlflow.db", WORK, "file:///srv/store/mlruns/slmpack"),
        ("sqlite:///store/mlflow.db", WORK, "file:///srv/work/store/mlruns/slmpack"),
        ("sqlite:////srv/a b/mlflow.db", RUN, "file:///srv/a%20b/mlruns/slmpack"),
        (POSTGRES, WORK, None),
        (SERVER, RUN, None),
    ],
)
def test_a_new_experiment_gets_a_place_beside_the_file_unless_it_has_one(
    uri: str, working: Path, beside: str | None
) -> None:
    assert location_beside(uri, working) == beside


def test_a_server_that_runs_this_process_says_where_artifacts_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "s3://bucket/root")
    assert location_beside("sqlite:////srv/store/mlflow.db", WORK) is None


def test_the_folder_of_a_database_is_that_of_the_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "data" / "mlflow.db")
    assert database_folder(f"sqlite:///{tmp_path / 'mlflow.db'}", WORK) == (tmp_path / "data").resolve()
    assert database_folder(POSTGRES, WORK) is None


def test_a_temporary_folder_is_the_one_below_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert temporary_folder(RUN / "mlruns" / "1") == RUN
    assert temporary_folder(WORK) is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert temporary_folder(tmp_path / "run" / "mlruns") == tmp_path / "run"


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and its default experiment."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    write_empty_database(file)
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folders(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The folder of a database that MLflow uses, and the one that this process works in, a run's own."""
    with tempfile.TemporaryDirectory(suffix="prefect") as run:
        (tmp_path / "store").mkdir()
        shutil.copy(empty_database, tmp_path / "store")
        monkeypatch.chdir(run)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
        yield (tmp_path / "store").resolve(), Path(run)
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_what_is_logged_from_a_runs_own_folder_lies_beside_the_database(folders: tuple[Path, Path]) -> None:
    store, _ = folders
    client = MlflowClient()
    require_experiment(on_worker=True)
    assert client.get_experiment_by_name(EXPERIMENT) is None  # looking makes nothing

    experiment = experiment_id(client)
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, "m")
    client.log_text(run.info.run_id, "{}", "data/held-out.jsonl")

    assert Path(logged.artifact_location.removeprefix("file://")).is_relative_to(store / "mlruns")
    assert [path.is_relative_to(store / "mlruns") for path in store.rglob("held-out.jsonl")] == [True]
    assert experiment_id(client) == experiment
    require_experiment(on_worker=True)


def test_an_experiment_in_a_runs_own_folder_is_refused_until_it_has_another_name(folders: tuple[Path, Path]) -> None:
    store, run = folders
    client = MlflowClient()
    bad = client.create_experiment(EXPERIMENT)  # as MLflow makes it

    for look in (require_experiment, lambda: require_experiment(on_worker=True), lambda: experiment_id(client)):
        with pytest.raises(LogError, match=rf"are at {run}/mlruns/{bad}, in the .*; a place that lasts as long as .*"
                                           rf"mlflow experiments rename -x {bad} --new-name"):  # fmt: skip
            look()

    client.rename_experiment(bad, f"{EXPERIMENT}-before")
    require_experiment(on_worker=True)
    assert client.get_experiment(experiment_id(client)).artifact_location == (store / "mlruns" / EXPERIMENT).as_uri()


def test_an_experiment_of_a_server_is_refused_where_there_is_only_its_database(folders: tuple[Path, Path]) -> None:
    MlflowClient().create_experiment(EXPERIMENT, "mlflow-artifacts:/1")
    with pytest.raises(
        LogError,
        match=r"mlflow-artifacts:/1: When an mlflow-artifacts URI was.*; set MLFLOW_TRACKING_URI to the address",
    ):
        require_experiment()


def test_a_scheme_that_mlflow_has_no_client_for_is_refused(folders: tuple[Path, Path]) -> None:
    MlflowClient().create_experiment(EXPERIMENT, "gopher://host/1")
    with pytest.raises(LogError, match="gopher://host/1: Could not find a registered artifact repository"):
        require_experiment()


def test_a_deleted_experiment_is_told_before_any_work(folders: tuple[Path, Path]) -> None:
    client = MlflowClient()
    client.delete_experiment(experiment_id(client))
    with pytest.raises(LogError, match="is deleted; an active one; restore it"):
        require_experiment()


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///{run}/mlflow.db"])
def test_a_worker_refuses_a_database_in_its_runs_own_folder(folders: tuple[Path, Path], uri: str) -> None:
    _, run = folders
    mlflow.set_tracking_uri(uri.format(run=run))
    with pytest.raises(UsageError, match="in the working folder of the run; a server, or an absolute path"):
        require_registry(shared=True)


def test_a_worker_takes_a_database_elsewhere(folders: tuple[Path, Path]) -> None:
    require_registry(shared=True)


def test_a_database_in_memory_is_refused(folders: tuple[Path, Path]) -> None:
    for uri in ("sqlite://", "sqlite:///:memory:"):
        mlflow.set_tracking_uri(uri)
        with pytest.raises(UsageError, match="in memory"):
            require_registry()


@pytest.mark.slow
def test_an_experiment_that_would_not_last_is_refused_before_the_source_is_fetched(
    tmp_path: Path, empty_database: Path, tiny_phi3: Path, prefect_api: str
) -> None:
    shutil.copy(empty_database, tmp_path)
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with tempfile.TemporaryDirectory() as gone:
        bad = MlflowClient(database).create_experiment(EXPERIMENT, f"{gone}/mlruns")
    done = slmpack(
        "package", str(tiny_phi3), "--json", "--workspace", str(tmp_path / "workspace"), cwd=tmp_path,
        **environment(MLFLOW_TRACKING_URI=database, PREFECT_API_URL=prefect_api),
    )  # fmt: skip
    (outcome,) = objects(done)
    assert (done.returncode, outcome["status"]) == (1, "failed")
    assert f"{gone}/mlruns, in the temporary folder" in outcome["reason"]
    assert f"mlflow experiments rename -x {bad}" in outcome["reason"]
    assert not (tmp_path / "workspace" / "snapshots").exists()
