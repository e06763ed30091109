"""Hand over: a source that was fetched here is the same on a machine that has nothing but MLflow's address."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from checkpoints import write_tiny_phi3
from made_proofs import files_of
from mlflow import MlflowClient
from older_records import write_older_provenance

from slmpack.build.build import package_digest
from slmpack.checkpoint.original import original_gguf
from slmpack.errors import CheckError, SourceError
from slmpack.log.provenance import PROVENANCE
from slmpack.log.read_back import CHECKPOINT_FOLDER
from slmpack.log.transfer import find_checkpoint, pinned_text, receive_snapshot, share_snapshot, source_of_checkpoint
from slmpack.records import FileDigest, ModelSource, Recipe, Snapshot, SourceKind, Target, digest_of_files
from slmpack.signing.keys import new_key
from slmpack.signing.policy import VARIABLE
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow


def test_a_folder_of_this_machine_is_the_same_elsewhere_and_its_path_stays_here(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    repaired = tiny_snapshot.model_copy(update={"repairs": ("A token was taken out.", "So was another.")})
    handed = share_snapshot(repaired, "tiny-phi3", workspace, {"prefect_run": "run-1"})
    assert handed.checkpoint is not None
    there = receive_snapshot(handed.checkpoint, tmp_path / "elsewhere")
    assert (there.files, there.digest) == (tiny_snapshot.files, tiny_snapshot.digest)
    assert there.repairs == repaired.repairs
    assert there.path.is_relative_to(tmp_path / "elsewhere")
    digests = {package_digest(each, Target.CPU_INT4, Recipe.BALANCED) for each in (there, tiny_snapshot)}
    assert len(digests) == 1
    source = source_of_checkpoint(handed.checkpoint)
    assert (source.kind, source.revision) == (SourceKind.FOLDER, tiny_snapshot.source.revision)
    for told in (handed.source, source.location, source.text):
        assert told == "tiny-phi3"


def test_the_same_content_is_handed_over_once_and_registered_never(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path
) -> None:
    assert find_checkpoint(tiny_snapshot.source, workspace) is None
    handed = share_snapshot(tiny_snapshot, "tiny-phi3", workspace, {})
    assert find_checkpoint(tiny_snapshot.source, workspace) == handed
    assert MlflowClient().search_registered_models() == []


def test_with_a_trust_policy_nothing_is_taken_that_the_workspace_does_not_know(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = share_snapshot(tiny_snapshot, "tiny-phi3", workspace, {})
    assert find_checkpoint(tiny_snapshot.source, tmp_path / "new") == handed
    policy = f"[trust.keys.a]\npublic_key = '''{new_key(tmp_path / 'key.pem').public_pem()}'''\nnames = ['*']\n"
    (tmp_path / "trust.toml").write_text(policy)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trust.toml"))
    assert find_checkpoint(tiny_snapshot.source, tmp_path / "new") is None
    assert find_checkpoint(tiny_snapshot.source, workspace) == handed


def folder_of(checkpoint: str) -> Path:
    return files_of(checkpoint.partition("#")[0].removeprefix("models:/"))


def exchange(checkpoint: str, name: str, content: bytes) -> None:
    """Exchange a file of a shared checkpoint, and its digests in the record, as who may write to the store can."""
    folder = folder_of(checkpoint)
    (folder / CHECKPOINT_FOLDER / name).unlink()  # a link to what is in the workspace
    (folder / CHECKPOINT_FOLDER / name).write_bytes(content)
    record = json.loads((folder / PROVENANCE).read_text())
    (entry,) = [each for each in record["snapshot"]["files"] if each["name"] == name]
    entry |= {"sha256": sha256(content).hexdigest(), "size_bytes": len(content)}
    files = [FileDigest.model_validate(each) for each in record["snapshot"]["files"]]
    record["snapshot"]["digest"] = digest_of_files(files)
    (folder / PROVENANCE).write_text(json.dumps(record))


def test_an_exchanged_checkpoint_is_refused_although_its_record_was_exchanged_with_it(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    handed = share_snapshot(tiny_snapshot, "tiny-phi3", workspace, {})
    assert handed.checkpoint is not None
    own = (tiny_snapshot.path / "generation_config.json").read_bytes()
    exchange(handed.checkpoint, "generation_config.json", own + b"\n")
    uri = handed.checkpoint.partition("#")[0]
    assert receive_snapshot(uri, tmp_path / "trusting").digest != tiny_snapshot.digest  # nothing else is wrong with it
    for take in (lambda: receive_snapshot(str(handed.checkpoint), tmp_path / "there"),
                 lambda: source_of_checkpoint(str(handed.checkpoint))):  # fmt: skip
        with pytest.raises(SourceError, match=f"{uri} is another checkpoint than the one that was handed over"):
            take()
    assert not (tmp_path / "there").exists()


def test_files_that_are_not_those_of_the_record_stay_in_no_workspace(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    handed = share_snapshot(tiny_snapshot, "tiny-phi3", workspace, {})
    file = folder_of(str(handed.checkpoint)) / CHECKPOINT_FOLDER / "generation_config.json"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b"\n")
    with pytest.raises(SourceError, match="holds other files than were fetched"):
        receive_snapshot(str(handed.checkpoint), tmp_path / "there")
    assert [*(tmp_path / "there" / "snapshots").glob("*")] == []


def test_what_a_gguf_file_said_of_its_blocks_goes_along(
    mlflow_store: Path, smollm2: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    handed = share_snapshot(smollm2, "smollm2", workspace, {})
    assert handed.checkpoint is not None
    there = receive_snapshot(handed.checkpoint, tmp_path / "elsewhere")
    assert there.digest == smollm2.digest
    assert there.original == smollm2.original is not None
    assert there.source.text == smollm2.source.text


def test_what_an_earlier_release_handed_over_has_its_original(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    original = original_gguf({"lm_head.weight": "Q8_0", "model.embed_tokens.weight": "Q4_0"})
    handed = share_snapshot(tiny_snapshot.model_copy(update={"original": original}), "tiny-phi3", workspace, {})
    assert handed.checkpoint is not None
    write_older_provenance(folder_of(handed.checkpoint) / PROVENANCE)
    there = receive_snapshot(handed.checkpoint.partition("#")[0], tmp_path / "elsewhere")  # which gave no digest
    assert (there.digest, there.original) == (tiny_snapshot.digest, original)


def test_what_slmpack_did_not_log_is_not_received(mlflow_store: Path, tmp_path: Path) -> None:
    import mlflow.pyfunc

    (tmp_path / "answer.py").write_text(
        "import mlflow\n\n\nclass Answer(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input):\n        return model_input\n\n\n"
        "mlflow.models.set_model(Answer())\n"
    )
    other = mlflow.pyfunc.log_model(name="other", python_model=str(tmp_path / "answer.py"), pip_requirements=[])
    with pytest.raises(CheckError, match=r"has no slmpack\.json beside its MLmodel"):
        receive_snapshot(f"models:/{other.model_id}", tmp_path / "elsewhere")


def test_a_source_is_pinned_unless_it_is_a_path(tmp_path: Path, smollm2: Snapshot, workspace: Path) -> None:
    hub = ModelSource(
        text="hf://owner/name@main", kind=SourceKind.HUB, location="owner/name", revision="abc123", name="name"
    )
    assert pinned_text(hub) == "hf://owner/name@abc123"
    assert pinned_text(smollm2.source) == smollm2.source.text
    write_tiny_phi3(tmp_path / "here", tokenizer=smollm2.path)
    local = fetch_snapshot(resolve_source(str(tmp_path / "here")), workspace)
    with pytest.raises(SourceError, match="on this machine only; a source that workers can reach"):
        pinned_text(local.source)
