"""A registered model as a source: with a trust policy, its signature is checked before its files are read further."""

from pathlib import Path

import pytest
from made_proofs import proofs_of
from mlflow import MlflowClient

from slmpack.errors import TrustError, UsageError
from slmpack.log.checkpoint import log_checkpoint
from slmpack.log.tags import RETRAINED
from slmpack.publish.publish import publish_version
from slmpack.publish.sign import needs_signing, require_accepted, sign_again
from slmpack.records import LoggedModel, Snapshot
from slmpack.signing.keys import PrivateKey, new_key
from slmpack.signing.policy import VARIABLE
from slmpack.signing.signature import SIGNATURE, STATEMENT
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow

NAME, URI = "small", "models:/small@transformers"


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    return new_key(tmp_path / "release.pem")


@pytest.fixture
def model(mlflow_store: Path, small_snapshot: Snapshot, key: PrivateKey, workspace: Path) -> LoggedModel:
    """A checkpoint that was published and signed."""
    logged = log_checkpoint(small_snapshot, NAME, workspace, {})
    publish_version(logged, proofs_of(logged), key=key)
    return logged


@pytest.fixture
def policy(key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that counts in this test."""
    path = tmp_path / "trust.toml"
    path.write_text(f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['{NAME}']\n")
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def files_of(model: LoggedModel) -> Path:
    return Path(str(MlflowClient().get_logged_model(model.model_id).artifact_location).removeprefix("file://"))


def fetch(uri: str, workspace: Path) -> Snapshot:
    return fetch_snapshot(resolve_source(uri, workspace), workspace)


def snapshots_in(workspace: Path) -> int:
    return len([*(workspace / "snapshots").glob("*/manifest.json")])


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # its other name is the workspace's
    path.write_bytes(content)


def test_a_signed_version_is_taken_by_every_name(
    model: LoggedModel, policy: Path, small_snapshot: Snapshot, tmp_path: Path
) -> None:
    found = [fetch(uri, tmp_path / "work") for uri in (URI, f"models:/{NAME}/1", model.uri)]
    assert {each.digest for each in found} == {found[0].digest}
    assert found[0].parameters == small_snapshot.parameters
    assert snapshots_in(tmp_path / "work") == 1


def test_an_unsigned_version_is_refused_by_name_and_nothing_is_stored(
    mlflow_store: Path, small_snapshot: Snapshot, policy: Path, workspace: Path, tmp_path: Path
) -> None:
    logged = log_checkpoint(small_snapshot, NAME, workspace, {})
    publish_version(logged, proofs_of(logged))
    for uri in (URI, logged.uri):
        with pytest.raises(TrustError, match=rf"{uri} is not signed; "):
            fetch(uri, tmp_path / "work")
    assert snapshots_in(tmp_path / "work") == 0


@pytest.mark.parametrize("name", ["model/config.json", "components/tokenizer/tokenizer.json", "MLmodel"])
def test_a_file_that_was_changed_is_refused_before_it_is_read(
    name: str, model: LoggedModel, policy: Path, tmp_path: Path
) -> None:
    content = (files_of(model) / name).read_bytes()
    source = resolve_source(URI)
    replace(files_of(model) / name, content + b"\n")
    with pytest.raises(TrustError, match=f"the signature of {URI} has another {name}"):
        fetch_snapshot(source, tmp_path / "work")
    assert snapshots_in(tmp_path / "work") == 0


def test_a_file_that_was_added_and_another_statement_are_refused(
    model: LoggedModel, policy: Path, tmp_path: Path
) -> None:
    extra, statement = files_of(model) / "model" / "modeling_evil.py", files_of(model) / STATEMENT
    extra.write_text("")
    with pytest.raises(TrustError, match=r"does not have model/modeling_evil\.py, which was added"):
        fetch(URI, tmp_path / "work")
    extra.unlink()
    replace(statement, statement.read_bytes().replace(b'"name": "small"', b'"name": "large"'))
    with pytest.raises(TrustError, match=rf"has another {STATEMENT}"):
        fetch(URI, tmp_path / "work")


def test_a_snapshot_that_was_made_without_a_policy_is_not_taken_for_a_checked_one(
    model: LoggedModel, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files_of(model) / "model" / "generation_config.json"
    content = path.read_bytes()
    monkeypatch.setenv(VARIABLE, "")
    replace(path, content + b"\n")
    unchecked = fetch(URI, tmp_path / "work")
    replace(path, content)
    monkeypatch.setenv(VARIABLE, str(policy))
    assert fetch(URI, tmp_path / "work").digest != unchecked.digest


def test_a_checked_snapshot_is_not_taken_once_its_key_is_revoked_or_may_sign_other_names(
    model: LoggedModel, policy: Path, tmp_path: Path
) -> None:
    fetch(URI, tmp_path / "work")
    text = policy.read_text()
    policy.write_text(f"{text}revoked = 'lost'\n")
    with pytest.raises(TrustError, match=rf"{URI} is signed by the key release, which is revoked \(lost\)"):
        fetch(URI, tmp_path / "work")
    policy.write_text(text.replace(f"['{NAME}']", "['large']"))
    for uri in (URI, model.uri):
        with pytest.raises(TrustError, match=f"{uri} is signed by the key release, which may not sign small"):
            fetch(uri, tmp_path / "work")


def test_a_version_that_was_signed_for_another_name_is_refused(
    model: LoggedModel, policy: Path, tmp_path: Path
) -> None:
    policy.write_text(policy.read_text().replace(f"['{NAME}']", "['*']"))
    MlflowClient().create_registered_model("copy")
    MlflowClient().create_model_version("copy", model.uri, model_id=model.model_id)
    with pytest.raises(TrustError, match="models:/copy/1 is signed as a version of small; one of copy"):
        fetch("models:/copy/1", tmp_path / "work")


def test_a_tuned_version_that_was_never_published_is_signed_to_be_a_source(
    mlflow_store: Path, small_snapshot: Snapshot, key: PrivateKey, policy: Path, workspace: Path, tmp_path: Path
) -> None:
    logged = log_checkpoint(small_snapshot, NAME, workspace, {})
    MlflowClient().create_registered_model(NAME)
    MlflowClient().create_model_version(NAME, logged.uri, model_id=logged.model_id, tags={RETRAINED: "0" * 24})
    with pytest.raises(TrustError, match=f"models:/{NAME}/1 is not signed"):
        fetch(f"models:/{NAME}/1", tmp_path / "work")
    assert needs_signing(NAME, 1, key)
    assert sign_again(f"models:/{NAME}/1", key) == 1
    assert not needs_signing(NAME, 1, key)
    assert fetch(f"models:/{NAME}/1", tmp_path / "work").parameters == small_snapshot.parameters


def test_nothing_is_tuned_that_the_policy_would_not_take_as_a_source(
    key: PrivateKey, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_accepted(NAME, key)
    with pytest.raises(UsageError, match=f"no signing key for {NAME}, and a trust policy .*; give --signing-key"):
        require_accepted(NAME, None)
    with pytest.raises(TrustError, match="by the key release, which may not sign large"):
        require_accepted("large", key)
    with pytest.raises(TrustError, match=f"as {NAME} is signed by a key that the policy does not have"):
        require_accepted(NAME, new_key(tmp_path / "other.pem"))
    monkeypatch.setenv(VARIABLE, "")
    require_accepted(NAME, None)


def test_without_a_policy_no_signature_is_looked_at(
    model: LoggedModel, small_snapshot: Snapshot, tmp_path: Path
) -> None:
    (files_of(model) / SIGNATURE).unlink()
    assert fetch(URI, tmp_path / "work").parameters == small_snapshot.parameters
