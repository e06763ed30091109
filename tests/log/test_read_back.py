"""Read-back: a byte that changed anywhere between the build and the registry is found, and its file is named."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from slmpack.build.build import build_package
from slmpack.errors import CheckError
from slmpack.log.log import log_model
from slmpack.log.read_back import read_back
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def logged(store: Path, small_package: Package, workspace: Path) -> LoggedModel:
    return log_model(small_package, Interface.CHAT, "tiny", workspace, {})


@pytest.fixture(scope="module")
def logged_checkpoint(store: Path, small_snapshot: Snapshot, workspace: Path) -> LoggedModel:
    package = build_package(small_snapshot, Target.TRANSFORMERS, None, workspace)
    return log_model(package, Interface.CHAT, "tiny", workspace, {})


def artifacts_of(model: LoggedModel) -> Path:
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    return Path(location.removeprefix("file://"))


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Put other content in a file's place for a while, or none; the package it is a link to stays as it is."""
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(kept)


def with_one_bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.slow
def test_what_was_logged_is_served_as_it_was_built(logged: LoggedModel) -> None:
    (check,) = read_back(logged)
    assert f"{logged.package.size_bytes:,} bytes of the package as they were built" in check.found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "chat_model.py",
        "artifacts/package/genai_config.json",
        "artifacts/package/model.onnx",
        "artifacts/package/model.onnx.data",
        "artifacts/package/tokenizer.json",
        "artifacts/package/chat_template.jinja",
        "artifacts/package/manifest.json",
        "manifest.json",
        "MLmodel",
        "requirements.txt",
        "conda.yaml",
        "input_example.json",
    ],
)
def test_one_flipped_bit_is_refused_with_its_files_name(logged: LoggedModel, name: str) -> None:
    path = artifacts_of(logged) / name
    with replaced(path, with_one_bit_flipped(path.read_bytes())), pytest.raises(CheckError, match=re.escape(name)):
        read_back(logged)
    read_back(logged)


@pytest.mark.slow
def test_a_manifest_that_was_made_to_fit_is_refused(logged: LoggedModel) -> None:
    """Whoever changes the weights and writes a new manifest fools the wrapper, not the records."""
    path = artifacts_of(logged) / "artifacts/package/manifest.json"
    digest = next(file.sha256 for file in logged.package.files if file.name == "model.onnx")
    forged = path.read_bytes().replace(digest.encode(), b"0" * 64)
    with replaced(path, forged), pytest.raises(CheckError, match=r"artifacts/package/manifest\.json"):
        read_back(logged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("chat_model.py", b"The wrapper that travels", b"The trapper that wavels"),
        ("MLmodel", b"max_tokens: 256", b"max_tokens: 257"),
        ("requirements.txt", b"pandas==", b"pandas>="),
        ("artifacts/package/tokenizer.json", b"capital", b"capitol"),
        ("artifacts/package/manifest.json", b"sha256", b"sha257"),
    ],
)
def test_a_changed_file_stops_the_loading_with_its_name(logged: LoggedModel, name: str, old: bytes, new: bytes) -> None:
    path = artifacts_of(logged) / name
    changed = path.read_bytes().replace(old, new, 1)
    assert changed != path.read_bytes()
    with replaced(path, changed), pytest.raises(Exception, match=rf"{re.escape(name.rpartition('/')[2])} (was|cannot)"):
        mlflow.pyfunc.load_model(logged.uri)
    shutil.rmtree(artifacts_of(logged) / "__pycache__", ignore_errors=True)
    read_back(logged)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["artifacts/package/model.onnx", "chat_model.py", "requirements.txt", "MLmodel"])
def test_a_missing_file_is_refused_by_name(logged: LoggedModel, name: str) -> None:
    with replaced(artifacts_of(logged) / name, None), pytest.raises(CheckError, match=f"without {re.escape(name)}"):
        read_back(logged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["more.py", "artifacts/package/adapter.onnx", "code/deep/more.py", "__pycache__/chat_model.cpython-311.pyc"],
)
def test_an_added_file_is_refused_by_name(logged: LoggedModel, name: str) -> None:
    added = artifacts_of(logged) / name
    new_folders = [folder for folder in added.parents if not folder.exists()]
    added.parent.mkdir(parents=True, exist_ok=True)
    added.write_text("")
    try:
        with pytest.raises(CheckError, match=re.escape(name)):
            read_back(logged)
    finally:
        added.unlink()
        for folder in new_folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_what_mlflow_adds_when_somebody_loads_the_model_is_no_change(logged: LoggedModel) -> None:
    mlflow.artifacts.download_artifacts(logged.uri)
    assert (artifacts_of(logged) / "registered_model_meta").exists()
    read_back(logged)


@pytest.mark.slow
def test_a_checkpoint_is_read_back_too(logged_checkpoint: LoggedModel) -> None:
    read_back(logged_checkpoint)
    path = artifacts_of(logged_checkpoint) / "model" / "model.safetensors"
    with (
        replaced(path, with_one_bit_flipped(path.read_bytes())),
        pytest.raises(CheckError, match=r"model\.safetensors"),
    ):
        read_back(logged_checkpoint)
