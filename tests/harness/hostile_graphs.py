"""Packages that no build writes, with manifests that fit: edits of the graph, each with a part of what refuses it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from slmpack.log.staging import staged_model
from slmpack.machine.store import MANIFEST, Manifest, digest_files
from slmpack.records import Interface, Package

Edit = Callable[[Any], object]
FUNCTIONS = 3000  # nested so deep, they overflow the stack of onnxruntime 1.31.1


def stage_model(package: Package, workspace: Path, folder: Path) -> Path:
    """Return `folder`, having written there what would be logged of a package; its package may be changed."""
    with staged_model(package, Interface.CHAT, "small", "0" * 64, workspace) as staged:
        shutil.copytree(staged, folder)
    for path in (folder / "artifacts/package", *(folder / "artifacts/package").iterdir()):
        path.chmod(0o755)
    return folder


def seal(folder: Path) -> None:
    """Give a folder a manifest that fits what is in it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / MANIFEST).write_text(Manifest(files=digest_files(folder, "test"), facts={}).model_dump_json())


def edit_graph(package: Path, edit: Edit) -> None:
    """Change the graph of a package; its weights stay where they are."""
    path = package / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    edit(model)
    path.unlink()  # it may be a second name of the file of another package
    path.write_bytes(model.SerializeToString())


def elsewhere(**place: str) -> TensorProto:
    """Return a tensor whose values are in another file."""
    tensor = TensorProto(name="hidden", data_type=1, dims=[1], data_location="EXTERNAL")
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def nest_functions(model: Any) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    for number in range(FUNCTIONS):
        inner = helper.make_node(f"f{number + 1}", ["x"], ["y"], domain="com.microsoft")
        model.functions.append(helper.make_function("com.microsoft", f"f{number}", ["x"], ["y"], [inner], opsets))
    model.graph.node.append(helper.make_node("f0", [model.graph.input[0].name], ["z"], domain="com.microsoft"))


def nest_bodies(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [])
    for _ in range(20):
        body = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=body)], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body))


def use_a_library(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Run", ["x"], ["y"], domain="evil.ops")], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["x", "x"], ["y"], body=body))


def train(model: Any) -> None:
    model.training_info.add().algorithm.initializer.append(elsewhere(location="/etc/passwd"))


def place(**where: str) -> Edit:
    return lambda model: model.graph.initializer.append(elsewhere(**where))


def place_in_constant(model: Any) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["y"], value=elsewhere(location="model.onnx")))


def place_in_body(model: Any) -> None:
    body = helper.make_graph([], "body", [], [], [elsewhere(location="model.onnx")])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body))


def place_in_sparse(model: Any) -> None:
    sparse = onnx.SparseTensorProto(dims=[1])
    sparse.values.CopyFrom(elsewhere(location="model.onnx"))
    model.graph.sparse_initializer.append(sparse)


def place_in_loops(model: Any) -> None:
    """Put a constant whose data lie elsewhere into the body of a Scan in the body of a Loop in that of an If."""
    constant = helper.make_node("Constant", [], ["y"], value=elsewhere(location="model.onnx"))
    body = helper.make_graph([constant], "body", [], [])
    for kind, name in (("Scan", "body"), ("Loop", "body"), ("If", "else_branch")):
        body = helper.make_graph([helper.make_node(kind, ["x"], ["y"], **{name: body})], "body", [], [])
    model.graph.node.extend(body.node)


def place_twice(model: Any) -> None:
    tensor = elsewhere(location="model.onnx")
    tensor.external_data.add(key="location", value="../secret")
    model.graph.initializer.append(tensor)


HOSTILE: dict[str, tuple[Edit, str]] = {
    "functions": (nest_functions, "has functions or training of its own"),
    "training": (train, "has functions or training of its own"),
    "bodies": (nest_bodies, "has graphs within graphs, 9 deep"),
    "a library": (use_a_library, "has an operator of the domain 'evil.ops'"),
    "above": (place(location="../model.onnx"), r"has values in the file '\.\./model\.onnx'"),
    "absolute": (place(location="/etc/passwd"), "has values in the file '/etc/passwd'"),
    "no place": (place(), "has values in the file ''"),
    "missing": (place(location="other.data"), "has values in other.data, which is no file of the package"),
    "beyond": (place(location="model.onnx", length="999999999"), r"has values beyond the end of model\.onnx"),
    "negative": (place(location="model.onnx", offset="-8"), "'-8' where a number of bytes is expected"),
    "constant": (place_in_constant, r"has values in the file 'model\.onnx'"),
    "body": (place_in_body, r"has values in the file 'model\.onnx'"),
    "sparse": (place_in_sparse, r"has values in the file 'model\.onnx'"),
    "loops": (place_in_loops, r"has values in the file 'model\.onnx'"),
    "a folder": (place(location="more/model.data"), "has values in the file 'more/model.data'"),
    "memory": (place(location="*/_ORT_MEM_ADDR_/*", offset="4096"), r"has values in the file '\*/_ORT_MEM_ADDR_/\*'"),
    "another key": (place(location="model.onnx", prepacked_0="x|0;8"), "by keys such as 'prepacked_0'"),
    "a long name": (place(location="m" * 2000), "is no ONNX graph .a name of 2000 bytes"),
    "twice": (place_twice, r"has values in the file '\.\./secret'"),
}
