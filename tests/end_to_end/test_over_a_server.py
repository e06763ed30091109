"""Over a server: what is logged, read back, handed over and published goes through a real MLflow server."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from made_proofs import proofs_of
from mlflow import MlflowClient
from mlflow_server import used_mlflow_server

import slmpack
from slmpack import progress
from slmpack.errors import CheckError, SourceError, TrustError
from slmpack.log.checkpoint import log_checkpoint
from slmpack.log.log import log_model
from slmpack.log.mlflow_server import require_registry
from slmpack.log.read_back import logged_digests, read_back
from slmpack.log.restore import restore_model
from slmpack.log.signed import require_signed
from slmpack.log.transfer import receive_snapshot, share_snapshot
from slmpack.machine.store import damage
from slmpack.prove.measure import measure_quality
from slmpack.prove.smoke import smoke_test
from slmpack.prove.validate import validate_model
from slmpack.publish.find import alias_of, find_published
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import publish_version
from slmpack.publish.rollback import read_version
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target
from slmpack.reports import QualityPolicy
from slmpack.signing.keys import new_key
from slmpack.signing.policy import VARIABLE
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the server that is everybody's tracking server in this file."""
    folder = tmp_path_factory.mktemp("server")
    with used_mlflow_server(folder):
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def logged(server: Path, small_package: Package, workspace: Path) -> LoggedModel:
    return log_model(small_package, Interface.CHAT, "tiny", workspace, {})


def served_file(server: Path, uri: str, name: str) -> Path:
    """Return where the server keeps a file of a logged model."""
    (path,) = (server / "artifacts").rglob(f"{uri.removeprefix('models:/')}/**/{name}")
    return path


def flip_a_bit(path: Path) -> bytes:
    """Change a file, in one of its own, and return what it held."""
    before = path.read_bytes()
    content = bytearray(before)
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    return before


def test_the_whole_way_from_an_upload_that_was_interrupted_to_a_version(
    server: Path, tiny_package: Package, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    require_registry()
    _interrupt_an_upload(tiny_package, workspace, server)

    model = log_model(tiny_package, Interface.PROMPT, "whole-way", workspace, {})
    published = publish_version(model, _proved(model, workspace))

    alias = alias_of(Target.CPU_INT4, Interface.PROMPT)
    assert (published.version, published.alias, alias) == (1, "cpu-int4-prompt", "cpu-int4-prompt")
    assert find_published("whole-way", model.digest, alias) is not None
    assert find_published("never published", model.digest, alias) is None
    assert "Proved" in mlflow.artifacts.load_text(published.page_uri)
    assert not (tmp_path / "mlruns").exists()  # everything went through the server


def test_a_signature_is_put_beside_the_model_and_checked_a_file_at_a_time(
    server: Path, small_package: Package, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "release.pem")
    (tmp_path / "trust.toml").write_text(f"[trust.keys.a]\npublic_key = '''{key.public_pem()}'''\nnames = ['signed']\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trust.toml"))
    model = log_model(small_package, Interface.CHAT, "signed", workspace, {})
    publish_version(model, proofs_of(model), key=key)
    uri = "models:/signed/1"

    assert read_version("signed", 1).digest == model.digest  # as `rollback` and, below, a consumer reads it
    assert slmpack.load(uri).predict({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    extra = served_file(server, model.uri, "MLmodel").with_name("extra.so")
    extra.touch()
    with pytest.raises(TrustError, match=f"the signature of {uri} does not have extra.so, which was added"):
        slmpack.load(uri)
    with pytest.raises(CheckError, match=r"extra\.so beside what was logged"):
        read_version("signed", 1)
    extra.unlink()
    weights = served_file(server, model.uri, "model.onnx.data")
    before = flip_a_bit(weights)
    with pytest.raises(TrustError, match=r"has another artifacts/package/model\.onnx\.data"):
        slmpack.load(uri)
    weights.write_bytes(before)
    read = logged_digests(model)
    assert require_signed(uri, "signed", _location(model), read) is not None
    with pytest.raises(TrustError, match=r"has another chat_model\.py"):
        require_signed(uri, "signed", _location(model), read | {"chat_model.py": "0" * 64})


def test_a_signed_source_is_downloaded_and_checked_before_it_is_read(
    server: Path, small_snapshot: Snapshot, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "release.pem")
    (tmp_path / "trust.toml").write_text(f"[trust.keys.a]\npublic_key = '''{key.public_pem()}'''\nnames = ['based']\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trust.toml"))
    model = log_checkpoint(small_snapshot, "based", workspace, {})
    publish_version(model, proofs_of(model), key=key)
    source = resolve_source("models:/based/1")
    assert fetch_snapshot(source, tmp_path / "work").parameters == small_snapshot.parameters
    settings = served_file(server, model.uri, "generation_config.json")
    before = settings.read_bytes()
    settings.unlink()
    settings.write_bytes(before + b"\n")
    with pytest.raises(TrustError, match=r"the signature of models:/based/1 has another model/generation_config\.json"):
        fetch_snapshot(source, tmp_path / "elsewhere")
    assert not [*(tmp_path / "elsewhere" / "snapshots").glob("*/manifest.json")]


def _location(model: LoggedModel) -> str:
    return str(MlflowClient().get_logged_model(model.model_id).artifact_location)


def _proved(model: LoggedModel, workspace: Path) -> Proofs:
    policy = QualityPolicy(max_perplexity_ratio=1000.0, allow_new_loops=True)
    smoke = smoke_test(model, workspace)
    quality = measure_quality(model, policy, workspace)
    return Proofs(validation=validate_model(model, workspace), quality=quality, smoke=smoke)


def _interrupt_an_upload(package: Package, workspace: Path, server: Path) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.progress.stage == "log":  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    files, experiment = _files(server), MlflowClient().get_experiment_by_name("slmpack")
    before = [] if experiment is None else MlflowClient().search_logged_models([experiment.experiment_id])
    handler = Interrupt()
    progress.logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_model(package, Interface.PROMPT, "interrupted", workspace, {})
    finally:
        progress.logger.removeHandler(handler)
    experiment = MlflowClient().get_experiment_by_name("slmpack")
    assert experiment is not None
    newest, *_ = MlflowClient().search_runs([experiment.experiment_id])
    assert newest.info.status == "KILLED"
    assert len(MlflowClient().search_logged_models([experiment.experiment_id])) == len(before)
    assert _files(server) == files


def _files(server: Path) -> list[Path]:
    return sorted(path for path in (server / "artifacts").rglob("*") if path.is_file())


def test_what_is_handed_out_is_downloaded_and_compared(server: Path, logged: LoggedModel) -> None:
    read_back(logged)
    weights = served_file(server, logged.uri, "model.onnx.data")
    before = flip_a_bit(weights)
    with pytest.raises(CheckError, match=r"artifacts/package/model\.onnx\.data"):
        read_back(logged)
    weights.write_bytes(before)


def test_a_checkpoint_is_handed_over_and_a_damaged_file_is_noticed(
    server: Path, small_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    handed = share_snapshot(small_snapshot, "small-phi3", workspace, {})
    assert handed.checkpoint is not None
    assert receive_snapshot(handed.checkpoint, tmp_path / "elsewhere").digest == small_snapshot.digest
    flip_a_bit(served_file(server, handed.checkpoint.partition("#")[0], "model.safetensors"))
    with pytest.raises(SourceError, match="holds other files than were fetched"):
        receive_snapshot(handed.checkpoint, tmp_path / "third")
    assert [*(tmp_path / "third" / "snapshots").glob("*")] == []  # who fetches the source there takes none of it


def test_a_package_is_recalled_and_a_damaged_one_leaves_nothing(
    server: Path, logged: LoggedModel, small_phi3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / small_phi3.name).symlink_to(small_phi3)
    found = restore_model(logged.uri, tmp_path / "workspace")
    assert _without_paths(found) == _without_paths(logged)
    assert found.package.path.is_relative_to(tmp_path / "workspace" / "packages")
    assert damage(found.package.path) is None

    weights = served_file(server, logged.uri, "model.onnx.data")
    before = flip_a_bit(weights)
    with pytest.raises(CheckError, match=r"serves model\.onnx\.data with other content"):
        restore_model(logged.uri, tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere" / "packages").iterdir()) == []
    weights.write_bytes(before)


def _without_paths(model: LoggedModel) -> dict[str, Any]:
    """Return all of a record that does not depend on the machine."""
    facts = model.model_dump()
    del facts["package"]["path"], facts["package"]["snapshot"]["path"]
    del facts["package"]["snapshot"]["source"]["text"], facts["package"]["snapshot"]["source"]["location"]
    return facts
