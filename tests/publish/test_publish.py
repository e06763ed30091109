"""Publishing: one version a digest, an alias that only a proved model moves, and a registry that says why."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import mlflow
import pytest
from made_proofs import (
    ALIAS,
    QUALITY,
    SPEED,
    flip_a_bit,
    holder_of,
    proofs_of,
    publish,
    versions_of,
    while_reading_back,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from places import HARNESS

from slmpack.errors import CheckError, PublishError, UsageError
from slmpack.log.mlflow_server import check_name
from slmpack.log.tags import FACTS, facts_in
from slmpack.publish.find import find_published
from slmpack.publish.publish import mark_refused, publish_version
from slmpack.records import LoggedModel
from slmpack.reports import TemplateReport

LogIt = Callable[..., LoggedModel]


def _lose_the_connection() -> None:
    raise ConnectionError("lost")


@pytest.mark.slow
def test_proved_model_becomes_a_version_with_its_facts(name: str, log_it: LogIt) -> None:
    model = log_it()

    published = publish(model)

    assert (published.version, published.alias, published.model) == (1, ALIAS, model)
    version = MlflowClient().get_model_version_by_alias(name, ALIAS)
    source = model.package.snapshot.source
    read = {
        "digest": model.digest, "target": ALIAS, "recipe": "small", "revision": source.revision, "published": ALIAS,
        "model_id": model.model_id,
    }  # fmt: skip
    assert {key: version.tags[f"slmpack.{key}"] for key in read} == read
    assert {"slmpack.licence", "slmpack.source"} <= version.tags.keys()
    packed = {
        "interface": "chat", "size_bytes": str(model.package.size_bytes), "mlflow_run": model.run_id,
        "prefect_run": "run-1", "decode_tokens_per_second": 12.5, "forced": "false", "exporter": "onnxruntime-genai",
    }  # fmt: skip
    assert packed.items() <= json.loads(version.tags[FACTS]).items()
    assert "version.onnxruntime-genai" in json.loads(version.tags[FACTS])
    assert mlflow.models.get_model_info(published.model_uri).model_id == model.model_id


@pytest.mark.slow
def test_figures_go_to_the_run_and_the_logged_model(log_it: LogIt) -> None:
    model = log_it()

    publish(model)
    publish(model)  # a second time adds nothing

    run = MlflowClient().get_run(model.run_id)
    metrics = MlflowClient().get_logged_model(model.model_id).metrics
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ttft_ms"] == 34.0
    assert metrics is not None
    assert {metric.key: metric.value for metric in metrics}["peak_rss_bytes"] == 123_456_789
    assert len(MlflowClient().get_metric_history(model.run_id, "ttft_ms")) == 1


@pytest.mark.slow
def test_waiver_and_repairs_are_tags(name: str, log_it: LogIt) -> None:
    model = log_it()
    snapshot = model.package.snapshot.model_copy(update={"repairs": ("The source was repaired.",)})
    repairs = ("The first was mended.", "So was the second.")
    package = model.package.model_copy(update={"repairs": repairs, "snapshot": snapshot})
    repaired = model.model_copy(update={"package": package})

    proofs = proofs_of(repaired, waiver="a demonstration")
    template = TemplateReport(finding="line 1", waiver="it is our own template")
    validation = proofs.validation.model_copy(update={"template": template})

    publish_version(repaired, proofs.model_copy(update={"validation": validation}), fingerprint="small 1")

    tags = MlflowClient().get_model_version(name, "1").tags
    assert tags["slmpack.waiver"] == "a demonstration"
    assert tags["slmpack.template_waiver"] == "it is our own template"
    assert tags["slmpack.asked"] == "small 1"
    assert facts_in(tags)["repairs"] == "The source was repaired. The first was mended. So was the second."


@pytest.mark.slow
def test_nothing_waived_or_mended_leaves_no_tag(name: str, log_it: LogIt) -> None:
    publish(log_it())
    assert (
        not {"waiver", "template_waiver", "repairs"} & facts_in(MlflowClient().get_model_version(name, "1").tags).keys()
    )


@pytest.mark.slow
def test_reports_about_another_model_publish_nothing(name: str, log_it: LogIt) -> None:
    model, other = log_it(), log_it()
    own, others = proofs_of(model), proofs_of(other)

    for report in ("validation", "quality", "smoke"):
        mixed = own.model_copy(update={report: getattr(others, report)})
        with pytest.raises(PublishError, match=f"a report about {other.uri}; reports about {model.uri}"):
            publish_version(model, mixed)

    assert versions_of(name) == []


@pytest.mark.slow
def test_same_digest_is_one_version_and_force_makes_another(name: str, log_it: LogIt) -> None:
    first, second = log_it(), log_it()
    publish(first)

    again = publish(second)
    assert (again.version, again.model.model_id) == (1, first.model_id)
    assert versions_of(name) == [1]

    forced = publish(second, force=True)
    assert (forced.version, forced.model) == (2, second)
    assert publish(second, force=True).version == 2  # tried again: nothing more
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)


@pytest.mark.slow
def test_previous_holder_is_told_who_supersedes_it(name: str, log_it: LogIt) -> None:
    publish(log_it("a"))
    publish(log_it("b"))

    tags = MlflowClient().get_model_version(name, "1").tags
    assert tags["slmpack.superseded_by"] == "2"
    assert tags["slmpack.held_alias"] == ALIAS
    assert tags["slmpack.held_since"] <= tags["slmpack.held_until"]
    assert "slmpack.superseded_by" not in MlflowClient().get_model_version(name, "2").tags


@pytest.mark.slow
def test_rollback_stays(name: str, log_it: LogIt) -> None:
    publish(log_it("a"))
    second = log_it("b")
    publish(second)
    MlflowClient().set_registered_model_alias(name, ALIAS, "1")

    found = find_published(name, second.digest, ALIAS)
    again = publish(log_it("b"))

    assert found is not None
    assert found.version == again.version == 2
    assert (versions_of(name), holder_of(name)) == ([1, 2], 1)


@pytest.mark.slow
def test_alias_that_nobody_has_is_given_again(name: str, log_it: LogIt) -> None:
    model = log_it()
    publish(model)
    MlflowClient().delete_registered_model_alias(name, ALIAS)

    assert find_published(name, model.digest, ALIAS) is None
    assert publish(log_it()).version == 1
    assert (versions_of(name), holder_of(name)) == ([1], 1)


@pytest.mark.slow
def test_version_of_a_killed_publisher_is_completed(name: str, log_it: LogIt) -> None:
    killed = log_it()
    publish(killed)
    # as it is after the version was made and before the alias moved
    MlflowClient().delete_model_version_tag(name, "1", "slmpack.published")
    MlflowClient().delete_registered_model_alias(name, ALIAS)
    assert find_published(name, killed.digest, ALIAS) is None

    published = publish(log_it())

    assert (published.version, published.model.model_id) == (1, killed.model_id)
    assert (versions_of(name), holder_of(name)) == ([1], 1)
    assert find_published(name, killed.digest, ALIAS) is not None


@pytest.mark.slow
def test_publishing_that_was_interrupted_is_completed_by_the_same_call(name: str, log_it: LogIt) -> None:
    publish(log_it("a"))
    model = log_it("b")
    with while_reading_back(_lose_the_connection), pytest.raises(ConnectionError):
        publish(model)
    assert (versions_of(name), holder_of(name)) == ([1, 2], 1)

    published = publish(model)

    assert (published.version, published.model) == (2, model)
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)


@pytest.mark.slow
def test_publishing_that_was_interrupted_goes_on_with_figures_that_were_measured_anew(name: str, log_it: LogIt) -> None:
    model = log_it()
    with while_reading_back(_lose_the_connection), pytest.raises(ConnectionError):
        publish(model)
    proofs = proofs_of(model, quality=QUALITY.model_copy(update={"mean_kl": 0.05}))
    assert publish_version(model, proofs).version == 1
    client = MlflowClient()
    assert client.get_run(model.run_id).data.metrics["mean_kl"] == 0.05
    assert [metric.value for metric in client.get_metric_history(model.run_id, "mean_kl")] == [0.04, 0.05]
    assert len(client.get_metric_history(model.run_id, "ttft_ms")) == 1
    assert versions_of(name) == [1]


@pytest.mark.slow
def test_who_is_slower_does_not_take_the_alias_back(name: str, log_it: LogIt) -> None:
    slow, fast, newer = log_it(), log_it(), log_it("newer")
    with while_reading_back(lambda: (publish(fast), publish(newer))):
        published = publish(slow)

    assert (published.version, published.model.model_id) == (1, slow.model_id)
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)


@pytest.mark.slow
def test_who_gets_the_alias_meanwhile_is_the_one_that_is_superseded(name: str, log_it: LogIt) -> None:
    publish(log_it("first"))
    with while_reading_back(lambda: publish(log_it("meanwhile"))):
        slow = publish(log_it("slow"))

    assert (slow.version, holder_of(name)) == (2, 2)
    tags = {number: MlflowClient().get_model_version(name, str(number)).tags for number in (1, 2, 3)}
    assert (tags[1]["slmpack.superseded_by"], tags[3]["slmpack.superseded_by"]) == ("3", "2")
    assert "slmpack.superseded_by" not in tags[2]
    assert "Against version 3" in slow.summary


@pytest.mark.slow
def test_another_publishers_version_with_other_bytes_is_not_ours_to_complete(name: str, log_it: LogIt) -> None:
    killed, ours = log_it(), log_it()
    with while_reading_back(_lose_the_connection), pytest.raises(ConnectionError):
        publish(killed)
    flip_a_bit(killed)

    published = publish(ours)

    assert (published.version, published.model) == (2, ours)
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)
    assert publish(ours).version == 2
    found = find_published(name, ours.digest, ALIAS)
    assert found is not None
    assert found.version == 2


@pytest.mark.slow
def test_model_that_is_not_served_as_it_was_built_leaves_no_version(name: str, log_it: LogIt) -> None:
    model = log_it()
    flip_a_bit(model)

    with pytest.raises(CheckError, match=r"artifacts/package/model\.onnx\.data"):
        publish(model)

    assert versions_of(name) == []
    assert find_published(name, model.digest, ALIAS) is None
    run = MlflowClient().get_run(model.run_id)
    assert run.info.status == "FAILED"
    assert "model.onnx.data" in run.data.tags["slmpack.refused"]
    assert publish(log_it()).model.model_id != model.model_id  # logged again, it is published


@pytest.mark.slow
def test_published_version_that_changed_since_is_not_taken_away(name: str, log_it: LogIt) -> None:
    first, second = log_it(), log_it()
    publish(first)
    MlflowClient().delete_registered_model_alias(name, ALIAS)
    flip_a_bit(first)

    with pytest.raises(CheckError):
        publish(first)
    assert versions_of(name) == [1]
    assert MlflowClient().get_run(first.run_id).info.status == "FINISHED"

    assert publish(second).version == 2
    assert (versions_of(name), holder_of(name)) == ([1, 2], 2)


@pytest.mark.slow
def test_version_whose_files_are_gone_does_not_count(name: str, log_it: LogIt) -> None:
    lost = log_it()
    publish(lost)
    location = MlflowClient().get_logged_model(lost.model_id).artifact_location
    shutil.rmtree(location.removeprefix("file://"))

    assert find_published(name, lost.digest, ALIAS) is None
    assert publish(log_it()).version == 2
    assert holder_of(name) == 2


@pytest.mark.slow
def test_six_publishers_at_once_end_with_one_version(name: str, log_it: LogIt) -> None:
    models = [log_it() for _ in range(6)]
    run = subprocess.run(
        [sys.executable, str(HARNESS / "publishers.py"), mlflow.get_tracking_uri()],
        input="\n".join(proofs_of(model).model_dump_json() for model in models),
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    (version,) = versions_of(name)
    assert run.stdout.split() == [str(version)] * 6, run.stdout
    assert holder_of(name) == version
    found = find_published(name, models[0].digest, ALIAS)
    assert found is not None
    assert found.version == version
    statuses = {MlflowClient().get_run(model.run_id).info.status for model in models}
    assert statuses == {"FINISHED"}


@pytest.mark.slow
def test_refused_model_says_why_and_is_not_registered(name: str, log_it: LogIt) -> None:
    model = log_it()

    mark_refused(model, "no answer\nat all")

    run = MlflowClient().get_run(model.run_id)
    assert (run.info.status, run.data.tags["slmpack.refused"]) == ("FAILED", "no answer at all")
    assert MlflowClient().get_logged_model(model.model_id).tags["slmpack.refused"] == "no answer at all"
    with pytest.raises(MlflowException, match="not found"):
        MlflowClient().get_registered_model(name)


@pytest.mark.slow
def test_refused_model_that_is_proved_later_is_published_like_any_other(name: str, log_it: LogIt) -> None:
    model = log_it()
    mark_refused(model, "no answer")

    assert publish(model).version == 1

    run = MlflowClient().get_run(model.run_id)
    assert (run.info.status, run.data.tags["slmpack.version"]) == ("FINISHED", "1")
    assert "slmpack.refused" not in run.data.tags
    assert "slmpack.refused" not in MlflowClient().get_logged_model(model.model_id).tags


@pytest.mark.slow
def test_figures_of_a_refused_model_are_kept(name: str, log_it: LogIt) -> None:
    model = log_it()

    mark_refused(model, "perplexity ratio 1.30; at most 1.10", SPEED, QUALITY)

    metrics = MlflowClient().get_run(model.run_id).data.metrics
    assert (metrics["ttft_ms"], metrics["mean_kl"], metrics["new_loops"]) == (34.0, 0.04, 0.0)
    logged = MlflowClient().get_logged_model(model.model_id).metrics
    assert logged is not None
    assert {metric.key: metric.value for metric in logged} == metrics
    assert versions_of(name) == []


@pytest.mark.parametrize("bad", ["", " ", "a/b", "a:b", "it's", "../x", "m-123", "a" * 201, "tab\tname", " padded"])
def test_name_that_mlflow_could_not_serve_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        check_name(bad)


@pytest.mark.parametrize("good", ["smollm2-135m-instruct", "Phi 3.5", "größe_1", "a+b"])
def test_name_that_mlflow_takes_is_kept(good: str) -> None:
    check_name(good)
