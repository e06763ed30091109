"""On a GPU: what is built for it runs on it, is proved and is published. Off unless asked for: pytest -m gpu."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from flows.package_model import package_model
from flows.verify_model import verify_model
from slmpack.machine.hardware import device_of, require_hardware, unprovable_error
from slmpack.publish.options import PackageOptions
from slmpack.records import Recipe, Snapshot, Target

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

CUDA = [(Target.CUDA_INT4, Recipe.AUTO), (Target.CUDA_FP16, Recipe.AUTO)]


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    require_hardware(Target.CUDA_FP16)


@pytest.mark.parametrize(("target", "recipe"), CUDA)
def test_a_model_is_packaged_proved_and_published_where_its_hardware_is(
    smollm2: Snapshot, target: Target, recipe: Recipe, mlflow_store: Path, workspace: Path
) -> None:
    outcome = package_model(smollm2.source.text, target, options=PackageOptions(recipe=recipe), workspace=workspace)
    assert (outcome.status, outcome.alias) == ("published", target.value)
    assert outcome.speed is not None
    tags = MlflowClient().get_model_version(str(outcome.name), str(outcome.version)).tags
    assert tags["slmpack.device"] == device_of("cuda").name
    model = mlflow.pyfunc.load_model(str(outcome.model_uri))
    assert model.unwrap_python_model().device == "cuda"
    answer = model.predict({"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_what_was_left_unproved_elsewhere_is_verified_here(
    smollm2: Snapshot, mlflow_store: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_driver:
        without_driver.setenv("PATH", str(tmp_path))
        assert unprovable_error(Target.CUDA_FP16) is not None
        left = package_model(smollm2.source.text, Target.CUDA_FP16, workspace=workspace)
    assert left.status == "unproved"
    verified = verify_model(str(left.model_uri), workspace=workspace)
    assert (verified.status, verified.alias) == ("published", "cuda-fp16")
