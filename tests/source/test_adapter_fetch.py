"""Adapters as sources: found in a folder or on the Hub, pinned with their base, merged, built and published."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapters import distance, edit_config, logits_of_folder, write_adapter
from hub_server import HubServer, Repository
from hub_user import HubUser, running_hub_user
from made_proofs import publish
from mlflow import MlflowClient

from slmpack.build.build import build_package
from slmpack.errors import CheckError, SourceError
from slmpack.log.log import log_model
from slmpack.log.origin import locate_snapshot
from slmpack.log.provenance import Provenance, provenance_of, source_of
from slmpack.log.tags import facts_in
from slmpack.prove.parity.cache import known_parity
from slmpack.records import Interface, ModelSource, Recipe, Snapshot, SourceKind, Target
from slmpack.source.fetch import fetch_snapshot, snapshot_key
from slmpack.source.resolve import resolve_source

pytestmark = pytest.mark.slow

LORA: dict[str, Any] = {"target_modules": ["qkv_proj", "down_proj"]}
BFLOAT16 = 0.03  # how far logits are when weights in bfloat16 are rounded once more


@pytest.fixture(scope="module")
def folders(small_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a Phi-3 in bfloat16, and `My-Adapter`, a LoRA of it, side by side; `expected.pt`, what both say."""
    import torch

    folder = tmp_path_factory.mktemp("adapters")
    shutil.copytree(small_phi3, folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    expected = write_adapter(folder / "My-Adapter", folder / "base", named="../base", **LORA)
    (folder / "My-Adapter" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: /home/me/base\n---\n")
    torch.save(expected, folder / "expected.pt")
    return folder


@pytest.fixture
def here(folders: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(folders, tmp_path / "here")


@pytest.fixture(scope="module")
def merged(folders: Path, workspace: Path) -> Snapshot:
    return fetch_snapshot(resolve_source(str(folders / "My-Adapter"), workspace), workspace)


def test_a_folders_adapter_is_merged_into_the_base_beside_it(merged: Snapshot, folders: Path) -> None:
    import torch

    source = merged.source
    assert (source.kind, source.name, source.location) == (SourceKind.FOLDER, "my-adapter", str(folders / "My-Adapter"))
    assert source.base is not None
    assert source.base == resolve_source(str(folders / "base"))
    assert distance(logits_of_folder(merged.path), torch.load(folders / "expected.pt")) < BFLOAT16
    names = {file.name for file in merged.files}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert not {"adapter_config.json", "adapter_model.safetensors", "README.md"} & names
    assert (merged.architecture, merged.dtype, merged.licence) == ("Phi3ForCausalLM", "BF16", "apache-2.0 and mit")


def test_the_same_adapter_is_found_again_and_another_is_merged_anew(
    merged: Snapshot, here: Path, workspace: Path
) -> None:
    again = resolve_source(str(here / "My-Adapter"))
    assert fetch_snapshot(again, workspace).path == merged.path
    edit_config(here / "My-Adapter", lora_alpha=9)
    other = resolve_source(str(here / "My-Adapter"))
    assert (other.revision == again.revision, other.base == again.base) == (False, True)
    (here / "base" / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    on_another_base = resolve_source(str(here / "My-Adapter"))
    assert on_another_base.revision == other.revision
    assert len({snapshot_key(source) for source in (again, other, on_another_base)}) == 3


def test_a_base_that_changes_after_it_was_resolved_is_noticed(here: Path, tmp_path: Path) -> None:
    source = resolve_source(str(here / "My-Adapter"))
    (here / "base" / "generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(SourceError, match="base changed while it was read"):
        fetch_snapshot(source, tmp_path / "workspace")
    assert list((tmp_path / "workspace" / "scratch").iterdir()) == []


def test_an_adapter_beside_its_base_is_merged_into_it(
    merged: Snapshot, here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = here / "both"
    shutil.copytree(here / "base", both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(here / "My-Adapter" / name, both / name)
    edit_config(both, base_model_name_or_path="/somewhere/else")
    with caplog.at_level("WARNING"):
        source = resolve_source(str(both), tmp_path)
    assert "an adapter beside a whole model, which it is merged into" in caplog.text
    assert source.base is not None
    assert (source.base.location, source.base.revision) == (str(both), resolve_source(str(here / "base")).revision)
    assert source.revision != source.base.revision
    assert resolve_source(str(both), tmp_path) == source
    snapshot = fetch_snapshot(source, tmp_path / "workspace")
    weights = {file.name: file.sha256 for file in merged.files}["model.safetensors"]
    assert {file.name: file.sha256 for file in snapshot.files}["model.safetensors"] == weights
    assert snapshot.base_template == (both / "chat_template.jinja").read_text()


@pytest.mark.parametrize("base", [
    "..", "../../../../../../../../../..", "/proc", "/dev", "/etc/passwd", "~", "~nobody/base", "x" * 5000, "a\0b",
    "\ud800", ".", "../My-Adapter",
], ids=lambda base: ascii(base[:30]))  # fmt: skip
def test_a_base_named_by_a_path_that_is_no_model_is_refused_in_a_line(here: Path, base: str) -> None:
    edit_config(here / "My-Adapter", base_model_name_or_path=base)
    with pytest.raises(SourceError) as told:
        resolve_source(str(here / "My-Adapter"))
    assert "My-Adapter" in str(told.value)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 5000


def test_nothing_beside_a_planted_base_gets_into_the_snapshot(here: Path, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("the key")
    (here / "base" / "LICENSE").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(SourceError, match=r"^the base of .*LICENSE leads to .*id_rsa; a file in "):
        resolve_source(str(here / "My-Adapter"))
    (here / "base" / "LICENSE").unlink()
    (here / "base" / "secrets.env").write_text("the key")
    snapshot = fetch_snapshot(resolve_source(str(here / "My-Adapter")), tmp_path / "workspace")
    assert not [path for path in snapshot.path.rglob("*") if b"the key" in path.read_bytes()[:100]]


def test_a_base_needs_no_tokenizer_if_the_adapter_has_one(here: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (here / "base" / name).rename(here / "My-Adapter" / name)
    snapshot = fetch_snapshot(resolve_source(str(here / "My-Adapter")), tmp_path)
    assert {"tokenizer.json", "chat_template.jinja"} <= {file.name for file in snapshot.files}


def test_a_base_without_a_chat_template_is_refused_before_it_is_merged(here: Path, tmp_path: Path) -> None:
    (here / "base" / "chat_template.jinja").unlink()
    with pytest.raises(SourceError, match=r"My-Adapter has no chat template; one in"):
        fetch_snapshot(resolve_source(str(here / "My-Adapter")), tmp_path)
    assert not list((tmp_path / "logs").glob("merge-*"))


# ---------------------------------------------------------------------------------------------- the Hub


@pytest.fixture(scope="module")
def hub_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUser]:
    with running_hub_user(tmp_path_factory.mktemp("hub-user")) as user:
        yield user


@pytest.fixture
def user(hub_user: HubUser, here: Path, tmp_path: Path) -> HubUser:
    edit_config(here / "My-Adapter", base_model_name_or_path="org/base", revision="v1")
    (here / "My-Adapter" / "optimizer.pt").write_bytes(b"nobody asked for this")
    hub_user.begin(tmp_path / "workspace")
    hub_user.hub.begin({
        "org/My-Adapter": Repository(here / "My-Adapter", commit="ad" * 20, card={"license": "apache-2.0"}),
        "org/base": Repository(here / "base", commit="ba5e" * 10, branches=("main", "v1"), card={"license": "mit"}),
    })  # fmt: skip
    return hub_user


@pytest.fixture
def hub(user: HubUser) -> HubServer:
    return user.hub


def test_an_adapter_on_the_hub_and_its_base_are_pinned_to_commits(user: HubUser, hub: HubServer, here: Path) -> None:
    told = user.fetch("hf://org/My-Adapter")
    source = ModelSource.model_validate(told["source"])
    assert (source.revision, source.name, source.licence) == ("ad" * 20, "my-adapter", "apache-2.0")
    assert source.base is not None
    assert source.base.model_dump(include={"kind", "text", "location", "revision"}) == {
        "kind": SourceKind.HUB, "text": "hf://org/base@v1", "location": "org/base", "revision": "ba5e" * 10,
    }  # fmt: skip
    snapshot = Snapshot.model_validate(told["snapshot"])
    import torch

    assert distance(logits_of_folder(snapshot.path), torch.load(here / "expected.pt")) < BFLOAT16
    assert snapshot.licence == "apache-2.0 and mit"
    assert {"adapter_model.safetensors", "model.safetensors"} <= hub.downloaded_files()
    assert "optimizer.pt" not in hub.downloaded_files()

    before = len(hub.requests)
    anew = user.fetch("hf://org/My-Adapter", SLMPACK_TEST="a new process, which remembers nothing")
    assert anew["snapshot"]["path"] == str(snapshot.path)
    asked = {request.path for request in hub.requests[before:]}
    assert asked == {"/api/models/org/My-Adapter/revision/main", "/api/models/org/base/revision/v1"}
    offline = user.fetch("hf://org/My-Adapter", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline["snapshot"]["path"] == str(snapshot.path)

    hub.repositories["org/base"] = replace(hub.repositories["org/base"], commit="d00d" * 10)
    moved = ModelSource.model_validate(user.resolve("hf://org/My-Adapter")["source"])
    assert moved.revision == source.revision
    assert moved.base is not None
    assert moved.base.revision == "d00d" * 10
    assert snapshot_key(moved) != snapshot_key(source)


def test_an_adapter_beside_its_base_on_the_hub_needs_no_other_repository(
    user: HubUser, hub: HubServer, here: Path
) -> None:
    both = shutil.copytree(here / "base", here / "both")
    shutil.copytree(here / "My-Adapter", both, dirs_exist_ok=True)
    hub.repositories = {"org/both": Repository(both)}
    source = ModelSource.model_validate(user.resolve("hf://org/both")["source"])
    assert source.base is not None
    assert (source.base.location, source.base.revision) == (source.location, source.revision)


def test_a_local_adapter_may_name_a_base_on_the_hub(user: HubUser, here: Path) -> None:
    edit_config(here / "My-Adapter", revision=None)
    source = ModelSource.model_validate(user.resolve(str(here / "My-Adapter"))["source"])
    assert source.kind is SourceKind.FOLDER
    assert source.base is not None
    assert (source.base.text, source.base.revision) == ("hf://org/base", "ba5e" * 10)


def refused(user: HubUser, hub: HubServer, text: str = "hf://org/My-Adapter") -> str:
    kind, line = user.resolve(text)["ours"]
    assert kind == "SourceError"
    assert "\n" not in line
    assert not [request for request in hub.downloads() if request.path.endswith((".safetensors", ".bin"))]
    return str(line)


def test_says_what_is_wrong_with_the_base_before_weights_are_downloaded(
    user: HubUser, hub: HubServer, here: Path
) -> None:
    adapter = here / "My-Adapter"
    edit_config(adapter, revision="v9")
    assert "the base of hf://org/My-Adapter: org/base has no revision v9; a branch" in refused(user, hub)
    shutil.rmtree(user.home)
    edit_config(adapter, base_model_name_or_path="org/nothing")
    assert "the base of hf://org/My-Adapter: the Hub shows no repository org/nothing" in refused(user, hub)
    shutil.rmtree(user.home)
    edit_config(adapter, base_model_name_or_path=str(here / "base"))  # of whoever trained it, not of this machine
    assert f"hf://org/My-Adapter was trained on {here / 'base'}, which is not here" in refused(user, hub)
    shutil.rmtree(user.home)
    edit_config(adapter, base_model_name_or_path="org/My-Adapter", revision=None)
    assert "hf://org/My-Adapter is an adapter itself; a whole model" in refused(user, hub)
    shutil.rmtree(user.home)
    edit_config(adapter, base_model_name_or_path="org/base")
    edit = json.loads((here / "base" / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (here / "base" / "config.json").write_text(json.dumps(edit))
    assert "hf://org/base is quantised by gptq; a model in floats" in refused(user, hub)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "hf://org/My-Adapter has its weights as a pickle (adapter_model.bin)" in refused(user, hub)


# ---------------------------------------------------------------------------------------------- what travels


def describe_outcome(snapshot: Snapshot, workspace: Path) -> Provenance:
    package = build_package(snapshot, Target.TRANSFORMERS, None, workspace)
    return Provenance.model_validate_json(
        provenance_of(package, Interface.CHAT, "my-adapter", (), "digest").model_dump_json()
    )


def test_the_base_travels_without_a_path_and_older_records_still_read(merged: Snapshot, workspace: Path) -> None:
    told = describe_outcome(merged, workspace)
    assert str(Path(merged.source.location).parent) not in told.model_dump_json()
    base = source_of(told).base
    assert base is not None
    assert merged.source.base is not None
    assert (base.name, base.location, base.revision) == ("base", "base", merged.source.base.revision)
    older = told.model_dump(mode="json")
    del older["source"]["base"]
    assert source_of(Provenance.model_validate(older)).base is None


def test_elsewhere_it_is_merged_again_from_folders_of_those_names(
    merged: Snapshot, workspace: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = describe_outcome(merged, workspace)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (here / "My-Adapter").rename(elsewhere / "My-Adapter")  # `../base` is not there
    with pytest.raises(CheckError, match=r"made from the folder base, which is not here"):
        locate_snapshot("models:/x", told, tmp_path / "workspace")
    (here / "base").rename(elsewhere / "base")
    assert locate_snapshot("models:/x", told, tmp_path / "workspace").is_relative_to(tmp_path)


def test_a_merged_adapter_is_built_proved_and_published_with_its_base(
    merged: Snapshot, workspace: Path, store: Path, name: str
) -> None:
    package = build_package(merged, Target.CPU_INT4, Recipe.SMALL, workspace)
    assert [check.name for check in known_parity(package, workspace)][-2:] == ["decoding", "without the wrapper"]
    model = log_model(package, Interface.CHAT, name, workspace, {})
    publish(model)
    tags = MlflowClient().get_model_version(name, "1").tags
    assert merged.source.base is not None
    assert (tags["slmpack.source"], tags["slmpack.base"]) == ("my-adapter", "base")
    assert facts_in(tags)["base_revision"] == merged.source.base.revision
    parameters = MlflowClient().get_run(model.run_id).data.params
    assert (parameters["base"], parameters["base_revision"]) == ("base", merged.source.base.revision)
