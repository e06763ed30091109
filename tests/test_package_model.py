"""The flows, run by a real Prefect server."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_mute_phi3, write_tiny_gpt2
from mlflow import MlflowClient
from prefect.client.orchestration import get_client

from flows.package_model import package_model
from flows.package_targets import package_targets
from slmpack.errors import SmokeError, SourceError
from slmpack.records import Interface, Outcome, Snapshot, Target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}


def test_publishes_both_interfaces_side_by_side_and_not_twice(
    tiny_phi3: Path, mlflow_store: Path, workspace: Path
) -> None:
    chat = package_model(str(tiny_phi3), workspace=workspace)
    prompt = package_model(str(tiny_phi3), interface=Interface.PROMPT, workspace=workspace)
    again = package_model(str(tiny_phi3), workspace=workspace)
    assert [chat.status, prompt.status, again.status] == ["published", "published", "unchanged"]
    assert aliases("tiny-phi3") == {"cpu-int4": "1", "cpu-int4-prompt": "2"}
    assert (again.version, again.digest) == (chat.version, chat.digest)


def test_force_makes_a_new_version_of_the_same(tiny_phi3: Path, mlflow_store: Path, workspace: Path) -> None:
    package_model(str(tiny_phi3), workspace=workspace)
    forced = package_model(str(tiny_phi3), force=True, workspace=workspace)
    assert (forced.status, forced.version) == ("published", 2)
    assert aliases("tiny-phi3") == {"cpu-int4": "2"}


def test_publishes_nothing_unproved(
    tiny_phi3: Path, smollm2: Snapshot, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    package_model(str(tiny_phi3), name="talks", workspace=workspace)
    write_mute_phi3(tmp_path / "mute", tokenizer=smollm2.path)
    with pytest.raises(SmokeError, match="the answer ''; some text"):
        package_model(str(tmp_path / "mute"), name="talks", workspace=workspace)
    assert aliases("talks") == {"cpu-int4": "1"}
    client = MlflowClient()
    assert len(client.search_model_versions("name = 'talks'")) == 1
    experiment = client.get_experiment_by_name("slmpack")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_a_failed_target_does_not_stop_the_others_and_fails_the_run(
    smollm2: Snapshot, mlflow_store: Path, workspace: Path, tmp_path: Path
) -> None:
    write_tiny_gpt2(tmp_path / "gpt2-like", tokenizer=smollm2.path)
    targets = [Target.CPU_INT4, Target.TRANSFORMERS]
    state: Any = package_targets(str(tmp_path / "gpt2-like"), targets, workspace=workspace, return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith("1 of 2 published; cpu-int4: architecture GPT2LMHeadModel")
    outcomes: list[Outcome] = state.result(raise_on_failure=False)
    assert [outcome.status for outcome in outcomes] == ["failed", "published"]


def test_our_own_errors_are_not_retried(mlflow_store: Path, workspace: Path) -> None:
    with pytest.raises(SourceError):
        package_model(str(mlflow_store / "nowhere"), workspace=workspace)
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs()
    resolves = [run for run in runs if run.name == f"resolve {mlflow_store / 'nowhere'}"]
    assert [run.run_count for run in resolves] == [1]
