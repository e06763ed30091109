"""Version tags: a few for people, one for machines, and what earlier releases left is still read."""

from collections.abc import Callable

import pytest
from made_proofs import ALIAS, proofs_of, publish
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from slmpack.errors import PublishError
from slmpack.log.tags import FACTS, facts_in, version_tags, with_more
from slmpack.publish.find import find_published
from slmpack.publish.publish import publish_version
from slmpack.publish.rollback import move_alias_back, plan_rollback
from slmpack.records import Interface, LoggedModel, Target

LogIt = Callable[..., LoggedModel]
MOST_TAGS = 12


def version_of(name: str, number: int = 1) -> ModelVersion:
    return MlflowClient().get_model_version(name, str(number))


def tag_each_fact(name: str, number: int = 1) -> None:
    """Give a version a tag for each fact and none for all, as earlier releases did."""
    client = MlflowClient()
    for key, value in facts_in(version_of(name, number).tags).items():
        client.set_model_version_tag(name, str(number), f"slmpack.{key}", value)
    client.delete_model_version_tag(name, str(number), FACTS)


def test_facts_are_read_back_by_their_names_whether_they_have_a_tag_of_their_own_or_not() -> None:
    facts = {"source": "hf://a/b", "exporter": "onnxruntime-genai", "perplexity_ratio": 1.0123456, "size_bytes": 10**6}
    tags = version_tags(facts)
    assert tags.keys() == {"slmpack.source", FACTS}
    assert facts_in(tags) == {
        "source": "hf://a/b", "exporter": "onnxruntime-genai", "perplexity_ratio": "1.01235", "size_bytes": "1000000",
    }  # fmt: skip
    assert facts_in(tags | {"slmpack.recipe": "small", "owner": "me"})["recipe"] == "small"
    assert "owner" not in facts_in(tags | {"owner": "me"})


def test_what_is_out_of_the_ordinary_has_a_tag_that_can_be_searched() -> None:
    assert version_tags({"exporter": "optimum", "interface": "prompt"}) == {
        "slmpack.exporter": "optimum", "slmpack.interface": "prompt", FACTS: "{}",
    }  # fmt: skip


@pytest.mark.parametrize("written", ["", "no JSON", "[1]", "7", "[" * 100_000])
def test_what_a_person_wrote_over_the_facts_is_no_fact_and_no_traceback(written: str) -> None:
    assert facts_in({FACTS: written, "slmpack.recipe": "small"}) == {"recipe": "small"}
    assert with_more({FACTS: written}, {"a": "b"}) == '{"a": "b"}'


def test_a_fact_that_is_added_leaves_numbers_numbers() -> None:
    assert with_more({FACTS: '{"speed": 12.5, "page": "x"}'}, {"more": "y"}) == (
        '{"speed": 12.5, "page": "x", "more": "y"}'
    )


@pytest.mark.slow
def test_a_published_version_is_a_dozen_lines_in_the_list_of_versions(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish_version(
        model, proofs_of(model), fingerprint="small 1", request_key="a" * 64, trace={"prefect_run": "run-1"}
    )
    assert len(version_of(name).tags) <= MOST_TAGS


@pytest.mark.slow
def test_a_version_of_an_earlier_release_is_found_superseded_and_rolled_back_to(name: str, log_it: LogIt) -> None:
    old = log_it("old")
    publish(old)
    now = find_published(name, old.digest, ALIAS)
    tag_each_fact(name)
    assert len(version_of(name).tags) > 2 * MOST_TAGS

    assert now is not None
    assert find_published(name, old.digest, ALIAS) == now
    assert publish(log_it("old")).version == 1
    assert publish(log_it("new")).version == 2
    way = plan_rollback(name, Target.CPU_INT4, Interface.CHAT)
    assert move_alias_back(way, 1, {"prefect_run": "run-2"}).version == 1
    assert facts_in(version_of(name, 2).tags)["rollback_prefect_run"] == "run-2"


@pytest.mark.slow
def test_a_version_that_lost_its_facts_is_told_in_one_line(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    MlflowClient().set_model_version_tag(name, "1", FACTS, "taken away")
    with pytest.raises(PublishError, match=f"{name} version 1 has no mlflow_run, size_bytes in its tags; "):
        find_published(name, model.digest, ALIAS)


@pytest.mark.slow
def test_long_facts_fit_in_what_mlflow_takes(name: str, log_it: LogIt) -> None:
    model = log_it()
    repairs = tuple(f"Repair {number} of a source that needed very many of them." for number in range(5000))
    package = model.package.model_copy(update={"repairs": repairs})
    repaired = model.model_copy(update={"package": package})
    publish(repaired)
    assert facts_in(version_of(name).tags)["repairs"].startswith("Repair 0 of")
    assert len(version_of(name).tags[FACTS]) < 8000
