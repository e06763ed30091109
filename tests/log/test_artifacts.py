"""Artifacts: files of a store on this machine are used in place, those of any other are copies."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmpack.log.artifacts import Artifacts


@pytest.fixture
def logged(mlflow_store: Path) -> tuple[str, Path]:
    """The URI of a logged model, which MLflow reads through the tracking server, and the folder that it is in."""
    client = MlflowClient()
    experiment = client.create_experiment("files", artifact_location=str(mlflow_store / "files"))
    model = client.create_logged_model(experiment, "files")
    folder = Path(model.artifact_location.removeprefix("file://"))
    (folder / "package").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "package" / "weights").write_bytes(b"12345")
    client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}", folder


def test_a_local_location_gives_its_own_files(logged: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = logged
    artifacts = Artifacts(str(folder))
    assert artifacts.folder == folder
    assert artifacts.sizes() == {"MLmodel": 11, "package/weights": 5}
    assert artifacts.top_names() == {"MLmodel", "package"}
    with artifacts.file("package/weights") as path:
        assert path == folder / "package" / "weights"
    assert path.exists()
    assert artifacts.path_of("package", tmp_path / "into") == folder / "package"
    assert artifacts.path_of("", tmp_path / "into") == folder
    assert not (tmp_path / "into").exists()
    copy = artifacts.copy("MLmodel", tmp_path / "into")
    assert copy.read_text() == "flavors: {}"
    assert copy.parent == tmp_path / "into"


def test_another_location_gives_copies_and_a_file_is_removed_after_use(
    logged: tuple[str, Path], tmp_path: Path
) -> None:
    uri, folder = logged
    artifacts = Artifacts(uri)
    assert artifacts.folder is None
    assert artifacts.sizes() == Artifacts(str(folder)).sizes()
    with artifacts.file("package/weights") as path:
        assert path.read_bytes() == b"12345"
        assert not path.is_relative_to(folder)
    assert not path.exists()
    fetched = artifacts.path_of("package", tmp_path / "into")
    assert (fetched / "weights").read_bytes() == b"12345"
    assert fetched.is_relative_to(tmp_path / "into")


def test_what_was_deleted_is_not_found(logged: tuple[str, Path]) -> None:
    artifacts = Artifacts(str(logged[1]))
    artifacts.delete()
    assert artifacts.sizes() == {}
    with pytest.raises(MlflowException, match="No such artifact"), artifacts.file("MLmodel"):
        pass
