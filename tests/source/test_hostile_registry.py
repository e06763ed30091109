"""A registry that strangers write to: names, places and code of a logged model do nothing but be refused."""

import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmpack.errors import SlmpackError, UsageError
from slmpack.log.ask import check_model, load
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.restore import find_logged
from slmpack.publish.watch import find_new_version
from slmpack.records import ModelSource, SourceKind
from slmpack.source.absence import absence_of
from slmpack.source.logged_model import download, pin
from slmpack.source.model_uris import artifact_form, model_form, name_in_uri, registered_form

NAMES = (
    "a$(touch mark)", "a`touch mark`", "a;touch mark", "a\ntouch mark", "../../etc", "%2e%2e%2fetc", "a#b", "a?b=c",
    "..", "a' OR 1=1 --", "\x1b]0;x\x07", "a" * 1_000_000,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[name[:12] for name in NAMES])
def test_a_uri_with_a_hostile_name_is_refused_in_a_line_and_runs_nothing(mlflow_store: Path, name: str) -> None:
    for uri in (f"models:/{name}/1", f"models:/{name}@cpu-int4", f"models:/{name}"):
        for read in (pin, find_logged):
            with pytest.raises(SlmpackError) as caught:
                read(uri)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 10_000
    assert not Path("mark").exists()


@pytest.mark.parametrize("uri", ["models:/a#b/1", "models:/a?b=c@cpu-int4"])
def test_a_uri_whose_name_would_be_cut_is_refused_before_anything_is_imported(uri: str) -> None:
    for look in (check_model, load):
        with pytest.raises(UsageError, match="names no single model; "):
            look(uri)
    with pytest.raises(UsageError, match="names no data in MLflow; "):
        is_artifact(f"{uri}/chats.jsonl")
    assert absence_of(uri) is None
    assert (model_form(uri), registered_form(uri), name_in_uri(uri)) == (None, None, None)


def test_each_form_of_a_uri_says_what_it_names() -> None:
    one = f"models:/m-{'0' * 32}"
    assert [name_in_uri(f"models:/{rest}") for rest in ("a/1", "a@b", "a/latest", "a/1/b")] == ["a", "a", "a", None]
    assert (name_in_uri(one), registered_form(one)) == (None, None)
    logged = model_form(one)
    assert logged is not None
    assert logged["id"] == one.removeprefix("models:/")
    file = artifact_form("models:/a/2/chats/b.jsonl")
    assert file is not None
    assert (file["name"], file["version"], file["alias"]) == ("a", "2", None)


def test_a_version_that_lies_in_a_folder_of_the_system_is_no_source(mlflow_store: Path) -> None:
    client = MlflowClient()
    client.create_registered_model("evil")
    with pytest.raises(MlflowException, match="Prompts cannot be registered as models"):
        client.create_model_version("evil", "file:///etc/", tags={"mlflow.prompt.is_prompt": "true"})
    client.create_model_version("evil", "file:///etc/")
    client.set_model_version_tag("evil", "1", "mlflow.prompt.is_prompt", "true")  # which the server takes afterwards
    assert find_new_version("evil") is None


MLMODEL = """
flavors:
  python_function: {loader_module: evil, code: code, python_model: model.pkl}
  transformers: {model_binary: model, task: text-generation, code: code}
"""


@pytest.fixture
def logged(mlflow_store: Path) -> str:
    """A run's model whose MLmodel names a loader in its folder of code."""
    client = MlflowClient()
    run = client.create_run(client.create_experiment("strangers")).info.run_id
    mark = mlflow_store / "mark"
    for name, text in {
        "MLmodel": MLMODEL, "code/evil.py": f"open({str(mark)!r}, 'w')", "model/config.json": "{}",
        "model/modeling_evil.py": f"open({str(mark)!r}, 'w')", "components/tokenizer/tokenizer.json": "{}",
    }.items():  # fmt: skip
        client.log_text(run, text, f"tuned/{name}")
    return f"runs:/{run}/tuned"


def test_of_a_source_with_code_of_its_own_only_the_checkpoint_is_taken(logged: str, mlflow_store: Path) -> None:
    pinned = pin(logged)
    source = ModelSource(
        text=logged, kind=SourceKind.MLFLOW, location=pinned.location, revision=pinned.revision, name="tuned"
    )
    assert download(source, mlflow_store / "into").keys() == {"config.json", "tokenizer.json"}
    assert "evil" not in sys.modules
    assert not (mlflow_store / "mark").exists()
