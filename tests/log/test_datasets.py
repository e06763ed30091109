"""Chats that MLflow knows by name: the newest dataset is found, and what it is can be read, or is told in one line."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from chat_lines import lines, written
from logged_chats import log_chats
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Dataset, DatasetInput
from mlflow_server import used_mlflow_server

from slmpack.chats.dataset import DataPolicy, check_chats
from slmpack.errors import DataError, UsageError
from slmpack.log.chat_artifacts import fetch_data, log_chat_dataset
from slmpack.log.datasets import FoundData, find_data
from slmpack.retrain.data import look_at_data

HALF = DataPolicy(held_out_share=0.5)


def log_source(name: str, source: Any, kind: str = "local", digest: str = "1") -> str:
    """Log an input with that source, as MLflow's own datasets or other programs write it."""
    client = MlflowClient()
    run_id = str(client.create_run("0").info.run_id)
    told = source if isinstance(source, str) else json.dumps(source)
    client.log_inputs(run_id, [DatasetInput(Dataset(name, digest, kind, told))])
    return run_id


def test_what_is_no_name_is_left_as_it_is() -> None:
    for text in ("chats.jsonl", "runs:/mine/chats.jsonl", "s3://bucket/x", "datasets"):
        assert find_data(text) == FoundData(text=text)


@pytest.mark.parametrize("name", ["", " ", "it's", 'a"b', "a\nb", "a\\b", " town"])
def test_a_name_that_no_search_takes_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="names no dataset; datasets:/NAME, without quotes; correct the name"):
        find_data(f"datasets:/{name}")


@pytest.mark.slow
def test_the_newest_dataset_of_a_name_is_found_in_any_experiment(store: Path, name: str, tmp_path: Path) -> None:
    old, new = written(tmp_path / "old.jsonl", lines(40)), written(tmp_path / "new.jsonl", lines(60))
    first = log_chats(old, name)
    assert find_data(f"datasets:/{name}").text == f"runs:/{first}/old.jsonl"
    experiment = MlflowClient().create_experiment(name)
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifact(str(new))
        dataset = from_pandas(pd.read_json(new, lines=True), source=str(new), name=name)
        mlflow.log_input(dataset, context="training")
        mlflow.log_input(from_pandas(pd.DataFrame({"x": [1]}), name=f"{name} of others"))

    found = find_data(f"datasets:/{name}")

    assert found == FoundData(text=f"runs:/{run.info.run_id}/new.jsonl", name=name, digest=dataset.digest)
    data = look_at_data(found, HALF, tmp_path)
    assert (data.name, data.chats, data.digest) == (name, 60, check_chats(new, policy=HALF).digest)
    assert check_chats(fetch_data(f"datasets:/{name}", tmp_path), policy=HALF).digest == data.digest


@pytest.mark.slow
def test_what_a_retraining_learnt_from_is_no_news(store: Path, name: str, tmp_path: Path) -> None:
    logged = log_chats(file := written(tmp_path / "chats.jsonl", lines(40)), name)
    for _ in range(3):
        run = MlflowClient().create_run("0").info.run_id
        log_chat_dataset(run, check_chats(file, policy=HALF), name, f"runs:/{logged}/nowhere.jsonl")
    assert find_data(f"datasets:/{name}").text == f"runs:/{logged}/chats.jsonl"


@pytest.mark.slow
def test_a_source_is_an_artifact_or_a_file_that_is_here(store: Path, name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "our chats.jsonl", lines(40))
    logged = log_chats(file, f"{name} logged")
    for number, (source, told) in enumerate(
        {
            str(file): str(file),
            file.as_uri(): str(file),
            f"runs:/{logged}/our chats.jsonl": f"runs:/{logged}/our chats.jsonl",
            "mlflow-artifacts:/1/chats.jsonl": "mlflow-artifacts:/1/chats.jsonl",
        }.items()
    ):
        log_source(f"{name} {number}", {"uri": source})
        assert find_data(f"datasets:/{name} {number}").text == told
    log_chats(file, f"{name} as uri", source=file.as_uri(), artifact=False)
    assert find_data(f"datasets:/{name} as uri").text == str(file)


@pytest.mark.slow
def test_a_dataset_that_cannot_be_read_is_told_in_one_line(store: Path, name: str, tmp_path: Path) -> None:
    gone = log_chats(file := written(tmp_path / "chats.jsonl", lines(40)), f"{name} gone", artifact=False)
    file.unlink()
    frame = pd.DataFrame({"x": [1]})
    with mlflow.start_run() as two:
        for rows in (frame, pd.DataFrame({"x": [2]})):
            mlflow.log_input(from_pandas(rows, name=f"{name} two"))
    with mlflow.start_run():
        mlflow.log_input(from_pandas(frame, name=f"{name} bare"))
    log_source(f"{name} web", {"url": "https://example.org/chats.jsonl"}, "http")
    log_source(f"{name} damaged", "{oops")
    deleted = log_chats(written(tmp_path / "more.jsonl", lines(40)), f"{name} deleted")
    MlflowClient().delete_run(deleted)
    for rest, reason in {
        "": "no run in MLflow has a dataset .* for its input; one that was logged with mlflow.log_input; check the",
        " gone": f"of run {gone} is {file}, which is not here; an artifact in MLflow, or a file of this machine; name",
        " two": f"run {two.info.run_id} has 2 datasets of the name {name} two; one; log them under names of their own",
        " bare": "has a source of type code; a file or an artifact in MLflow; name the file as its source, and log it",
        " web": "has a source of type http",
        " damaged": "has a source of type local",
        " deleted": "no run in MLflow has a dataset",
    }.items():
        with pytest.raises(DataError, match=reason) as refused:
            find_data(f"datasets:/{name}{rest}")
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_dataset_of_a_server_is_its_runs_artifact(store: Path, name: str, tmp_path: Path) -> None:
    with used_mlflow_server(tmp_path):
        log_chats(file := written(tmp_path / "chats.jsonl", lines(40)), name)
        file.unlink()  # another machine logged it
        data = look_at_data(find_data(f"datasets:/{name}"), HALF, tmp_path)
        log_source(f"{name} gone", {"uri": "mlflow-artifacts:/0/gone.jsonl"})
        with pytest.raises(DataError, match=r"MLflow has no mlflow-artifacts:/0/gone\.jsonl"):
            look_at_data(find_data(f"datasets:/{name} gone"), HALF, tmp_path)
    assert (data.name, data.chats) == (name, 40)
