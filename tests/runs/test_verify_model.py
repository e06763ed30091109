"""Verify: a logged model is proved again; only what holds is published, and what was published stays as it is."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from checkpoints import SMALL_VOCABULARY, write_mute_phi3
from command_line import objects, slmpack
from mlflow import MlflowClient

from flows.package_model import package_model
from flows.verify_model import verify_model
from slmpack.build.build import build_package
from slmpack.errors import CheckError, LicenceError, SmokeError
from slmpack.log.health import UNHEALTHY
from slmpack.log.log import log_model
from slmpack.publish.options import ProofOptions
from slmpack.publish.outcome import verified_outcome
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import publish_version
from slmpack.publish.rollback import read_version
from slmpack.records import Interface, LoggedModel, Package, Recipe, Target
from slmpack.reports import (
    Check,
    LicencePolicy,
    Outcome,
    QualityPolicy,
    QualityReport,
    SmokeReport,
    Speed,
    UnknownLicence,
    ValidationReport,
)
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source
from tasks.outcome import read_outcome

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(scope="module")
def published(store: Path, steady_phi3: Path, workspace: Path, prefect_api: str) -> Outcome:
    return package_model(str(steady_phi3), workspace=workspace)


def everything(name: str) -> dict[str, Any]:
    """Return all that MLflow has of a registered model: versions, aliases, logged models, runs and their figures."""
    client = MlflowClient()
    versions = client.search_model_versions(f"name = '{name}'")
    runs = [client.get_run(str(version.run_id)) for version in versions]
    models = [client.get_logged_model(version.tags["slmpack.model_id"]) for version in versions]
    metrics = [client.get_metric_history(run.info.run_id, metric) for run in runs for metric in run.data.metrics]
    return {
        "aliases": client.get_registered_model(name).aliases,
        "versions": [(version.version, version.tags, version.description, version.aliases) for version in versions],
        "runs": [(run.info.status, run.info.end_time, run.data.tags) for run in runs],
        "models": [(str(model.status), model.tags) for model in models],
        "metrics": [(metric.key, metric.value, metric.timestamp) for history in metrics for metric in history],
    }


def test_a_published_model_holds_from_an_empty_workspace_and_nothing_moves(
    published: Outcome, steady_phi3: Path, tmp_path: Path, prefect_api: str
) -> None:
    (tmp_path / steady_phi3.name).symlink_to(steady_phi3)  # the source, found by its name in the working folder
    before = everything("steady-phi3")

    done = slmpack(
        "verify", "models:/steady-phi3/1", "--workspace", str(tmp_path / "workspace"), "--json", cwd=tmp_path,
        PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=mlflow.get_tracking_uri(),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = Outcome.model_validate(*objects(done))
    assert (found.status, found.version, found.model_uri) == ("unchanged", 1, "models:/steady-phi3/1")
    assert (found.alias, found.digest, found.size_bytes) == ("cpu-int4", published.digest, published.size_bytes)
    assert found.quality is not None
    assert published.quality is not None
    assert found.quality.model_dump() == pytest.approx(published.quality.model_dump(), rel=1e-3)
    assert found.speed != published.speed  # measured again
    assert list(found.seconds) == ["find", "restore", "smoke", "measure", "validate"]
    for check in ("one question", "perplexity ratio", "signature", "tokenizer", "clean environment"):
        assert f"holds: {check}" in done.stderr
    assert "read back: " in done.stderr
    assert "proved again: steady-phi3 version 1, alias cpu-int4" in done.stderr
    assert (tmp_path / "workspace" / "snapshots").is_dir()
    assert everything("steady-phi3") == before


def test_a_changed_byte_is_refused_by_the_command(
    published: Outcome, workspace: Path, tmp_path: Path, prefect_api: str
) -> None:
    before = everything("steady-phi3")
    model_id = before["versions"][0][1]["slmpack.model_id"]
    location = MlflowClient().get_logged_model(model_id).artifact_location
    weights = Path(location.removeprefix("file://")) / "artifacts" / "package" / "model.onnx.data"
    content = weights.read_bytes()
    weights.rename(tmp_path / "aside")
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = slmpack(
            "verify", "models:/steady-phi3@cpu-int4", "--workspace", str(workspace), "--json", cwd=tmp_path,
            PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=mlflow.get_tracking_uri(),
        )  # fmt: skip
    finally:
        (tmp_path / "aside").replace(weights)

    assert done.returncode == 1
    (outcome,) = objects(done)
    assert (outcome["status"], outcome["target"]) == ("refused", "cpu-int4")
    assert "model.onnx.data" in outcome["reason"]
    assert f"slmpack: {outcome['reason']}" in done.stderr.splitlines()
    assert "model.onnx.data" in MlflowClient().get_model_version("steady-phi3", "1").tags[UNHEALTHY]
    read_version("steady-phi3", 1)  # as it was again, and read to its end
    assert everything("steady-phi3") == before


def test_a_model_that_was_only_logged_is_published(store: Path, steady_package: Package, workspace: Path) -> None:
    model = log_model(steady_package, Interface.CHAT, "from-elsewhere", workspace, {})

    found = verify_model(model.uri, workspace=workspace)

    assert (found.status, found.name, found.version) == ("published", "from-elsewhere", 1)
    assert everything("from-elsewhere")["aliases"] == {"cpu-int4": 1}
    assert MlflowClient().get_run(model.run_id).info.status == "FINISHED"


def test_a_model_whose_licence_the_policy_refuses_is_not_restored(
    store: Path, steady_package: Package, workspace: Path, tmp_path: Path
) -> None:
    model = log_model(steady_package, Interface.CHAT, "unlicensed", workspace, {})
    options = ProofOptions(licences=LicencePolicy(unknown=UnknownLicence.REFUSE))
    with pytest.raises(LicenceError, match=f"the licence of {model.uri} is unknown; one that is known"):
        verify_model(model.uri, options, tmp_path / "workspace")
    assert not (tmp_path / "workspace" / "packages").exists()
    assert MlflowClient().search_model_versions("name = 'unlicensed'") == []


def test_the_same_again_from_another_run_moves_nothing(
    published: Outcome, steady_phi3: Path, steady_package: Package, workspace: Path
) -> None:
    twin = log_model(steady_package, Interface.CHAT, "steady-phi3", workspace, {})
    assert twin.digest == published.digest

    found = verify_model(twin.uri, workspace=workspace)

    assert (found.status, found.version) == ("unchanged", 1)
    assert everything("steady-phi3")["aliases"] == {"cpu-int4": 1}


@pytest.fixture(scope="module")
def mute(store: Path, small_tokenizer: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> LoggedModel:
    """A logged model that does not pass the smoke test."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mute"
    write_mute_phi3(folder, small_tokenizer, SMALL_VOCABULARY)
    snapshot = fetch_snapshot(resolve_source(str(folder)), workspace)
    package = build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
    return log_model(package, Interface.CHAT, "mute", workspace, {})


def test_a_model_that_was_never_published_keeps_the_reason_of_its_refusal(mute: LoggedModel, workspace: Path) -> None:
    state: Any = verify_model(mute.uri, workspace=workspace, return_state=True)
    with pytest.raises(SmokeError, match="the answer ''; some text"):
        state.result()

    kept = read_outcome(state.state_details.flow_run_id)
    assert kept is not None
    assert (kept.status, kept.target) == ("refused", Target.CPU_INT4)
    assert "the answer ''; some text" in str(kept.reason)
    unproved = Outcome(status="unproved", target=Target.CPU_INT4, reason="no GPU")
    assert verified_outcome(unproved, kept).status == "refused"
    assert MlflowClient().get_run(mute.run_id).info.status == "FAILED"
    assert "some text" in MlflowClient().get_logged_model(mute.model_id).tags["slmpack.refused"]
    assert list(MlflowClient().search_model_versions("name = 'mute'")) == []


def test_a_refusal_leaves_a_published_model_as_it_is(mute: LoggedModel, workspace: Path) -> None:
    """As on a machine where a model that was proved elsewhere does not answer."""
    speed = Speed(decode_tokens_per_second=1.0, ttft_ms=1.0, load_seconds=1.0, peak_rss_bytes=1)
    checks = (Check(name="elsewhere", found="held"),)
    proofs = Proofs(
        validation=ValidationReport(model=mute, checks=checks),
        quality=QualityReport(model=mute, quality=None, policy=QualityPolicy(), checks=checks),
        smoke=SmokeReport(model=mute, checks=checks, speed=speed),
    )
    publish_version(mute, proofs)
    before = everything("mute")
    assert [status for status, *_ in before["runs"]] == ["FINISHED"]

    with pytest.raises(SmokeError, match="the answer ''; some text"):
        verify_model("models:/mute@cpu-int4", workspace=workspace)

    assert everything("mute") == before


def test_a_model_without_its_source_is_told_and_registers_nothing(
    store: Path, steady_package: Package, workspace: Path, tmp_path: Path
) -> None:
    model = log_model(steady_package, Interface.CHAT, "orphan", workspace, {})

    with pytest.raises(CheckError, match="folder steady-phi3, which is not here"):
        verify_model(model.uri, workspace=tmp_path)

    assert MlflowClient().search_model_versions("name = 'orphan'") == []
    assert MlflowClient().get_run(model.run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify"], "MODEL_URI"),
        (["verify", "models:/steady-phi3"], "names no single logged model"),
        (["verify", "hf://a/b"], "names no single logged model"),
    ],
)
def test_bad_usage_is_one_line_and_touches_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = slmpack(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_told_before_any_work(published: Outcome, tmp_path: Path) -> None:
    done = slmpack(
        "verify", "models:/steady-phi3/1", "--waive-quality", "ok", cwd=tmp_path,
        MLFLOW_TRACKING_URI=mlflow.get_tracking_uri(),
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr.startswith("slmpack: the waiver 'ok'; a reason of at least")


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    done = slmpack("verify", "models:/nothing@cpu-int4", cwd=tmp_path)

    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("slmpack: MLflow has no models:/nothing@cpu")]
    assert "Traceback" not in done.stderr
