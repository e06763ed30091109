"""Finding: what is published of a digest, of several recipes, and under which alias."""

import shutil
from collections.abc import Callable

import pytest
from made_proofs import ALIAS, QUALITY, SPEED, files_of, flip_a_bit, holder_of, proofs_of, publish
from mlflow import MlflowClient

from slmpack.errors import CheckError, DamageError, UsageError
from slmpack.log.health import UNHEALTHY
from slmpack.log.log import ready_models
from slmpack.log.read_back import read_back
from slmpack.log.restore import find_logged
from slmpack.log.tags import RETRAINED
from slmpack.publish.find import PublishedLookup, Search, alias_of, find_published, published_before
from slmpack.publish.outcome import StageTimer, describe_outcome, published_outcome
from slmpack.publish.publish import publish_version
from slmpack.records import Interface, LoggedModel, Target
from slmpack.reports import QualityFigures
from slmpack.retrain.evaluate import TUNED_ALIAS, PreviousResult, find_previous_result, version_in_use

LogIt = Callable[..., LoggedModel]


def before(
    name: str, *digests: str, fingerprint: str = "", request_key: str | None = None, alias: str = ALIAS
) -> PublishedLookup | None:
    return published_before(Search(
        name=name, target=Target.CPU_INT4, alias=alias, fingerprint=fingerprint, request_key=request_key,
        digests=digests,
    ))  # fmt: skip


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
def test_what_the_same_request_published_is_found_without_the_source(name: str, log_it: LogIt) -> None:
    model = log_it()
    key, other = "a" * 64, "b" * 64
    publish_version(model, proofs_of(model), request_key=key)
    assert version_of(before(name, request_key=key)) == 1
    assert before(name, request_key=other) is None
    assert before(name, request_key=key, alias="cpu-int8") is None
    assert version_of(before(name, model.digest, request_key=other)) == 1
    assert version_of(before(name, request_key=other)) == 1  # from now on
    MlflowClient().delete_registered_model_alias(name, ALIAS)
    assert before(name, request_key=key) is None


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
    recipes = [small.digest, balanced.digest]
    publish(small, fingerprint="small 1")
    publish(balanced, fingerprint="auto 1")

    assert version_of(before(name, small.digest, fingerprint="small 2")) == 1
    assert version_of(before(name, *recipes, fingerprint="auto 1")) == 2
    assert before(name, *recipes, fingerprint="auto 2") is None
    assert before(name, "0" * 64, "1" * 64, fingerprint="auto 1") is None
    assert before(name, fingerprint="auto 1") is None


@pytest.mark.slow
def test_auto_that_ended_with_what_was_published_by_name_is_found_the_next_time(name: str, log_it: LogIt) -> None:
    small = log_it()
    recipes = [small.digest, "0" * 64]
    publish(small, fingerprint="small 1")
    assert before(name, *recipes, fingerprint="auto 1") is None

    assert publish(log_it(), fingerprint="auto 1").version == 1

    assert version_of(before(name, *recipes, fingerprint="auto 1")) == 1
    assert before(name, *recipes, fingerprint="auto 2") is None


def mark_of(name: str, version: int = 1) -> str | None:
    return MlflowClient().get_model_version(name, str(version)).tags.get(UNHEALTHY)


@pytest.mark.slow
def test_a_published_version_without_its_files_is_told_in_log_tag_and_outcome(
    name: str, log_it: LogIt, caplog: pytest.LogCaptureFixture
) -> None:
    lost = log_it()
    publish(lost)
    shutil.rmtree(files_of(lost.model_id))

    assert find_published(name, lost.digest, ALIAS) is None
    told = f"its files are gone from {MlflowClient().get_logged_model(lost.model_id).artifact_location}"
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.message == f"{name} version 1 is published and cannot be used: {told}"
    mark = mark_of(name)
    assert mark is not None and mark.endswith(f": {told}")
    assert find_published(name, lost.digest, ALIAS) is None
    assert mark_of(name) == mark  # the time of when it was found first

    model = log_it()
    outcome = published_outcome(publish(model), proofs_of(model), StageTimer())
    assert (outcome.version, outcome.reason) == (2, None)
    assert outcome.unhealthy == (f"version 1 was published and cannot be used, {mark}",)
    assert outcome.unhealthy[0] in describe_outcome(outcome)


@pytest.mark.slow
def test_a_file_that_was_cut_or_removed_is_named_and_the_mark_goes_when_it_is_back(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    file = files_of(model.model_id) / "artifacts" / "package" / "model.onnx.data"
    content = file.read_bytes()
    file.unlink()
    assert find_published(name, model.digest, ALIAS) is None
    assert "artifacts/package/model.onnx.data missing from" in str(mark_of(name))
    file.write_bytes(content[:-1])
    assert find_published(name, model.digest, ALIAS) is None
    assert f"model.onnx.data has {len(content) - 1:,} bytes instead of {len(content):,}" in str(mark_of(name))
    file.write_bytes(content)
    assert version_of(find_published(name, model.digest, ALIAS)) == 1
    assert mark_of(name) is None


@pytest.mark.slow
def test_an_alias_does_not_stay_at_a_version_without_files(name: str, log_it: LogIt) -> None:
    first, forced = log_it(), log_it()
    publish(first)
    publish(forced, force=True)
    shutil.rmtree(files_of(forced.model_id))

    assert find_published(name, first.digest, ALIAS) is None  # version 1 is whole and has no alias
    published = publish(log_it())

    assert (published.version, holder_of(name)) == (1, 1)
    assert version_of(find_published(name, first.digest, ALIAS)) == 1
    assert mark_of(name, 2) is not None


@pytest.mark.slow
def test_other_content_that_was_found_once_is_not_unchanged_until_all_of_it_is_read_again(
    name: str, log_it: LogIt
) -> None:
    model = log_it()
    publish(model)
    file = files_of(model.model_id) / "artifacts" / "package" / "model.onnx.data"
    content = file.read_bytes()
    flip_a_bit(model)
    assert version_of(find_published(name, model.digest, ALIAS)) == 1  # its size is as it was
    with pytest.raises(DamageError):
        read_back(model)
    for _ in range(2):
        assert find_published(name, model.digest, ALIAS) is None
        assert "other content: the artifact store serves artifacts/package/model.onnx.data" in str(mark_of(name))
    file.write_bytes(content)
    read_back(model)
    assert mark_of(name) is None
    assert version_of(find_published(name, model.digest, ALIAS)) == 1


@pytest.mark.slow
def test_a_logged_model_without_its_files_is_not_handed_over_or_gone_on_with(
    log_it: LogIt, caplog: pytest.LogCaptureFixture
) -> None:
    lost, whole = log_it(), log_it()
    shutil.rmtree(files_of(lost.model_id))
    found = {str(logged.model_id) for logged in ready_models({"slmpack.digest": lost.digest})}
    assert whole.model_id in found and lost.model_id not in found
    assert f"models:/{lost.model_id} is logged and cannot be used: its files are gone" in caplog.text
    assert "its files are gone" in MlflowClient().get_logged_model(lost.model_id).tags[UNHEALTHY]
    with pytest.raises(CheckError, match=f"models:/{lost.model_id} cannot be used: its files are gone"):
        find_logged(f"models:/{lost.model_id}")


@pytest.mark.slow
def test_a_tuned_version_without_its_files_settles_nothing_and_is_not_in_use(name: str, log_it: LogIt) -> None:
    model, client = log_it(), MlflowClient()
    client.create_registered_model(name)
    version = client.create_model_version(
        name, model.uri, model.run_id, {RETRAINED: "key"}, model_id=model.model_id
    )  # fmt: skip
    client.set_registered_model_alias(name, TUNED_ALIAS, version.version)
    assert (find_previous_result(name, "key"), version_in_use(name)) == (PreviousResult(version=1, reason=None), 1)
    shutil.rmtree(files_of(model.model_id))
    assert (find_previous_result(name, "key"), version_in_use(name)) == (None, None)
    assert "its files are gone" in str(mark_of(name))


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
