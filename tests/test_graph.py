"""Graph: what onnx and genai_config.json say of a package is true, with no provider at all."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from slmpack.errors import CheckError
from slmpack.graph import GraphRequest, read_graph
from slmpack.json_file import read_json, write_json
from slmpack.records import Package

pytestmark = pytest.mark.slow


@pytest.fixture
def package(tiny_package: Package, tmp_path: Path) -> Path:
    """A package of the test's own, to be damaged."""
    shutil.copytree(tiny_package.path, tmp_path / "package")
    for path in (tmp_path / "package").iterdir():
        path.chmod(0o644)
    return tmp_path / "package"


def check(package: Path) -> str:
    return read_graph(GraphRequest(package=package)).found


def change(package: Path, section: str, value: Any) -> None:
    config = read_json(package / "genai_config.json")
    inside = config["model"] if section == "vocab_size" else config["model"]["decoder"]
    inside[section] = value
    write_json(package / "genai_config.json", config)


def test_a_package_as_it_was_built_holds(package: Path) -> None:
    assert check(package).endswith("ONNX's checker")


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("num_key_value_heads", 3, "layer 0's past key is .*; 3 heads of 32"),
        ("num_hidden_layers", 3, "genai_config.json names 'past_key_values.2.key'"),
        ("vocab_size", 7, "logits of 49152 tokens; 7"),
    ],
)
def test_a_configuration_that_the_graph_does_not_have_is_refused(
    package: Path, section: str, value: int, told: str
) -> None:
    change(package, section, value)
    with pytest.raises(CheckError, match=told):
        check(package)


def test_weights_that_end_too_early_are_refused(package: Path) -> None:
    with (package / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckError, match=r"ends at byte .* of model.onnx.data; at most 1,000"):
        check(package)


def test_weights_outside_the_package_are_refused(package: Path, tmp_path: Path) -> None:
    shutil.move(package / "model.onnx.data", tmp_path / "elsewhere")
    (package / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckError, match=r"lies in model.onnx.data; a file of the package"):
        check(package)


def test_a_node_that_is_no_operator_of_its_domain_is_refused(package: Path) -> None:
    import onnx

    model = onnx.load(str(package / "model.onnx"), load_external_data=False)
    next(node for node in model.graph.node if node.op_type in {"Reshape", "Cast"}).input.pop()
    onnx.save(model, str(package / "model.onnx"))
    with pytest.raises(CheckError, match=r"graph: .*; a valid ONNX graph"):
        check(package)
