"""Chat data in MLflow: an artifact becomes a path, and a run says what it learnt from."""

import json
import socket
from pathlib import Path

import mlflow
import pytest
from chat_lines import lines, written
from mlflow import MlflowClient
from mlflow.entities import DatasetInput
from mlflow_server import used_mlflow_server

from slmpack.chats.dataset import ChatData, DataPolicy, check_chats
from slmpack.errors import DataError, PublishError, UsageError
from slmpack.log.chat_artifacts import DIGEST_CHARACTERS, fetch_data, is_artifact, log_chat_dataset

NO_RUN = "0" * 32


@pytest.fixture(scope="module")
def run_id(store: Path) -> str:
    """A run with chats.jsonl, and with two more files of chats in data/."""
    client = MlflowClient()
    run_id = str(client.create_run(client.create_experiment("chats")).info.run_id)
    return with_chats(run_id, store)


def with_chats(run_id: str, folder: Path) -> str:
    client = MlflowClient()
    client.log_artifact(run_id, str(written(folder / "chats.jsonl", lines(40))))
    for name, chats in {"a.jsonl": lines(20), "b.jsonl": lines(20, start=20)}.items():
        client.log_artifact(run_id, str(written(folder / name, chats)), "data")
    return run_id


def data_at(path: Path, share: float = 0.5) -> ChatData:
    return check_chats(path, policy=DataPolicy(held_out_share=share))


def inputs_of(run_id: str) -> list[DatasetInput]:
    inputs = MlflowClient().get_run(run_id).inputs
    assert inputs is not None
    return inputs.dataset_inputs


def test_a_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch_data("chats.jsonl", tmp_path / "into") == tmp_path / "chats.jsonl"
    assert fetch_data("~/chats", tmp_path / "into") == Path.home() / "chats"
    assert not (tmp_path / "into").exists()


@pytest.mark.slow
def test_an_artifact_of_a_run_is_downloaded(run_id: str, tmp_path: Path) -> None:
    file = fetch_data(f"runs:/{run_id}/chats.jsonl", tmp_path)
    folder = fetch_data(f"runs:/{run_id}/data", tmp_path)
    (folder / "stale.jsonl").write_text("oops\n")

    assert file.is_relative_to(tmp_path)
    assert data_at(file).digest == data_at(fetch_data(f"runs:/{run_id}/data", tmp_path)).digest


@pytest.mark.slow
def test_an_artifact_of_a_server_and_of_a_version_is_downloaded(store: Path, tmp_path: Path) -> None:
    with used_mlflow_server(tmp_path):
        client = MlflowClient()
        run = client.create_run("0").info
        with_chats(run.run_id, tmp_path)
        client.create_registered_model("town")
        client.create_model_version("town", f"runs:/{run.run_id}/data", run.run_id)
        of_server = fetch_data(f"{run.artifact_uri}/chats.jsonl", tmp_path / "into")
        of_version = fetch_data("models:/town/1/a.jsonl", tmp_path / "into")
        with pytest.raises(DataError, match=r"MLflow has no mlflow-artifacts:/nowhere/chats\.jsonl; a path, runs:/"):
            fetch_data("mlflow-artifacts:/nowhere/chats.jsonl", tmp_path / "into")
    assert (data_at(of_server).chats, data_at(of_version).chats) == (40, 20)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/chats.jsonl",
        "https://example.org/chats.jsonl",
        "hf://owner/chats",
        f"runs:/{NO_RUN}",
        f"runs:/{NO_RUN}/",
        "runs:/mine/chats.jsonl",
        "models:/town",
        "models:/town/1",
        f"models:/m-{NO_RUN}/1/chats.jsonl",
        "mlflow-artifacts:/",
        "mlflow-artifacts:/1",
    ],
)
def test_a_uri_that_names_no_data_is_refused_before_anything_is_asked(text: str) -> None:
    with pytest.raises(UsageError, match="names no data in MLflow; a path, runs:/RUN_ID/PATH"):
        is_artifact(text)


@pytest.mark.slow
def test_an_artifact_that_is_not_there_is_told_in_one_line(run_id: str, tmp_path: Path) -> None:
    for text, reason in (
        (f"runs:/{run_id}/nowhere.jsonl", "Failed to download artifacts from path 'nowhere.jsonl'"),
        (f"runs:/{NO_RUN}/chats.jsonl", f"Run with id={NO_RUN} not found"),
        ("models:/nothing/1/chats.jsonl", "Registered Model with name=nothing not found"),
        ("mlflow-artifacts:/chats.jsonl", "is on an MLflow server; the address of one; set MLFLOW_TRACKING_URI"),
    ):
        with pytest.raises(DataError, match=reason) as refused:
            fetch_data(text, tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_run_shows_what_it_learnt_from_and_what_it_was_measured_by(store: Path, run_id: str, tmp_path: Path) -> None:
    data = data_at(written(tmp_path / "chats.jsonl", [*lines(60), *lines(3), "oops"]))

    log_chat_dataset(run_id, data, "town")
    log_chat_dataset(run_id, data, "town")  # adds nothing

    inputs = inputs_of(run_id)
    assert len(inputs) == 2
    tags = [{tag.key: tag.value for tag in each.tags} for each in inputs]
    told = {tag["mlflow.data.context"]: each.dataset for tag, each in zip(tags, inputs, strict=True)}
    assert {context: dataset.digest for context, dataset in told.items()} == {
        "training": data.training_digest[:DIGEST_CHARACTERS],
        "held-out": data.held_out_digest[:DIGEST_CHARACTERS],
    }
    for dataset, rows in ((told["training"], data.training), (told["held-out"], data.held_out)):
        profile = json.loads(str(dataset.profile))
        assert (dataset.name, dataset.source) == ("town", '{"uri": "chats.jsonl"}')
        assert profile["num_rows"] == rows
        assert (profile["lines"], profile["bad"], profile["duplicates"]) == (64, 1, 3)
        assert (profile["training"], profile["held_out"]) == (data.training, data.held_out)
        assert mlflow.data.get_source(dataset).to_dict() == {"uri": "chats.jsonl"}
        for private in (str(tmp_path), str(Path.home()), socket.gethostname()):
            assert private not in json.dumps(dict(dataset))
    assert {tag["slmpack.data_digest"] for tag in tags} == {data.digest}
    assert {(tag["slmpack.bad"], tag["slmpack.duplicates"]) for tag in tags} == {("1", "3")}


@pytest.mark.slow
def test_the_same_chats_are_the_same_dataset_and_what_differs_is_the_runs_own(
    store: Path, run_id: str, tmp_path: Path
) -> None:
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    found = []
    for name, chats in (("one", lines(70)), ("two", [*lines(70)[::-1], "oops"])):
        run = MlflowClient().create_run(experiment).info.run_id
        log_chat_dataset(
            run, data_at(written(tmp_path / f"{name}.jsonl", chats)), "grown", f"runs:/{run_id}/{name}.jsonl"
        )
        found.append(inputs_of(run))
    one, two = ({each.dataset.digest: {tag.key: tag.value for tag in each.tags} for each in run} for run in found)
    assert one.keys() == two.keys()
    assert {tags["slmpack.bad"] for tags in one.values()} == {"0"}
    assert {tags["slmpack.bad"] for tags in two.values()} == {"1"}


@pytest.mark.slow
def test_a_run_that_does_not_exist_is_told(store: Path, tmp_path: Path) -> None:
    data = data_at(written(tmp_path / "chats.jsonl", lines(40)))
    with pytest.raises(PublishError, match=f"MLflow refused to log the data set town: Run with id={NO_RUN} not found"):
        log_chat_dataset(NO_RUN, data, "town")
