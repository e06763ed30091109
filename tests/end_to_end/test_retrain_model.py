"""Retraining: chats in, a better model out and on to its target, or nothing moves."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from command_line import objects, slmpack
from invented_town import chats, shuffled_chats
from mlflow import MlflowClient
from mlflow_database import write_empty_database

from flows.package_model import package_model
from flows.retrain_model import retrain_model
from slmpack.chats.dataset import DataPolicy
from slmpack.errors import DataError, QualityError, TrustError, UsageError
from slmpack.log.tags import SIGNED_BY, facts_in
from slmpack.publish.bom.log_bom import read_bom
from slmpack.publish.options import PackageOptions
from slmpack.records import Target
from slmpack.reports import QualityPolicy
from slmpack.retrain.evaluate import Perplexities, RetrainOutcome, RetrainPolicy, TunedFigures, judge_tuned
from slmpack.retrain.training.settings import TrainSettings
from slmpack.signing.keys import new_key
from slmpack.signing.policy import VARIABLE
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source

FAST = TrainSettings(epochs=2, rank=8, learning_rate=5e-3, batch_size=16, max_length=128)
EASY = RetrainPolicy(min_gain=0.02, max_forgetting=100.0)


def figures(held_out: float, general: float) -> TunedFigures:
    return TunedFigures(
        held_out=Perplexities(base=20.0, in_use=10.0, tuned=held_out),
        general=Perplexities(base=30.0, in_use=30.0, tuned=general),
    )


def test_what_is_better_and_has_not_forgotten_passes() -> None:
    judge_tuned(figures(9.79, 37.4), RetrainPolicy(min_gain=0.02, max_forgetting=0.25))


@pytest.mark.parametrize(
    ("held_out", "general", "told"),
    [
        (9.9, 30.0, r"a held-out perplexity of 9\.900, 0\.990 times that in use; at most 0\.980 times 10\.00; nothing"),
        (15.0, 30.0, r"a held-out perplexity of 15\.00, 1\.500 times that in use"),
        (5.0, 40.0, r"a general perplexity of 40\.00, 1\.333 times that in use; at most 1\.250 times 30\.00; nothing"),
    ],
)
def test_what_is_not_better_or_has_forgotten_too_much_is_refused(held_out: float, general: float, told: str) -> None:
    with pytest.raises(QualityError, match=told):
        judge_tuned(figures(held_out, general), RetrainPolicy(min_gain=0.02, max_forgetting=0.25))


def test_options_are_checked_before_anything_starts(tmp_path: Path) -> None:
    for option, told in (("--epochs=0", "--epochs 0; greater than 0"), ("--min-gain=2", "--min-gain 2; less than 1")):
        done = slmpack("retrain", "--data", "x.jsonl", option, cwd=tmp_path)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "town.jsonl", chats())


WAIVED = PackageOptions(waive_quality="random weights, for a test")
STRICT = QualityPolicy(max_perplexity_ratio=1.0, max_chat_perplexity_ratio=1.0)


def retrain(data: Path, base: Path, workspace: Path, **asked: Any) -> RetrainOutcome:
    settings = {"training": FAST, "retrain_policy": EASY, "options": WAIVED} | asked
    state: Any = retrain_model(str(data), str(base), "town", workspace=workspace, **settings, return_state=True)
    found = state.result(raise_on_failure=False)
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, RetrainOutcome)
    return found


def aliases() -> dict[str, int]:
    return {alias: int(version) for alias, version in MlflowClient().get_registered_model("town").aliases.items()}


@pytest.fixture(scope="module")
def first(store: Path, data: Path, town_phi3: Path, workspace: Path, prefect_api: str) -> RetrainOutcome:
    return retrain(data, town_phi3, workspace)


@pytest.mark.slow
def test_a_better_model_is_registered_and_packaged(first: RetrainOutcome, data: Path) -> None:
    assert (first.status, first.name, first.version, first.reason) == ("published", "town", 1, None)
    assert first.figures is not None
    assert first.figures.held_out.tuned < 0.9 * first.figures.held_out.base
    assert first.figures.held_out.base == first.figures.held_out.in_use
    assert [(each.status, each.version, each.alias) for each in first.targets] == [("published", 2, "cpu-int4")]
    assert aliases() == {"tuned": 1, "cpu-int4": 2}


@pytest.mark.slow
def test_the_way_from_the_data_to_the_alias_is_on_record(first: RetrainOutcome, data: Path) -> None:
    client = MlflowClient()
    version = client.get_model_version("town", "1")
    run = client.get_run(str(version.run_id))
    assert run.inputs is not None
    inputs = {
        next(tag.value for tag in each.tags if tag.key == "mlflow.data.context"): each.dataset
        for each in run.inputs.dataset_inputs
    }
    assert inputs.keys() == {"training", "held-out"}
    assert inputs["training"].name == "town.jsonl"
    assert version.tags["slmpack.parent"] == "town-phi3"
    assert version.tags["slmpack.data"] == "town.jsonl"
    assert str(data.parent) not in str(version.tags) + str(run.data.params)
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in losses] == list(range(1, len(losses) + 1))
    assert losses[-1].value < losses[0].value
    assert "<svg" in mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/training/loss.svg")
    assert run.data.metrics["held_out_perplexity_tuned"] == pytest.approx(first.figures.held_out.tuned)  # type: ignore[union-attr]
    package = client.get_model_version("town", "2")
    assert package.tags["slmpack.source"] == "models:/town/1"
    assert "Tuned from town-phi3 on" in str(version.description)


@pytest.mark.slow
def test_the_same_data_and_base_are_unchanged(
    first: RetrainOutcome, data: Path, town_phi3: Path, workspace: Path, tmp_path: Path
) -> None:
    shuffled = write(tmp_path / "other-name.jsonl", list(reversed(chats())))
    again = retrain(shuffled, town_phi3, workspace)
    assert (again.status, again.version) == ("unchanged", 1)
    assert [each.status for each in again.targets] == ["unchanged"]
    assert "train" not in again.seconds


@pytest.mark.slow
def test_shuffled_answers_are_refused_and_nothing_moves_and_not_trained_again(
    first: RetrainOutcome, town_phi3: Path, workspace: Path, tmp_path: Path
) -> None:
    wrong = write(tmp_path / "wrong.jsonl", shuffled_chats())
    policy = RetrainPolicy(min_gain=0.5, max_forgetting=100.0)
    refused = retrain(wrong, "models:/town@tuned", workspace, retrain_policy=policy)  # type: ignore[arg-type]
    assert (refused.status, refused.version, refused.targets) == ("refused", None, ())
    assert refused.figures is not None
    assert "nothing moves" in str(refused.reason)
    again = retrain(wrong, "models:/town@tuned", workspace, retrain_policy=policy)  # type: ignore[arg-type]
    assert (again.status, again.reason, "train" in again.seconds) == ("refused", refused.reason, False)
    assert (refused.settled, again.settled) == (False, True)
    assert aliases() == {"tuned": 1, "cpu-int4": 2}


@pytest.mark.slow
def test_whoever_packages_the_tuned_model_by_hand_has_it_held_against_the_same_chats(
    first: RetrainOutcome, workspace: Path
) -> None:
    found = package_model("models:/town@tuned", options=WAIVED, workspace=workspace)
    assert (found.status, found.version) == ("unchanged", 2)
    other = MlflowClient().get_model_version("town", "2")
    assert "chat_perplexity_ratio" in facts_in(other.tags)
    bill = json.loads(read_bom("models:/town/2"))
    assert {each["name"] for each in bill["components"] if each["type"] == "data"} == {"town.jsonl"}


def models_logged() -> int:
    experiment = MlflowClient().get_experiment_by_name("slmpack")
    assert experiment is not None
    return len(MlflowClient().search_logged_models([experiment.experiment_id], max_results=1000))


@pytest.mark.slow
def test_a_target_that_was_refused_is_not_built_again_by_every_poll(
    first: RetrainOutcome, data: Path, town_phi3: Path, workspace: Path
) -> None:
    strict: dict[str, Any] = {
        "options": PackageOptions(policy=STRICT),
        "targets": [Target.CPU_INT8],
    }
    refused = retrain(data, town_phi3, workspace, **strict)
    assert (refused.status, refused.settled, refused.targets[0].status) == ("failed", False, "refused")
    before = models_logged()
    state: Any = retrain_model(
        str(data), str(town_phi3), "town", FAST, EASY, workspace=workspace, return_state=True, **strict
    )
    again = state.result()
    assert (again.settled, again.reason, again.targets[0].reason) == (True, refused.reason, refused.targets[0].reason)
    assert (state.name, state.type.value) == ("Refused before", "COMPLETED")
    assert models_logged() == before
    other = retrain(data, town_phi3, workspace, **strict | {"options": WAIVED.model_copy(update={"policy": STRICT})})
    assert (other.status, other.targets[0].status) == ("published", "published")


@pytest.mark.slow
def test_with_a_trust_policy_a_tuned_version_is_signed_to_be_packaged(
    first: RetrainOutcome, data: Path, town_phi3: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "key.pem")
    (tmp_path / "trust.toml").write_text(f"[trust.keys.a]\npublic_key = '''{key.public_pem()}'''\nnames = ['town']\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "trust.toml"))
    with pytest.raises(UsageError, match="no signing key for town, and a trust policy"):
        retrain(data, town_phi3, workspace)
    with pytest.raises(TrustError, match="models:/town/1 is not signed; a signature by a"):
        fetch_snapshot(resolve_source("models:/town/1"), workspace)
    signed = WAIVED.model_copy(update={"signing_key": str(tmp_path / "key.pem")})
    outcome = retrain(data, town_phi3, workspace, options=signed)
    assert (outcome.status, outcome.version, [each.status for each in outcome.targets]) == (
        "unchanged",
        1,
        ["unchanged"],
    )
    tags = [MlflowClient().get_model_version("town", number).tags for number in ("1", "2")]
    assert [each[SIGNED_BY] for each in tags] == [key.fingerprint, key.fingerprint]
    assert fetch_snapshot(resolve_source("models:/town@tuned"), workspace).parameters > 0


@pytest.mark.slow
def test_bad_data_start_nothing(
    store: Path, prefect_api: str, town_phi3: Path, workspace: Path, tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"messages": []}, *chats()[:12]])
    with pytest.raises(DataError, match=r"bad\.jsonl line 1: messages is empty"):
        retrain(bad, town_phi3, workspace)
    with pytest.raises(UsageError, match="names no data in MLflow"):
        retrain(Path("s3://bucket/x"), town_phi3, workspace)
    with pytest.raises(DataError):
        retrain(tmp_path / "nothing.jsonl", town_phi3, workspace)
    with pytest.raises(DataError, match="holds out 0 of the 9 chats"):
        few = write(tmp_path / "few.jsonl", chats()[:9])
        retrain(few, town_phi3, workspace, data_policy=DataPolicy(held_out_share=0.01))


@pytest.mark.slow
def test_the_command_does_it_and_says_what_came_of_it(
    first: RetrainOutcome, prefect_api: str, data: Path, town_phi3: Path, workspace: Path, tmp_path: Path
) -> None:
    write_empty_database(tmp_path / "mlflow.db")
    # The training of all tests here, which the workspace has.
    options = (
        "--epochs", "2", "--rank", "8", "--learning-rate", "0.005", "--batch-size", "16", "--max-length", "128",
        "--max-forgetting", "100", "--waive-quality", "random weights, for a test",
    )  # fmt: skip
    done = slmpack(
        "retrain", str(town_phi3), "--data", str(data), "--name", "by-command", *options, "--workspace", str(workspace),
        "--json", cwd=tmp_path, PREFECT_API_URL=prefect_api,
    )  # fmt: skip
    (outcome,) = objects(done)
    assert done.returncode == 0, done.stderr
    assert (outcome["status"], outcome["version"], outcome["targets"][0]["alias"]) == ("published", 1, "cpu-int4")
    assert outcome["figures"]["held_out"]["tuned"] < outcome["figures"]["held_out"]["base"]
