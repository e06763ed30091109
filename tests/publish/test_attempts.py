"""Attempts: which recipe is tried next, and what a waiver and a failure mean for the others."""

from pathlib import Path

import pytest
from made_proofs import QUALITY, SPEED

from slmpack.errors import CheckError, NetworkError, PublishError, QualityError, RecipeError
from slmpack.publish.attempts import Attempts, NoRecipePassedError, RefusalMark, Trial, refusal_mark
from slmpack.publish.options import PackageOptions
from slmpack.publish.request import check_request
from slmpack.records import Interface, LoggedModel, ModelSource, Package, Recipe, Snapshot, SourceKind, Target
from slmpack.reports import SmokeReport

SNAPSHOT = Snapshot(
    source=ModelSource(text="a", kind=SourceKind.FOLDER, location="/a", revision="1", name="a"), path=Path("/a"),
    files=(), architecture="Phi3ForCausalLM", dtype="F32", parameters=1, layers=1, context_length=16, licence=None,
)  # fmt: skip


def attempts(recipe: Recipe = Recipe.AUTO, waiver: str | None = None) -> Attempts:
    return Attempts(check_request(Target.CPU_INT4, PackageOptions(recipe=recipe, waive_quality=waiver), "a", None))


def build(trial: Trial) -> SmokeReport:
    """Note a package of the trial's recipe that answered."""
    trial.package = Package(
        snapshot=SNAPSHOT,
        target=Target.CPU_INT4,
        recipe=trial.recipe,
        path=Path("/p"),
        files=(),
        versions={},
        digest="1",
    )
    model = LoggedModel(
        package=trial.package, interface=Interface.CHAT, name="a", model_id="m-1", uri="models:/m-1", run_id="2",
        requirements=(), digest="3",
    )  # fmt: skip
    trial.smoke = SmokeReport(model=model, checks=(), speed=SPEED)
    return trial.smoke


def refusal() -> QualityError:
    error = QualityError("perplexity ratio 1.20", "at most 1.10", "the next recipe is tried")
    error.quality = QUALITY
    return error


def run(tried: Attempts, unbuilt: tuple[Recipe, ...] = ()) -> list[tuple[Recipe | None, str | None]]:
    """Try recipes that are too large to be built or refused by the policy; return each with the waiver it was under."""
    trials = []
    for trial in tried:
        trials.append((trial.recipe, trial.request.waiver_for(trial.recipe)))
        with tried.trying(trial):
            if trial.recipe in unbuilt:
                raise RecipeError("19.2 GB are needed", "12.1 GB are free")
            build(trial)
            raise refusal()
    return trials


def test_recipes_are_tried_from_the_cheapest_on_and_the_error_names_all_of_them() -> None:
    tried = attempts()
    assert run(tried) == [(Recipe.SMALL, None), (Recipe.BALANCED, None), (Recipe.ACCURATE, None)]
    error = tried.error()
    assert isinstance(error, NoRecipePassedError)
    assert [attempt.recipe for attempt in error.attempts] == ["small", "balanced", "accurate"]
    assert {(attempt.status, attempt.speed) for attempt in error.attempts} == {("refused", SPEED)}
    assert "also tried: small: perplexity ratio 1.20, balanced: perplexity ratio 1.20" in str(error)


def test_the_waiver_is_for_the_last_recipe() -> None:
    waived = (Recipe.ACCURATE, "a demonstration")
    assert run(attempts(waiver="a demonstration")) == [(Recipe.SMALL, None), (Recipe.BALANCED, None), waived]


def test_where_the_last_recipe_cannot_be_built_the_waiver_is_for_the_last_one_that_was() -> None:
    waiver, tried = "a demonstration", attempts(waiver="a demonstration")
    found = run(tried, unbuilt=(Recipe.ACCURATE,))
    assert found[2:] == [(Recipe.ACCURATE, waiver), (Recipe.BALANCED, waiver)]
    assert [waiver for _, waiver in found[:2]] == [None, None]


def test_where_no_recipe_can_be_built_no_waiver_helps_and_the_error_is_the_builds() -> None:
    tried = attempts(waiver="a demonstration")
    assert len(run(tried, unbuilt=(Recipe.SMALL, Recipe.BALANCED, Recipe.ACCURATE))) == 3
    assert type(tried.error()) is RecipeError


def test_a_recipe_that_was_named_and_cannot_be_built_has_the_builds_own_error() -> None:
    tried = attempts(Recipe.SMALL)
    with pytest.raises(RecipeError, match=r"^19\.2 GB are needed; 12\.1 GB are free$"):
        run(tried, unbuilt=(Recipe.SMALL,))


def test_a_failure_that_the_next_recipe_would_meet_as_well_ends_the_run() -> None:
    tried = attempts()
    trial = next(iter(tried))
    with pytest.raises(QualityError), tried.trying(trial):
        raise refusal()  # of the source, before there is a package
    with pytest.raises(CheckError), tried.trying(trial):
        build(trial)
        raise CheckError("a module too many")
    assert tried.ended == ()


def test_a_model_keeps_why_it_does_not_hold_unless_that_says_nothing_of_the_model() -> None:
    smoke = build(Trial(Recipe.SMALL, check_request(Target.CPU_INT4, PackageOptions(), "a", None)))
    error = refusal()
    assert refusal_mark(error, smoke) == RefusalMark(reason=str(error), speed=SPEED, quality=QUALITY)
    assert refusal_mark(CheckError("a module too many"), None) == RefusalMark(reason="a module too many")
    assert refusal_mark(KeyboardInterrupt(), smoke) == RefusalMark(reason="interrupted", status="KILLED")
    assert refusal_mark(PublishError("no"), smoke) is refusal_mark(NetworkError("away"), smoke) is None
