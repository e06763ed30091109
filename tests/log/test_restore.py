"""Recall: a logged model is known again from its URI alone, and from nothing but what it was made from."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from slmpack.build.build import build_package
from slmpack.errors import CheckError, SourceError, UsageError
from slmpack.log.log import log_model
from slmpack.log.origin import source_here
from slmpack.log.provenance import PROVENANCE, provenance_of
from slmpack.log.restore import find_logged, restore_model
from slmpack.machine.store import MANIFEST, damage
from slmpack.prove.validate import validate_model
from slmpack.publish.find import registry_status
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]
NO_ID = "m-" + "0" * 32


@pytest.fixture(scope="module")
def logged(store: Path, tiny_package: Package, workspace: Path) -> LoggedModel:
    return log_model(tiny_package, Interface.CHAT, "tiny", workspace, {})


@pytest.fixture(scope="module")
def logged_checkpoint(store: Path, tiny_snapshot: Snapshot, workspace: Path) -> LoggedModel:
    package = build_package(tiny_snapshot, Target.TRANSFORMERS, None, workspace)
    return log_model(package, Interface.CHAT, "tiny", workspace, {})


@pytest.fixture
def linked(tiny_phi3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the source in it, under its own name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / tiny_phi3.name).symlink_to(tiny_phi3)
    return tmp_path


def artifacts_of(model: LoggedModel) -> Path:
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    return Path(location.removeprefix("file://"))


def without_paths(model: LoggedModel) -> dict[str, Any]:
    """Return all of a record that does not depend on the machine."""
    facts = model.model_dump()
    del facts["package"]["path"], facts["package"]["snapshot"]["path"]
    del facts["package"]["snapshot"]["source"]["text"], facts["package"]["snapshot"]["source"]["location"]
    return facts


def damaged(path: Path) -> None:
    """Flip one byte, in a file of its own: what is linked is not written through."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_the_record_is_the_one_that_was_logged(logged: LoggedModel, workspace: Path) -> None:
    found = restore_model(logged.uri, workspace)

    assert without_paths(found) == without_paths(logged)
    assert found.package.snapshot.path == logged.package.snapshot.path
    assert found.package.path == artifacts_of(logged) / "artifacts" / "package"
    assert found.package.snapshot.source.shown == "tiny-phi3"


def test_a_version_and_an_alias_name_their_model(logged: LoggedModel, workspace: Path) -> None:
    client = MlflowClient()
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", logged.uri, logged.run_id, model_id=logged.model_id)
    client.set_registered_model_alias("tiny", "mine", version.version)

    for uri in ("models:/tiny/1", "models:/tiny@mine"):
        assert find_logged(uri).model_id == logged.model_id
    assert registry_status(logged).model_dump() == {"published": None, "holder": None}


def test_what_travels_has_no_path_of_the_machine(
    logged: LoggedModel, logged_checkpoint: LoggedModel, tiny_phi3: Path, workspace: Path
) -> None:
    for model in (logged, logged_checkpoint):
        folder = artifacts_of(model)
        text = (folder / PROVENANCE).read_text()
        told = json.loads(text)
        for private in (tiny_phi3, workspace, Path.home(), folder, socket.gethostname()):
            assert str(private) not in text
        assert (told["source"]["text"], told["source"]["location"]) == ("tiny-phi3", None)
        assert PROVENANCE in [file["name"] for file in json.loads((folder / MANIFEST).read_text())["files"]]


def test_a_path_in_what_travels_is_refused_before_it_is_published(tiny_package: Package, workspace: Path) -> None:
    leaky = tiny_package.model_copy(update={"repairs": (f"mended {workspace}/tokenizer.json",)})
    model = log_model(leaky, Interface.CHAT, "leaky", workspace, {})

    with pytest.raises(CheckError, match=rf"no leak: {workspace} in {PROVENANCE} package repairs"):
        validate_model(model, workspace)


def test_another_workspace_fetches_the_source_again(logged: LoggedModel, linked: Path) -> None:
    found = restore_model(logged.uri, linked / "workspace")

    assert without_paths(found) == without_paths(logged)
    assert found.package.snapshot.path.is_relative_to(linked / "workspace")
    assert damage(found.package.snapshot.path) is None


def test_a_source_that_is_gone_is_named(logged: LoggedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"folder tiny-phi3, which is not here; .* with digest [0-9a-f]{12}.*cannot"):
        restore_model(logged.uri, tmp_path)


def test_a_folder_of_the_same_name_is_not_the_source(logged: LoggedModel, linked: Path, tiny_phi3: Path) -> None:
    (linked / "tiny-phi3").unlink()
    shutil.copytree(tiny_phi3, linked / "tiny-phi3")
    config = linked / "tiny-phi3" / "config.json"
    config.write_text(config.read_text() + "\n")

    with pytest.raises(CheckError, match="folder tiny-phi3, which is not here"):
        restore_model(logged.uri, linked / "workspace")


def test_a_checkpoint_needs_no_source(logged_checkpoint: LoggedModel, tmp_path: Path) -> None:
    found = restore_model(logged_checkpoint.uri, tmp_path)

    assert without_paths(found) == without_paths(logged_checkpoint)
    assert (found.package.path / "model.safetensors").is_file()


def test_a_logged_source_is_fetched_by_its_id(
    logged_checkpoint: LoggedModel, tiny_package: Package, workspace: Path, tmp_path: Path
) -> None:
    snapshot = fetch_snapshot(resolve_source(logged_checkpoint.uri), workspace)
    package = tiny_package.model_copy(update={"snapshot": snapshot})
    model = log_model(package, Interface.CHAT, "tuned", workspace, {})

    found = restore_model(model.uri, tmp_path)

    assert found.package.snapshot.source == snapshot.source
    assert found.package.snapshot.path.is_relative_to(tmp_path)


def test_a_source_with_other_content_is_refused(
    logged_checkpoint: LoggedModel, tiny_package: Package, workspace: Path, tmp_path: Path
) -> None:
    snapshot = fetch_snapshot(resolve_source(logged_checkpoint.uri), workspace)
    wrong = snapshot.model_copy(update={"files": snapshot.files[1:]})
    model = log_model(tiny_package.model_copy(update={"snapshot": wrong}), Interface.CHAT, "tuned", workspace, {})

    with pytest.raises(
        CheckError, match=rf"gives a checkpoint with digest {snapshot.digest[:12]}.*{wrong.digest[:12]}"
    ):
        restore_model(model.uri, tmp_path)


@pytest.mark.parametrize("name", ["artifacts/package/model.onnx.data", "chat_model.py", "MLmodel"])
def test_one_changed_byte_is_found_before_any_code_runs(tiny_package: Package, workspace: Path, name: str) -> None:
    model = log_model(tiny_package, Interface.CHAT, "damaged", workspace, {})
    damaged(artifacts_of(model) / name)

    with pytest.raises(CheckError, match=f"serves {name} with sha256"):
        restore_model(model.uri, workspace)


def test_what_cannot_be_read_is_refused(tiny_package: Package, workspace: Path) -> None:
    model = log_model(tiny_package, Interface.CHAT, "damaged", workspace, {})
    (artifacts_of(model) / PROVENANCE).unlink()
    (artifacts_of(model) / PROVENANCE).write_text('{"layout": 2}')

    with pytest.raises(CheckError, match=rf"{PROVENANCE} of {model.uri} cannot be read; "):
        restore_model(model.uri, workspace)


def test_a_model_that_slmpack_did_not_log_is_refused(store: Path, workspace: Path) -> None:
    (store / "stranger.py").write_text(
        "import mlflow\n\n\nclass Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n        return model_input\n\n\n"
        "mlflow.models.set_model(Echo())\n"
    )
    info = mlflow.pyfunc.log_model(
        name="stranger", python_model="stranger.py", pip_requirements=[], registered_model_name="stranger"
    )

    for uri in (f"models:/{info.model_id}", "models:/stranger/1"):
        with pytest.raises(CheckError, match=f"{uri} has no {PROVENANCE} beside its MLmodel; a model that slmpack"):
            restore_model(uri, workspace)


@pytest.mark.parametrize("uri", [f"models:/{NO_ID}", "models:/nobody/1", "models:/nobody@cpu-int4"])
def test_a_model_that_does_not_exist_is_told(uri: str, workspace: Path) -> None:
    with pytest.raises(SourceError, match=f"MLflow has no {uri}[ :]"):
        restore_model(uri, workspace)


@pytest.mark.parametrize("uri", ["", "tiny", "models:/tiny", "models:/tiny/latest", "runs:/abc/tiny", "models:/a@b@c"])
def test_what_can_never_name_a_model_is_bad_usage(uri: str, workspace: Path) -> None:
    with pytest.raises(UsageError, match="names no single logged model; models:/NAME/VERSION"):
        restore_model(uri, workspace)


@pytest.mark.parametrize("place", ["checkpoint-500", "Phi-1.5/checkpoint-500", "Phi-1.5"])
def test_a_source_that_was_named_after_the_folder_above_is_found_with_and_without_it(
    tiny_package: Package, tiny_phi3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = tiny_package.snapshot.source.model_copy(update={"name": "phi-1.5"})
    snapshot = tiny_package.snapshot.model_copy(update={"source": source})
    told = provenance_of(tiny_package.model_copy(update={"snapshot": snapshot}), Interface.CHAT, "n", (), "0")
    shutil.copytree(tiny_phi3, tmp_path / place)
    monkeypatch.chdir(tmp_path)

    found = source_here("models:/n/1", told.source, lambda path: resolve_source(str(path)))

    assert (found.location, found.revision) == (str(tmp_path / place), source.revision)
