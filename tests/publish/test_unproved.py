"""Unproved: a package for a GPU, built, run and compared without one; it waits, and moves no alias."""

import json
from pathlib import Path

import mlflow
import pytest
from made_proofs import proofs_of
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.package_model import package_model
from flows.verify_model import verify_model
from slmpack.errors import CheckError, HardwareError, PublishError
from slmpack.log.requirements import requirements_for
from slmpack.log.restore import find_logged, restore_model
from slmpack.log.tags import facts_in
from slmpack.machine.hardware import unprovable_error
from slmpack.prove.clean_environment.check import check_resolution
from slmpack.publish.options import PackageOptions
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.publish import publish_version
from slmpack.records import Device, LoggedModel, Recipe, Target
from slmpack.reports import Outcome, QualityPolicy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.skipif(unprovable_error(Target.CUDA_FP16) is None, reason="this machine has a GPU to prove it on"),
]

H100 = Device(provider="cuda", name="NVIDIA H100", driver="580.95.05", compute_capability="9.0")
RANDOM = QualityPolicy(allow_new_loops=True)  # greedy answers of random weights may go round: no dearer recipe helps
ASKED = [(Target.CUDA_INT4, Recipe.AUTO), (Target.CUDA_FP16, Recipe.AUTO)]


@pytest.fixture(scope="module")
def outcomes(store: Path, steady_phi3: Path, workspace: Path, prefect_api: str) -> list[Outcome]:
    return [
        package_model(
            str(steady_phi3), target, options=PackageOptions(recipe=recipe, policy=RANDOM), workspace=workspace
        )
        for target, recipe in ASKED
    ]


def model_of(outcome: Outcome, workspace: Path) -> LoggedModel:
    return restore_model(str(outcome.model_uri), workspace)


def test_it_is_logged_with_its_figures_and_nothing_is_registered(outcomes: list[Outcome]) -> None:
    client = MlflowClient()
    for outcome in outcomes:
        assert (outcome.status, outcome.version, outcome.alias, outcome.speed) == ("unproved", None, None, None)
        assert outcome.quality is not None
        assert 0.9 < outcome.quality.perplexity_ratio < 1.1
        assert f"target {outcome.target} needs an NVIDIA GPU" in str(outcome.reason)
        assert f"slmpack verify {outcome.model_uri}" in str(outcome.reason)
        logged = client.get_logged_model(str(outcome.model_uri).removeprefix("models:/"))
        assert str(logged.status) == "READY"
        assert logged.tags["slmpack.unproved"] == "cuda"
        run = client.get_run(str(logged.source_run_id))
        assert (run.info.status, "decode_tokens_per_second" in run.data.metrics) == ("FINISHED", False)
        checked = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/proof/unproved.json"))
        names = [row["check"] for row in checked]
        assert {"graph", "token ids", "chat template", "clean environment resolves", "prediction"} <= set(names)
    with pytest.raises(MlflowException, match=r"not found"):
        client.get_registered_model("steady-phi3")


def test_the_same_request_finds_it_again_and_builds_nothing(
    outcomes: list[Outcome], steady_phi3: Path, tmp_path: Path
) -> None:
    for (target, recipe), before in zip(ASKED, outcomes, strict=True):
        again = package_model(
            str(steady_phi3), target, options=PackageOptions(recipe=recipe, policy=RANDOM), workspace=tmp_path
        )
        assert again.model_dump(exclude={"seconds"}) == before.model_dump(exclude={"seconds"})
        assert list(again.seconds) == ["resolve", "find"]


def test_a_machine_without_the_hardware_says_so_before_it_downloads_anything(
    outcomes: list[Outcome], tmp_path: Path
) -> None:
    with pytest.raises(HardwareError, match=r"target cuda-int4 cannot be proved here: this machine has no usable GPU"):
        verify_model(str(outcomes[0].model_uri), workspace=tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_the_wrapper_answers_on_a_cpu_only_if_it_is_asked_to(outcomes: list[Outcome]) -> None:
    uri = str(outcomes[1].model_uri)
    with pytest.raises(Exception, match=r"execution_provider cuda: .*an NVIDIA GPU with its driver is expected"):
        mlflow.pyfunc.load_model(uri)
    model = mlflow.pyfunc.load_model(uri, model_config={"execution_provider": "cpu", "max_tokens": 3})
    assert model.unwrap_python_model().device == "cpu"
    answer = model.predict({"messages": [{"role": "user", "content": "Hi"}]})
    assert answer["usage"]["completion_tokens"] == 3
    with pytest.raises(Exception, match=r"execution_provider: 'gpu' was found; 'cpu' or 'cuda' is expected"):
        mlflow.pyfunc.load_model(uri, model_config={"execution_provider": "gpu"})


def test_proofs_on_a_cpu_publish_nothing_for_a_gpu(outcomes: list[Outcome], workspace: Path) -> None:
    model = model_of(outcomes[0], workspace)
    with pytest.raises(
        PublishError, match=r"a proof of models:/m-.* on cpu; proofs on cuda, for which it is; verify it"
    ):
        publish_version(model, proofs_of(model))


def on_gpu(proofs: Proofs) -> Proofs:
    """The same reports as a machine with a GPU writes them."""
    reports = {
        name: getattr(proofs, name).model_copy(update={"device": H100}) for name in ("validation", "quality", "smoke")
    }
    return proofs.model_copy(update=reports)


def test_proofs_on_a_gpu_publish_it_and_the_next_request_finds_the_version(
    outcomes: list[Outcome], steady_phi3: Path, workspace: Path
) -> None:
    waiting = outcomes[0]
    model = model_of(waiting, workspace)
    version = publish_version(model, on_gpu(proofs_of(model)), fingerprint="small by its name")
    assert (version.alias, version.version) == ("cuda-int4", 1)
    tags = MlflowClient().get_model_version(version.name, "1").tags
    assert tags["slmpack.device"] == "NVIDIA H100"
    assert (facts_in(tags)["driver"], facts_in(tags)["compute_capability"]) == ("580.95.05", "9.0")
    assert "slmpack.unproved" not in MlflowClient().get_logged_model(model.model_id).tags
    page = mlflow.artifacts.load_text(version.page_uri)
    assert "NVIDIA H100, driver 580.95.05, compute capability 9.0" in page
    assert "one request at a time" in page
    again = package_model(
        str(steady_phi3), Target.CUDA_INT4, options=PackageOptions(policy=RANDOM), workspace=workspace
    )
    assert (again.status, again.version, list(again.seconds)) == ("unchanged", 1, ["resolve", "find"])


def test_a_requirement_that_brings_the_runtime_for_cpus_is_refused(outcomes: list[Outcome], workspace: Path) -> None:
    model = model_of(outcomes[1], workspace)
    assert check_resolution(model, workspace).found.endswith("none installed")
    location = MlflowClient().get_logged_model(model.model_id).artifact_location
    requirements = Path(location.removeprefix("file://")) / "requirements.txt"
    text = requirements.read_text()
    assert text.split() == list(requirements_for(Target.CUDA_FP16))
    requirements.unlink()
    requirements.write_text(f"{text}\nonnxruntime==1.31.1\n")
    with pytest.raises(CheckError, match=r"onnxruntime beside onnxruntime-genai-cuda; one of the two"):
        check_resolution(model, workspace)


def test_what_is_told_of_it_is_read_before_its_weights(outcomes: list[Outcome]) -> None:
    provenance = find_logged(str(outcomes[1].model_uri)).provenance
    assert (provenance.package.target, provenance.package.recipe) == (Target.CUDA_FP16, None)
