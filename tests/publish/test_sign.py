"""Signing what is published: before the alias moves, again with another key, and never what was not proved."""

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import mlflow
import pytest
from authority import SUBJECT, Authority
from made_proofs import ALIAS, flip_a_bit, holder_of, proofs_of, publish
from mlflow import MlflowClient

import slmpack
from slmpack import progress
from slmpack.errors import CheckError, PublishError, SourceError, TrustError, UsageError
from slmpack.log.read_back import read_back
from slmpack.log.restore import restore_model
from slmpack.log.tags import SIGNED_BY
from slmpack.machine.store import sha256_of
from slmpack.publish.bom.log_bom import read_bom
from slmpack.publish.publish import publish_version
from slmpack.publish.rollback import read_version
from slmpack.publish.sign import sign_again
from slmpack.publish.statement import PREDICATE_TYPE, STATEMENT_TYPE
from slmpack.records import LoggedModel
from slmpack.serve.locate import locate
from slmpack.signing.keys import SigningKey, new_key, parse_key
from slmpack.signing.policy import VARIABLE
from slmpack.signing.signature import SIGNATURE, STATEMENT

LogIt = Callable[..., LoggedModel]
Ways = dict[str, Callable[[str, Path], object]]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path / "release.pem")


@pytest.fixture
def policy(key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that accepts the key for any name; it counts in this test."""
    path = write_policy(tmp_path / "trust.toml", key)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def write_policy(path: Path, key: SigningKey, names: str = "*") -> Path:
    path.write_text(f"[trust.keys.release]\npublic_key = '''{key.public_pem()}'''\nnames = ['{names}']\n")
    return path


def publish_signed(model: LoggedModel, key: SigningKey) -> None:
    publish_version(model, proofs_of(model), key=key)


def files_of(model: LoggedModel) -> Path:
    return Path(str(MlflowClient().get_logged_model(model.model_id).artifact_location).removeprefix("file://"))


WAYS: Ways = {  # to every place that looks
    "load": lambda name, workspace: slmpack.load(f"models:/{name}@{ALIAS}"),
    "serve": lambda name, workspace: locate(f"models:/{name}@{ALIAS}"),
    "verify": lambda name, workspace: restore_model(f"models:/{name}/1", workspace),
    "roll back": lambda name, workspace: read_version(name, 1),
}


@pytest.mark.slow
def test_a_version_is_signed_before_its_alias_moves_and_every_way_to_it_accepts_it(
    name: str, log_it: LogIt, key: SigningKey, policy: Path, workspace: Path
) -> None:
    model = log_it()
    publish_signed(model, key)
    assert MlflowClient().get_model_version(name, "1").tags[SIGNED_BY] == key.fingerprint
    for way in WAYS.values():
        way(name, workspace)
    assert read_back(model)  # the signature is no stranger among the files
    restore_model(model.uri, workspace)  # named by its id it is looked at as well


@pytest.mark.slow
def test_an_unsigned_version_is_refused_on_every_way_and_nothing_of_it_runs(
    name: str, log_it: LogIt, policy: Path, workspace: Path
) -> None:
    model = log_it()
    publish(model)
    wrapper = files_of(model) / "chat_model.py"
    for way in WAYS.values():
        with pytest.raises(TrustError, match=f"models:/{name}[/@].* is not signed; a signature by release"):
            way(name, workspace)
    with pytest.raises(TrustError, match="is not signed"):
        restore_model(model.uri, workspace)
    assert not list(wrapper.parent.rglob("*.pyc"))


@pytest.mark.slow
def test_a_version_that_is_read_back_is_not_read_again_for_its_signature(
    name: str, log_it: LogIt, key: SigningKey, policy: Path, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_signed(log_it(), key)
    progress.logger.addHandler(caplog.handler)
    try:
        for read in (WAYS["roll back"], WAYS["verify"]):
            caplog.clear()
            read(name, workspace)
            stages = {record.progress.stage for record in caplog.records if hasattr(record, "progress")}
            assert stages & {"read back", "signature"} == {"read back"}
    finally:
        progress.logger.removeHandler(caplog.handler)


@pytest.mark.slow
def test_a_certificate_signs_as_a_key_does_and_every_way_looks_whose_it_is(
    name: str, log_it: LogIt, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(), Authority()
    key, model = parse_key(authority.issue().pem().encode(), "it"), log_it()
    publish_signed(model, key)
    assert MlflowClient().get_model_version(name, "1").tags[SIGNED_BY] == key.fingerprint
    for which in (authority, other):
        entry = f"roots = '''{which.root.root()}'''\nsubjects = ['{SUBJECT}']\nnames = ['*']\n"
        (tmp_path / f"{which is other}.toml").write_text(f"[trust.certificates.ci]\n{entry}")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "False.toml"))
    for way in WAYS.values():
        way(name, workspace)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "True.toml"))
    for way in WAYS.values():
        with pytest.raises(TrustError, match=f"by the certificate {SUBJECT}, which does not lead to the roots of ci"):
            way(name, workspace)


@pytest.mark.slow
def test_what_was_never_published_is_verified_without_a_signature(log_it: LogIt, policy: Path, workspace: Path) -> None:
    model = log_it()
    assert restore_model(model.uri, workspace).digest == model.digest
    with pytest.raises(TrustError, match="is not signed"):
        slmpack.load(model.uri)


@pytest.mark.slow
def test_a_wrapper_with_a_line_more_and_new_manifests_is_refused_before_it_runs(
    name: str, log_it: LogIt, key: SigningKey, policy: Path, tmp_path: Path
) -> None:
    model = log_it()
    publish_signed(model, key)
    folder, mark = files_of(model), tmp_path / "it-ran"
    wrapper, manifest = folder / "chat_model.py", folder / "manifest.json"
    was = {path: path.read_bytes() for path in (wrapper, manifest)}
    for path in was:
        path.unlink()  # its other name is the workspace's
    wrapper.write_bytes(was[wrapper] + f"\nopen({str(mark)!r}, 'w')\n".encode())
    listed = json.loads(was[manifest])
    for file in listed["files"]:
        if file["name"] == wrapper.name:
            file |= {"sha256": sha256_of(wrapper), "size_bytes": wrapper.stat().st_size}
    manifest.write_text(json.dumps(listed))
    MlflowClient().set_logged_model_tags(model.model_id, {"slmpack.manifest": sha256_of(manifest)})

    with pytest.raises(TrustError, match=r"has another chat_model\.py"):
        slmpack.load(f"models:/{name}@{ALIAS}", trust_code=True)
    assert not mark.exists()
    mlflow.pyfunc.load_model(f"models:/{name}@{ALIAS}")  # what a consumer without a policy gets
    assert mark.exists()


@pytest.mark.slow
def test_a_signature_that_was_copied_from_another_version_does_not_hold(
    name: str, log_it: LogIt, key: SigningKey, policy: Path
) -> None:
    first, second = log_it(), log_it()
    publish_signed(first, key)
    for file in (SIGNATURE, STATEMENT):
        (files_of(second) / file).write_bytes((files_of(first) / file).read_bytes())
    publish_version(second, proofs_of(second), force=True)
    with pytest.raises(TrustError, match=f"the signature of models:/{name}/2 has another MLmodel"):
        slmpack.load(f"models:/{name}/2")


@pytest.mark.slow
def test_a_signed_model_that_is_registered_under_another_name_is_refused(
    name: str, log_it: LogIt, key: SigningKey, policy: Path
) -> None:
    model = log_it()
    publish_signed(model, key)
    MlflowClient().create_registered_model(f"{name}-copy")
    MlflowClient().create_model_version(f"{name}-copy", model.uri, model_id=model.model_id)
    for version in ("1", "latest"):
        with pytest.raises(TrustError, match=f"is signed as a version of {name}; one of {name}-copy"):
            slmpack.load(f"models:/{name}-copy/{version}")
    with pytest.raises(CheckError, match=f"was logged as {name}"):
        sign_again(f"models:/{name}-copy/1", key)


@pytest.mark.slow
def test_a_version_is_signed_again_by_another_key(
    name: str, log_it: LogIt, key: SigningKey, policy: Path, tmp_path: Path
) -> None:
    publish(log_it())
    other = new_key(tmp_path / "other.pem")
    assert sign_again(f"models:/{name}@{ALIAS}", other) == 1
    with pytest.raises(TrustError, match="by a key that the policy does not have"):
        slmpack.load(f"models:/{name}@{ALIAS}")
    assert sign_again(f"models:/{name}/1", key) == 1
    slmpack.load(f"models:/{name}@{ALIAS}")
    assert MlflowClient().get_model_version(name, "1").tags[SIGNED_BY] == key.fingerprint


@pytest.mark.slow
def test_only_what_was_proved_and_is_whole_is_signed(name: str, log_it: LogIt, key: SigningKey) -> None:
    model = log_it()
    with pytest.raises(SourceError, match=f"no models:/{name}/1"):
        sign_again(f"models:/{name}/1", key)
    MlflowClient().create_registered_model(name)
    MlflowClient().create_model_version(name, model.uri, model_id=model.model_id)
    with pytest.raises(PublishError, match=f"models:/{name}/1 was not published; a proved version"):
        sign_again(f"models:/{name}/1", key)
    published = log_it()
    publish_version(published, proofs_of(published), force=True)
    flip_a_bit(published, "slmpack.json")
    with pytest.raises(CheckError, match=r"slmpack\.json"):
        sign_again(f"models:/{name}@{ALIAS}", key)
    assert not (files_of(published) / SIGNATURE).exists()


@pytest.mark.slow
def test_the_alias_stays_where_it_is_when_the_store_does_not_take_the_signature(
    name: str, log_it: LogIt, key: SigningKey
) -> None:
    publish(log_it())
    second = log_it()
    (files_of(second) / STATEMENT).mkdir()  # where the statement is to be
    with pytest.raises(PublishError, match=r"provenance\.json"):
        publish_version(second, proofs_of(second), key=key, force=True)
    assert holder_of(name) == 1
    assert not list(files_of(second).glob("provenance.json.*"))


@pytest.mark.slow
def test_the_statement_says_what_was_made_of_what_and_what_was_proved(
    name: str, log_it: LogIt, key: SigningKey
) -> None:
    model = log_it()
    publish_signed(model, key)
    statement = json.loads((files_of(model) / STATEMENT).read_text())
    assert (statement["_type"], statement["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    digest = sha256_of(files_of(model) / "manifest.json")
    assert statement["subject"] == [{"name": name, "digest": {"sha256": digest}}]
    build, run = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert build["externalParameters"]["target"] == ALIAS
    files = {each["name"]: each["digest"]["sha256"] for each in build["resolvedDependencies"] if "name" in each}
    assert files == {file.name: file.sha256 for file in model.package.snapshot.files}
    assert run["metadata"]["invocationId"] == model.run_id
    assert run["metadata"]["startedOn"] <= run["metadata"]["finishedOn"]
    assert {"slmpack", "onnxruntime-genai", "tokenizers"} <= run["builder"]["version"].keys()
    proofs, bill = run["byproducts"]
    assert bill["digest"]["sha256"] == sha256(read_bom(f"models:/{name}/1").encode()).hexdigest()
    assert json.loads(base64.b64decode(proofs["content"]))["quality"]["perplexity_ratio"] > 0
    assert statement["predicate"]["slmpack_facts"]["digest"] == model.digest


@pytest.mark.slow
def test_loading_without_a_policy_says_what_is_missing(name: str, log_it: LogIt) -> None:
    publish(log_it())
    with pytest.raises(UsageError, match=f"no trust policy to check models:/{name}/1 by; one in trust=FILE"):
        slmpack.load(f"models:/{name}/1")
