"""Log a checkpoint: a snapshot becomes a logged model without a build."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from slmpack.build.build import build_package
from slmpack.errors import SourceError
from slmpack.log.checkpoint import log_checkpoint
from slmpack.log.log import logged_digest
from slmpack.log.transfer import receive_snapshot
from slmpack.records import Interface, Original, Snapshot, Target

pytestmark = pytest.mark.slow


def test_a_checkpoint_is_logged_as_the_package_that_a_build_returns_and_its_run_ends(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path
) -> None:
    model = log_checkpoint(tiny_snapshot, "tiny-phi3", workspace, {"from": "a test"})
    package = build_package(tiny_snapshot, Target.TRANSFORMERS, None, workspace)
    assert model.package == package
    assert model.digest == logged_digest(package.digest, Interface.CHAT, Target.TRANSFORMERS)
    run = MlflowClient().get_run(model.run_id)
    assert (run.info.status, run.data.tags["slmpack.from"]) == ("FINISHED", "a test")
    logged = MlflowClient().get_logged_model(model.model_id)
    assert (str(logged.status), logged.tags["slmpack.digest"]) == ("READY", model.digest)


def test_plain_weights_of_a_quantised_source_are_not_received_as_a_snapshot(
    mlflow_store: Path, tiny_snapshot: Snapshot, workspace: Path, tmp_path: Path
) -> None:
    original = Original(form="GPTQ, 4 bits, groups of 32", bits=4, version=1)
    model = log_checkpoint(tiny_snapshot.model_copy(update={"original": original}), "tiny-phi3", workspace, {})
    with pytest.raises(SourceError, match=r"has the plain weights of tiny-phi3, without its codes \(GPTQ, 4 bits"):
        receive_snapshot(model.uri, tmp_path / "elsewhere")
