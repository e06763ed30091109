"""Graph: what onnx and genai_config.json say of a package is true, with no provider at all."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from slmpack.errors import CheckError
from slmpack.log.chat_model import IntegrityError, read_config
from slmpack.machine.json_file import read_json, write_json
from slmpack.prove.onnx_graph import GraphRequest, read_graph
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


HOSTILE_KEYS: dict[str, Any] = {
    "model.decoder.session_options.custom_ops_library": "evil.so",
    "model.decoder.session_options.provider_options": [{"cuda": {"library": "evil.so"}}],
    "model.decoder.session_options.config_entries": {"ep.share_ep_contexts": "1"},
    "model.decoder.pipeline": [{"x": {"filename": "../other.onnx"}}],
    "model.vision": {"filename": "/etc/passwd"},
    "model.decoder.inputs.x": "y",
    "engine": {},
}


@pytest.mark.parametrize("place", HOSTILE_KEYS)
def test_a_key_that_no_build_writes_is_refused_by_graph_check_and_wrapper(package: Path, place: str) -> None:
    *path, last = place.split(".")
    config = inside = read_json(package / "genai_config.json")
    for key in path:
        inside = inside[key]
    inside[last] = HOSTILE_KEYS[place]
    write_json(package / "genai_config.json", config)
    named = re.escape(place) if last != "provider_options" else "provider_options.cuda.library"
    with pytest.raises(CheckError, match=rf"^graph: genai_config.json has .* at '.*{named}'; only what a build writes"):
        check(package)
    with pytest.raises(IntegrityError, match=named):
        read_config(package)


@pytest.mark.parametrize("filename", ["../model.onnx", "/tmp/model.onnx", "a\\model.onnx", "..", ""])
def test_a_graph_outside_the_package_is_refused(package: Path, filename: str) -> None:
    change(package, "filename", filename)
    with pytest.raises(CheckError, match="filename"):
        check(package)


def edit_graph(package: Path, edit: Callable[[Any], object]) -> None:
    model = onnx.load(str(package / "model.onnx"), load_external_data=False)
    edit(model)
    (package / "model.onnx").write_bytes(model.SerializeToString())


def place_first_tensor(**place: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        tensor = next(each for each in model.graph.initializer if each.data_location == each.EXTERNAL)
        found = {entry.key: entry.value for entry in tensor.external_data} | place
        del tensor.external_data[:]
        for key, value in found.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def hide_in_a_body(model: Any) -> None:
    """Put a constant whose data lie elsewhere into the body of an If."""
    tensor = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location="EXTERNAL")
    tensor.external_data.add(key="location", value="../secret")
    constant = onnx.helper.make_node("Constant", [], ["hidden"], value=tensor)
    body = onnx.helper.make_graph([constant], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["logits"], ["out"], then_branch=body, else_branch=body))


def use_another_library(model: Any) -> None:
    model.graph.node[0].domain = "evil.ops"


@pytest.mark.parametrize(("edit", "message"), [
    (place_first_tensor(location="../model.onnx.data"), r"lies in \.\./model\.onnx\.data; a file of the package"),
    (place_first_tensor(location="/etc/hostname"), "lies in /etc/hostname"),
    (place_first_tensor(offset="-4096"), "has the offset '-4096'; a whole number of bytes"),
    (place_first_tensor(length="-1"), "has the length '-1'"),
    (place_first_tensor(length="0"), "has 0 bytes in model.onnx.data; the [0-9,]+ of its shape"),
    (place_first_tensor(length="1e3"), "has the length '1e3'"),
    (hide_in_a_body, "hidden inside a node lies in another file; an initialiser"),
    (use_another_library, "is of the operator domain 'evil.ops'; one of ''"),
])  # fmt: skip
def test_a_graph_that_reaches_out_of_the_package_is_refused(
    package: Path, edit: Callable[[Any], object], message: str
) -> None:
    edit_graph(package, edit)
    with pytest.raises(CheckError, match=message):
        check(package)


def test_weights_behind_a_link_are_refused(package: Path, tmp_path: Path) -> None:
    (package / "model.onnx.data").rename(tmp_path / "data")
    (package / "model.onnx.data").symlink_to(tmp_path / "data")
    with pytest.raises(CheckError, match=r"lies in model\.onnx\.data; a file of the package"):
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
