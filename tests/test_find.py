"""Finding: what is published of a digest, of several recipes, and under which alias."""

from collections.abc import Callable

import pytest
from made_proofs import ALIAS, QUALITY, SPEED, proofs_of, publish
from mlflow import MlflowClient

from slmpack.errors import UsageError
from slmpack.find import PublishedLookup, alias_of, find_published, find_rung, find_wanted
from slmpack.publish import publish_version
from slmpack.records import Interface, LoggedModel, QualityFigures, Target

LogIt = Callable[..., LoggedModel]


@pytest.mark.slow
def test_published_digest_is_found(name: str, log_it: LogIt) -> None:
    model = log_it()
    assert find_published(name, model.digest, ALIAS) is None
    publish(model)

    found = find_published(name, model.digest, ALIAS)

    assert found is not None
    assert (found.version, found.model_id, found.run_id) == (1, model.model_id, model.run_id)
    assert (found.target, found.recipe, found.size_bytes) == (Target.CPU_INT4, "small", model.package.size_bytes)
    assert find_published(name, "0" * 64, ALIAS) is None
    assert find_published(name, model.digest, "cpu-int8") is None
    assert find_published("another name", model.digest, ALIAS) is None


@pytest.mark.slow
def test_what_was_wanted_is_found_without_the_source(name: str, log_it: LogIt) -> None:
    model = log_it()
    wanted, other = "a" * 64, "b" * 64
    publish_version(model, proofs_of(model), wanted=wanted)
    assert version_of(find_wanted(name, wanted, ALIAS)) == 1
    assert find_wanted(name, other, ALIAS) is None
    assert find_wanted(name, wanted, "cpu-int8") is None
    assert version_of(find_rung(name, [model.digest], ALIAS, "", other)) == 1
    assert version_of(find_wanted(name, other, ALIAS)) == 1  # from now on
    MlflowClient().delete_registered_model_alias(name, ALIAS)
    assert find_wanted(name, wanted, ALIAS) is None


@pytest.mark.slow
def test_figures_of_a_published_version_are_found(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)

    found = find_published(name, model.digest, ALIAS)

    assert found is not None
    assert found.speed == SPEED.model_copy(update={"peak_rss_bytes": 123_457_000})  # tags have six digits
    assert found.quality == QualityFigures(
        perplexity_ratio=QUALITY.perplexity_ratio, mean_kl=QUALITY.mean_kl, top1_agreement=QUALITY.top1_agreement
    )


@pytest.mark.slow
def test_one_digest_is_enough_and_of_several_only_what_auto_ended_with(name: str, log_it: LogIt) -> None:
    small, balanced = log_it("small"), log_it("balanced")
    ladder = [small.digest, balanced.digest]
    publish(small, asked="small 1")
    publish(balanced, asked="auto 1")

    assert version_of(find_rung(name, [small.digest], ALIAS, "small 2")) == 1
    assert version_of(find_rung(name, ladder, ALIAS, "auto 1")) == 2
    assert find_rung(name, ladder, ALIAS, "auto 2") is None
    assert find_rung(name, ["0" * 64, "1" * 64], ALIAS, "auto 1") is None
    assert find_rung(name, [], ALIAS, "auto 1") is None


@pytest.mark.slow
def test_auto_that_ended_with_what_was_published_by_name_is_found_the_next_time(name: str, log_it: LogIt) -> None:
    small = log_it()
    ladder = [small.digest, "0" * 64]
    publish(small, asked="small 1")
    assert find_rung(name, ladder, ALIAS, "auto 1") is None

    assert publish(log_it(), asked="auto 1").version == 1

    assert version_of(find_rung(name, ladder, ALIAS, "auto 1")) == 1
    assert find_rung(name, ladder, ALIAS, "auto 2") is None


def version_of(found: PublishedLookup | None) -> int | None:
    return None if found is None else found.version


def test_alias_says_target_and_interface() -> None:
    assert alias_of(Target.CPU_INT4, Interface.CHAT) == "cpu-int4"
    assert alias_of(Target.TRANSFORMERS, Interface.CHAT) == "transformers"
    assert alias_of(Target.CPU_INT8, Interface.PROMPT) == "cpu-int8-prompt"


@pytest.mark.parametrize("alias", ["", "latest", "v3", "a b"])
def test_alias_that_mlflow_reserves_is_refused(alias: str) -> None:
    with pytest.raises(UsageError, match="alias"):
        find_published("tiny", "0" * 64, alias)
