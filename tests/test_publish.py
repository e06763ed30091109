"""Publishing: one version a digest, an alias that only a proved model moves, and a registry that says why."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_server import running_mlflow_server

from slmpack import progress
from slmpack.errors import PublishError, UsageError
from slmpack.log import log_model
from slmpack.publish import (
    alias_of,
    check_name,
    find_published,
    mark_refused,
    publish_version,
    require_registry,
)
from slmpack.records import (
    Check,
    Interface,
    LoggedModel,
    Package,
    PublishedVersion,
    SmokeReport,
    Speed,
    Target,
    ValidationReport,
)
from slmpack.smoke import smoke_test
from slmpack.validate import validate_model

ALIAS = "cpu-int4"
LogIt = Callable[..., LoggedModel]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield folder
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own."""
    return str(request.node.name).replace("[", " ").replace("]", "")


@pytest.fixture
def log_it(store: Path, name: str, tiny_package: Package, workspace: Path) -> LogIt:
    """Logs the tiny package for this test; a `variant` stands for other content, hence another digest."""

    def log(variant: str = "") -> LoggedModel:
        package = tiny_package.model_copy(update={"digest": tiny_package.digest + variant})
        return log_model(package, Interface.CHAT, name, workspace, {})

    return log


def proofs(model: LoggedModel) -> tuple[ValidationReport, SmokeReport]:
    """Reports as the proving stages write them; their own tests and the one on a server make them for real."""
    checks = (Check(name="one question", found="Paris"),)
    speed = Speed(decode_tokens_per_second=12.5, ttft_ms=34.0, load_seconds=0.5, peak_rss_bytes=123_456_789)
    return ValidationReport(model=model, checks=checks), SmokeReport(model=model, checks=checks, speed=speed)


def publish(model: LoggedModel, force: bool = False) -> PublishedVersion:
    return publish_version(model, *proofs(model), force=force, trace={"prefect_run": "run-1"})


def versions_of(name: str) -> list[int]:
    return sorted(int(version.version) for version in MlflowClient().search_model_versions(f"name = '{name}'"))


def holder_of(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, ALIAS).version)


@pytest.mark.slow
def test_proved_model_becomes_a_version_with_its_facts(name: str, log_it: LogIt) -> None:
    model = log_it()

    published = publish(model)

    assert (published.version, published.alias, published.model) == (1, ALIAS, model)
    version = MlflowClient().get_model_version_by_alias(name, ALIAS)
    source = model.package.snapshot.source
    expected = {
        "digest": model.digest, "target": ALIAS, "recipe": "small", "interface": "chat", "revision": source.revision,
        "size_bytes": str(model.package.size_bytes), "mlflow_run": model.run_id, "prefect_run": "run-1",
        "decode_tokens_per_second": "12.5", "published": ALIAS,
    }  # fmt: skip
    assert {key: version.tags[f"slmpack.{key}"] for key in expected} == expected
    assert {"slmpack.licence", "slmpack.source", "slmpack.version.onnxruntime-genai"} <= version.tags.keys()
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
def test_reports_about_another_model_publish_nothing(name: str, log_it: LogIt) -> None:
    model, other = log_it(), log_it()
    (validation, smoke), (other_validation, other_smoke) = proofs(model), proofs(other)

    for pair in ((other_validation, smoke), (validation, other_smoke)):
        with pytest.raises(PublishError, match=f"a report about {other.uri}; reports about {model.uri}"):
            publish_version(model, *pair, force=False, trace={})

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
    reports = [proofs(log_it())[1] for _ in range(6)]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("publishers.py")), mlflow.get_tracking_uri()],
        input="\n".join(report.model_dump_json() for report in reports),
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    (version,) = versions_of(name)
    assert run.stdout.split() == [str(version)] * 6, run.stdout
    assert holder_of(name) == version
    found = find_published(name, reports[0].model.digest, ALIAS)
    assert found is not None
    assert found.version == version
    statuses = {MlflowClient().get_run(report.model.run_id).info.status for report in reports}
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
def test_whole_way_over_a_server(
    tmp_path: Path, tiny_package: Package, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    with running_mlflow_server(tmp_path) as address:
        mlflow.set_tracking_uri(address)
        try:
            require_registry()
            _interrupt_an_upload(tiny_package, workspace)
            assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []

            model = log_model(tiny_package, Interface.PROMPT, "tiny", workspace, {})
            published = publish_version(
                model, validate_model(model, workspace), smoke_test(model, workspace), force=False, trace={}
            )

            alias = alias_of(Target.CPU_INT4, Interface.PROMPT)
            assert (published.version, published.alias, alias) == (1, "cpu-int4-prompt", "cpu-int4-prompt")
            assert find_published("tiny", model.digest, alias) is not None
            assert find_published("never published", model.digest, alias) is None
            assert not (tmp_path / "mlruns").exists()  # everything went through the server
        finally:
            mlflow.set_tracking_uri(before)


def _interrupt_an_upload(package: Package, workspace: Path) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.progress.stage == "log":  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    handler = Interrupt()
    progress.logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_model(package, Interface.PROMPT, "tiny", workspace, {})
    finally:
        progress.logger.removeHandler(handler)
    assert [run.info.status for run in MlflowClient().search_runs(["1"])] == ["KILLED"]
    assert list(MlflowClient().search_logged_models(["1"])) == []


@pytest.mark.parametrize("bad", ["", " ", "a/b", "a:b", "it's", "../x", "m-123", "a" * 201, "tab\tname", " padded"])
def test_name_that_mlflow_could_not_serve_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        check_name(bad)


@pytest.mark.parametrize("good", ["smollm2-135m-instruct", "Phi 3.5", "größe_1", "a+b"])
def test_name_that_mlflow_takes_is_kept(good: str) -> None:
    check_name(good)


def test_alias_says_target_and_interface() -> None:
    assert alias_of(Target.CPU_INT4, Interface.CHAT) == "cpu-int4"
    assert alias_of(Target.TRANSFORMERS, Interface.CHAT) == "transformers"
    assert alias_of(Target.CPU_INT8, Interface.PROMPT) == "cpu-int8-prompt"


@pytest.mark.parametrize("alias", ["", "latest", "v3", "a b"])
def test_alias_that_mlflow_reserves_is_refused(alias: str) -> None:
    with pytest.raises(UsageError, match="alias"):
        find_published("tiny", "0" * 64, alias)
