"""The proof of a version: its page is kept with its run, tells the way here, and nothing unlike the build gets one."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from made_proofs import (
    ALIAS,
    ATTEMPTS,
    flip_a_bit,
    holder_of,
    proofs_of,
    publish,
    versions_of,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmpack.errors import CheckError
from slmpack.log.tags import facts_in
from slmpack.publish.page.log_page import page_uri
from slmpack.publish.publish import publish_version
from slmpack.records import LoggedModel

LogIt = Callable[..., LoggedModel]


def facts_of(model: LoggedModel) -> dict[str, object]:
    found = json.loads(mlflow.artifacts.load_text(f"runs:/{model.run_id}/proof/facts.json"))
    assert isinstance(found, dict)
    return found


def kept_with(model: LoggedModel) -> set[str]:
    """Return what the model's run has for a proof, but the bill of materials."""
    kept = {file.path for file in MlflowClient().list_artifacts(model.run_id, "proof")}
    return {path for path in kept if not path.endswith(".cdx.json")}


def findings_of(model: LoggedModel, name: str) -> list[str]:
    proofs = facts_of(model)["proofs"]
    assert isinstance(proofs, list)
    (proof,) = [proof for proof in proofs if proof["name"] == name]
    return [finding["name"] for finding in proof["findings"]]


def compared_with(model: LoggedModel) -> object:
    """Return the number of the version that the model's page compares it with."""
    previous = facts_of(model)["previous"]
    return previous["version"] if isinstance(previous, dict) else None


@pytest.mark.slow
def test_page_facts_and_frontier_are_kept_with_the_run(name: str, log_it: LogIt) -> None:
    model = log_it()

    published = publish_version(model, proofs_of(model, attempts=ATTEMPTS))

    assert kept_with(model) == {"proof/version.html", "proof/facts.json", "proof/frontier.svg"}
    version = MlflowClient().get_model_version(name, "1")
    assert facts_in(version.tags)["page"] == published.page_uri == page_uri(model.run_id)
    page = mlflow.artifacts.load_text(published.page_uri)
    assert f"<title>{name} version 1" in page
    assert "balanced" in page
    assert mlflow.artifacts.load_text(f"runs:/{model.run_id}/proof/frontier.svg").startswith("<svg ")
    assert version.description == published.summary
    assert "First version under the alias" in published.summary


@pytest.mark.slow
def test_page_says_that_what_is_served_was_read_back(log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    assert findings_of(model, "integrity") == ["read back"]


@pytest.mark.slow
def test_without_a_choice_of_recipes_there_is_no_frontier(log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    assert kept_with(model) == {"proof/version.html", "proof/facts.json"}


@pytest.mark.slow
def test_package_that_is_the_sources_own_bytes_has_a_page_without_quality(log_it: LogIt) -> None:
    model = log_it()
    publish_version(model, proofs_of(model, quality=None))
    assert facts_of(model)["quality"] is None
    assert findings_of(model, "quality") == ["one question"]


@pytest.mark.slow
def test_second_version_is_compared_with_the_first(log_it: LogIt) -> None:
    first, second = log_it("a"), log_it("b")
    publish(first)

    published = publish(second)

    assert (compared_with(first), compared_with(second)) == (None, 1)
    assert "Against version 1" in mlflow.artifacts.load_text(published.page_uri)
    assert "Against version 1: no figure changed beyond noise" in published.summary


@pytest.mark.slow
def test_version_without_facts_is_known_by_its_number(log_it: LogIt) -> None:
    first, second = log_it("a"), log_it("b")
    publish(first)
    MlflowClient().delete_run(first.run_id)
    location = MlflowClient().get_run(first.run_id).info.artifact_uri
    (Path(str(location).removeprefix("file://")) / "proof" / "facts.json").unlink()

    published = publish(second)

    assert compared_with(second) == 1
    assert "Against version 1" in published.summary


@pytest.mark.slow
def test_publisher_killed_after_the_alias_moved_does_not_compare_the_version_with_itself(
    name: str, log_it: LogIt
) -> None:
    first, second = log_it("a"), log_it("b")
    publish(first)
    publish(second)
    MlflowClient().delete_model_version_tag(name, "2", "slmpack.published")  # it was to be set last

    published = publish(second)

    assert (published.version, compared_with(second), holder_of(name)) == (2, 1, 2)
    version = MlflowClient().get_model_version(name, "2")
    assert version.tags["slmpack.published"] == ALIAS
    assert "slmpack.superseded_by" not in version.tags


@pytest.mark.slow
def test_alias_that_is_given_again_leaves_the_comparison_as_it_was(name: str, log_it: LogIt) -> None:
    first, second = log_it("a"), log_it("b")
    publish(first)
    publish(second)
    MlflowClient().delete_registered_model_alias(name, ALIAS)

    publish(second)

    assert (compared_with(second), holder_of(name)) == (1, 2)


@pytest.mark.slow
def test_who_comes_second_with_the_same_digest_is_told_of_the_page_of_the_first(log_it: LogIt) -> None:
    first, second = log_it(), log_it()
    published = publish(first)

    again = publish(second)

    assert (again.page_uri, again.summary) == (published.page_uri, published.summary)
    assert again.summary
    with pytest.raises((MlflowException, OSError)):
        mlflow.artifacts.load_text(page_uri(second.run_id))


@pytest.mark.slow
def test_flipped_bit_gets_no_page_no_version_and_no_alias(name: str, log_it: LogIt) -> None:
    publish(log_it("good"))
    model = log_it("bad")
    flip_a_bit(model)

    with pytest.raises(CheckError, match=r"artifacts/package/model\.onnx\.data"):
        publish(model)

    assert (versions_of(name), holder_of(name)) == ([1], 1)
    assert MlflowClient().list_artifacts(model.run_id, "proof") == []
    assert "slmpack.superseded_by" not in MlflowClient().get_model_version(name, "1").tags
    assert "model.onnx.data" in MlflowClient().get_logged_model(model.model_id).tags["slmpack.refused"]
