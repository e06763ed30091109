"""Hand over: a source that was fetched here is the same on a machine that has nothing but MLflow's address."""

from pathlib import Path

import pytest
from checkpoints import write_tiny_phi3
from mlflow import MlflowClient
from older_records import write_older_provenance

from slmpack.build.build import package_digest
from slmpack.checkpoint.original import original_gguf
from slmpack.errors import CheckError, SourceError
from slmpack.log.provenance import PROVENANCE
from slmpack.log.transfer import find_checkpoint, pinned_text, receive_snapshot, share_snapshot, source_of_checkpoint
from slmpack.records import ModelSource, Recipe, Snapshot, SourceKind, Target
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
    assert find_checkpoint(tiny_snapshot.source) is None
    handed = share_snapshot(tiny_snapshot, "tiny-phi3", workspace, {})
    assert find_checkpoint(tiny_snapshot.source) == handed
    assert MlflowClient().search_registered_models() == []


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
    from mlflow.artifacts import download_artifacts

    original = original_gguf({"lm_head.weight": "Q8_0", "model.embed_tokens.weight": "Q4_0"})
    handed = share_snapshot(tiny_snapshot.model_copy(update={"original": original}), "tiny-phi3", workspace, {})
    assert handed.checkpoint is not None
    location = MlflowClient().get_logged_model(handed.checkpoint.removeprefix("models:/")).artifact_location
    write_older_provenance(Path(download_artifacts(f"{location}/{PROVENANCE}")))
    there = receive_snapshot(handed.checkpoint, tmp_path / "elsewhere")
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
