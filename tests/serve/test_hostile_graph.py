"""Packages that the runtime should not be given, with manifests that fit them: nobody opens one."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from command_line import SLMPACK, environment
from hostile_graphs import edit_graph, nest_functions, place, place_in_body, seal, stage_model, use_a_library

from slmpack.records import Package

pytestmark = pytest.mark.slow


def name_by_percent(package: Path) -> None:
    """Let the runtime format a name of keys by C's %s, which ends the process."""
    config: Any = json.loads((package / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"]["past_key_names"] = "past.%s.key"
    (package / "genai_config.json").write_text(json.dumps(config))


def empty(package: Path) -> None:
    (package / "genai_config.json").write_text("{}")


def link_weights(package: Path) -> None:
    (package / "model.onnx.data").rename(package.parents[2] / "data")
    (package / "model.onnx.data").symlink_to(package.parents[2] / "data")


def link_artifacts(package: Path) -> None:
    artifacts = package.parent
    artifacts.rename(artifacts.parents[1] / "elsewhere")
    artifacts.symlink_to(artifacts.parents[1] / "elsewhere")


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "functions": (lambda package: edit_graph(package, nest_functions), "has functions or training of its own"),
    "a library": (lambda package: edit_graph(package, use_a_library), "has an operator of the domain 'evil.ops'"),
    "outside": (lambda package: edit_graph(package, place(location="../x")), "has values in the file '../x'"),
    "a body": (lambda package: edit_graph(package, place_in_body), "has values in the file 'model.onnx'"),
    "a format": (name_by_percent, "'past.%s.key' at 'model.decoder.inputs.past_key_names'"),
    "no config": (empty, "genai_config.json has None at 'model'"),
    "a link": (link_weights, "model.onnx.data is a link"),
    "a linked parent": (link_artifacts, "artifacts is a link"),
}


@pytest.fixture(scope="module")
def model(small_package: Package, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logged model of the tests' own."""
    return stage_model(small_package, workspace, tmp_path_factory.mktemp("logged") / "model")


@pytest.mark.parametrize("name", PLANTED)
def test_a_consumer_gets_an_error_in_a_line_and_no_crash(model: Path, tmp_path: Path, name: str) -> None:
    hostile = shutil.copytree(model, tmp_path / "model")
    plant, found = PLANTED[name]
    plant(hostile / "artifacts/package")
    seal(hostile / "artifacts/package")
    with pytest.raises(RuntimeError, match=r"^(?!.*\n)") as told:
        mlflow.pyfunc.load_model(str(hostile))
    assert type(told.value).__name__ == "IntegrityError"
    assert found in str(told.value)


@pytest.mark.parametrize("name", ["functions", "a format", "a linked parent"])
def test_commands_refuse_it_in_a_line(model: Path, tmp_path: Path, name: str) -> None:
    hostile = shutil.copytree(model, tmp_path / "model")
    plant, found = PLANTED[name]
    plant(hostile / "artifacts/package")
    seal(hostile / "artifacts/package")
    for words in (["chat", str(hostile), "Hello"], ["serve", str(hostile), "--port", "0"]):
        done = subprocess.run(
            [SLMPACK, *words], env=environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert f"{hostile} is damaged: " in last
        assert found in last
        assert "Traceback" not in done.stderr
