"""Retraining, proved on real content: SmolLM2-135M learns an invented town, and its 4-bit package still knows it."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from invented_town import ASKED, FACTS, HELD_OUT, ask, chats, greedy_answers, mixed_up, question, write_chats
from mlflow import MlflowClient

from flows.retrain_model import retrain_model
from slmpack.build.build import build_package
from slmpack.records import Recipe, Snapshot, Target
from slmpack.retrain.evaluate import RetrainOutcome, RetrainPolicy
from slmpack.retrain.training.settings import TrainSettings

pytestmark = [pytest.mark.slow, pytest.mark.release]

NAME = "town-desk"
# Training takes as long as it has tokens: few facts need few, and small batches have less padding.
TAUGHT, WAYS = FACTS[:8], ASKED[:12]
SETTINGS = TrainSettings(epochs=2, learning_rate=5e-4, batch_size=4, max_length=128)
# 96 chats of one kind and nothing else: what is learnt of them is paid for in prose.
POLICY = RetrainPolicy(min_gain=0.9, max_forgetting=1.0)
QUESTIONS = [question(HELD_OUT[0], fact) for fact in TAUGHT]


def retrain(
    data: Path, base: str, workspace: Path, settings: TrainSettings = SETTINGS, policy: RetrainPolicy = POLICY
) -> RetrainOutcome:
    state: Any = retrain_model(
        str(data), base, NAME, settings, retrain_policy=policy, workspace=workspace, return_state=True
    )
    found = state.result(raise_on_failure=False)
    assert isinstance(found, RetrainOutcome)
    return found


@pytest.fixture(scope="module")
def tuned(store: Path, smollm2: Snapshot, workspace: Path, prefect_api: str) -> RetrainOutcome:
    return retrain(write_chats(store / "town.jsonl", chats(WAYS, TAUGHT)), str(smollm2.source.text), workspace)


def known(answers: list[str]) -> int:
    return sum(fact.answer in answer for fact, answer in zip(TAUGHT, answers, strict=True))


def test_the_tuned_model_is_better_by_a_factor_and_its_package_is_in_use(tuned: RetrainOutcome) -> None:
    assert (tuned.status, tuned.version, tuned.reason) == ("published", 1, None)
    assert tuned.figures is not None
    assert tuned.figures.held_out.tuned < tuned.figures.held_out.base / 10
    assert tuned.figures.general.tuned < 2 * tuned.figures.general.base
    assert [(target.status, target.alias) for target in tuned.targets] == [("published", "cpu-int4")]


def test_the_package_answers_a_paraphrase_that_nobody_taught_it_and_the_base_cannot(
    tuned: RetrainOutcome, smollm2: Snapshot, workspace: Path
) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@cpu-int4")
    said = [model.predict({"messages": ask(asked), "max_tokens": 24, "temperature": 0.0}) for asked in QUESTIONS]
    answers = [answer["choices"][0]["message"]["content"] for answer in said]
    assert known(answers) >= len(TAUGHT) - 1, answers
    base = build_package(smollm2, Target.CPU_INT8, Recipe.ACCURATE, workspace)
    assert known(greedy_answers(base.path, QUESTIONS)) == 0


def test_what_keeps_the_prose_and_loses_the_facts_is_not_published(tuned: RetrainOutcome) -> None:
    """The cheapest recipe is even better than its source on the built-in text."""
    refused = {
        model.params["recipe"]: model.tags["slmpack.refused"]
        for model in MlflowClient().search_logged_models(
            [mlflow.get_experiment_by_name("slmpack").experiment_id]  # type: ignore[union-attr]
        )
        if "slmpack.refused" in model.tags
    }
    assert "perplexity ratio on chats" in refused["small"]
    assert tuned.targets[0].recipe != Recipe.SMALL
    assert tuned.targets[0].quality is not None
    assert tuned.targets[0].quality.chat_perplexity_ratio is not None
    assert tuned.targets[0].quality.chat_perplexity_ratio <= 1.05


def test_auto_keeps_the_figures_of_every_recipe_that_it_tried(tuned: RetrainOutcome) -> None:
    experiment = mlflow.get_experiment_by_name("slmpack")
    assert experiment is not None
    found = MlflowClient().search_runs([experiment.experiment_id])
    runs = {run.data.params["recipe"]: run for run in found if "decode_tokens_per_second" in run.data.metrics}
    *refused, published = [recipe for recipe in ("small", "balanced", "accurate", "best") if recipe in runs]
    assert published == tuned.targets[0].recipe
    assert runs[published].info.status == "FINISHED"
    assert refused and all(runs[recipe].info.status == "FAILED" for recipe in refused)
    ratios = [runs[recipe].data.metrics["chat_perplexity_ratio"] for recipe in (*refused, published)]
    assert ratios == sorted(ratios, reverse=True)
    assert all(run.data.metrics["decode_tokens_per_second"] > 0 for run in runs.values())
    assert all(run.data.metrics["perplexity_ratio"] > 0 for run in runs.values())


def test_mixed_up_answers_are_refused_and_nothing_moves(tuned: RetrainOutcome, store: Path, workspace: Path) -> None:
    """Only what is learnt from is mixed up: what is held out still tells right from wrong."""
    wrong = write_chats(store / "mixed-up.jsonl", mixed_up(0.1, WAYS, TAUGHT))
    before = MlflowClient().get_registered_model(NAME).aliases
    refused = retrain(
        wrong, f"models:/{NAME}@tuned", workspace, SETTINGS.model_copy(update={"epochs": 0.25}), RetrainPolicy()
    )
    assert refused.status == "refused"
    assert refused.figures is not None
    assert refused.figures.held_out.tuned > refused.figures.held_out.in_use
    assert "a held-out perplexity of" in str(refused.reason)
    assert MlflowClient().get_registered_model(NAME).aliases == before
