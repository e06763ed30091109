"""The licence policy in whole runs: what only the files tell ends a run before the build, a base ends a retraining."""

import json
from pathlib import Path

import pytest
from command_line import error_lines, objects, slmpack, versions
from hub_server import HubServer, Repository
from mlflow_database import write_empty_database

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_empty_database(tmp_path / "mlflow.db")
    return tmp_path


def test_a_wheel_whose_licence_is_refused_is_fetched_and_not_built(
    place: Path, workspace: Path, prefect_api: str
) -> None:
    done = slmpack(
        "package", "--refuse-licence", "Apache-2.0", "--json", "--workspace", str(workspace), cwd=place,
        PREFECT_API_URL=prefect_api,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = error_lines(done)
    assert "SmolLM2-135M-Instruct.Q4_1.gguf has the licence apache-2.0; any but Apache-2.0; take another model" in line
    (outcome,) = objects(done)
    assert outcome["status"] == "refused"
    assert versions(place) == []


def test_a_base_whose_licence_is_refused_is_not_downloaded_to_be_retrained(place: Path, prefect_api: str) -> None:
    (place / "base").mkdir()
    (place / "base" / "config.json").write_text("{}")
    (place / "base" / "model.safetensors").write_text("weights")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (place / "chats.jsonl").write_text(json.dumps({"messages": chat}))
    with HubServer({"org/base": Repository(place / "base", card={"license": "cc-by-nc-4.0"})}) as hub:
        done = slmpack(
            "retrain", "hf://org/base", "--data", "chats.jsonl", "--name", "tuned", "--allow-licence", "mit",
            "--workspace", str(place / "w"), cwd=place,
            HF_ENDPOINT=hub.url, HF_HOME=str(place / "hf"), PREFECT_API_URL=prefect_api,
        )  # fmt: skip
        assert hub.downloaded_files() == set()
    assert done.returncode == 1, done.stderr
    (line,) = error_lines(done)
    assert "hf://org/base has the licence cc-by-nc-4.0; one of mit; take another model" in line
    assert versions(place) == []
