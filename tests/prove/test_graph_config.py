"""genai_config.json: what the check of the graph needs is there and of its type, or is refused by its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fuzzed_parsers import genai_config
from onnx import TensorProto, helper

from slmpack.errors import CheckError
from slmpack.machine.json_file import read_json, write_json
from slmpack.prove.onnx_graph import GraphRequest, read_graph


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A configuration and a graph of one layer."""
    parser = genai_config(tmp_path)
    parser.file.write_bytes(parser.whole)
    return tmp_path


def test_a_small_package_holds(package: Path) -> None:
    assert read_graph(GraphRequest(package=package)).found.startswith("3 nodes, ")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("decoder.num_hidden_layers", "1"), ("decoder.num_hidden_layers", 10**9), ("decoder.head_size", None),
        ("decoder.inputs.input_ids", ["x"]), ("decoder.outputs.present_key_names", 7), ("vocab_size", None),
    ],
)  # fmt: skip
def test_a_value_that_no_build_writes_is_refused_by_its_place(package: Path, place: str, value: Any) -> None:
    config = inside = read_json(package / "genai_config.json")
    for key in ("model", *place.split(".")[:-1]):
        inside = inside[key]
    inside[place.rsplit(".", maxsplit=1)[-1]] = value
    if value is None:
        del inside[place.rsplit(".", maxsplit=1)[-1]]
    write_json(package / "genai_config.json", config)
    with pytest.raises(CheckError, match=rf"^graph: genai_config\.json has .* at 'model\.{place}'; only what a build"):
        read_graph(GraphRequest(package=package))


def edit_graph(package: Path, edit: Callable[[Any], object]) -> None:
    model = onnx.load(package / "model.onnx")
    edit(model)
    onnx.save(model, package / "model.onnx")


def add_matrix(values: int, scales: int = 16 * 4) -> Callable[[Any], None]:
    """Return an edit that adds a matrix of 4 bits, 16 x 128 in blocks of 32, whose tensors have so many values."""

    def edit(model: Any) -> None:
        sizes: dict[str, Any] = {"K": 128, "N": 16, "bits": 4, "block_size": 32}
        model.graph.initializer.append(helper.make_tensor("B", TensorProto.UINT8, [values], [0] * values))
        model.graph.initializer.append(helper.make_tensor("scales", TensorProto.FLOAT, [scales], [0.0] * scales))
        inputs = ["past.0.key", "B", "scales"]
        model.graph.node.append(helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **sizes))

    return edit


def test_a_matrix_of_its_size_holds(package: Path) -> None:
    edit_graph(package, add_matrix(16 * 4 * 16))
    read_graph(GraphRequest(package=package))


@pytest.mark.parametrize(("edit", "told"), [
    (add_matrix(1), "B has 1 values; the 1,024 of 16 x 128 in blocks of 32"),
    (add_matrix(16 * 4 * 16, scales=1), "scales has 1 values; the 64 of 16 x 128 in blocks of 32"),
])  # fmt: skip
def test_a_matrix_that_would_be_read_beyond_its_end_is_refused(
    package: Path, edit: Callable[[Any], object], told: str
) -> None:
    edit_graph(package, edit)
    with pytest.raises(CheckError, match=f"^graph: {told}; "):
        read_graph(GraphRequest(package=package))


def nest_functions(model: Any) -> None:
    """Let each of 3,000 functions call the next: the runtime overflows its stack over them."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model.opset_import.append(opsets[1])
    for number in range(3000):
        inner = helper.make_node(f"f{number + 1}", ["x"], ["y"], domain="com.microsoft")
        model.functions.append(helper.make_function("com.microsoft", f"f{number}", ["x"], ["y"], [inner], opsets))
    model.graph.node.append(helper.make_node("f0", ["past.0.key"], ["z"], domain="com.microsoft"))


def hide_in_a_function(model: Any) -> None:
    """Put a constant whose data lie elsewhere into a function that nothing calls."""
    tensor = TensorProto(name="hidden", data_type=1, dims=[1], data_location="EXTERNAL")
    tensor.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("com.microsoft", "f", [], ["y"], [constant], opsets))


@pytest.mark.parametrize(("edit", "told"), [
    (nest_functions, "Function call chain depth exceeds limit"),
    (hide_in_a_function, "hidden inside a node lies in another file; an initialiser"),
])  # fmt: skip
def test_functions_that_nest_without_end_or_hide_data_are_refused(
    package: Path, edit: Callable[[Any], object], told: str
) -> None:
    edit_graph(package, edit)
    with pytest.raises(CheckError, match=f"^graph: .*{told}"):
        read_graph(GraphRequest(package=package))


def test_a_graph_that_is_none_is_refused(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckError, match=r"^graph: .*; a valid ONNX graph; "):
        read_graph(GraphRequest(package=package))
