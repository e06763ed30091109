"""Graph: `model.onnx` of a package is a valid ONNX graph, and is the one that `genai_config.json` speaks of.

    model.onnx --onnx.checker--> nodes, types, shapes        genai_config.json --> names and sizes of inputs and outputs
               --every tensor's place--> model.onnx.data, inside the package and inside the file

No provider is needed for it, so it holds for hardware that this machine lacks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.child import run_in_child
from slmpack.errors import CheckError
from slmpack.json_file import read_json
from slmpack.records import Check, Record

if TYPE_CHECKING:
    from onnx import ModelProto

GRAPH_LIMIT_SECONDS = 600.0
ADVICE = "build the package again"
RUNTIME_DOMAIN = "com.microsoft"


class GraphRequest(Record):
    """The ONNX Runtime GenAI folder to look at."""

    package: Path


def check_graph(package: Path, log: Path) -> Check:
    """Check the graph of a package; no weight is read.

    Raises:
        CheckError: what does not hold.
    """
    check, _ = run_in_child(
        read_graph, GraphRequest(package=package), log=log, limit_seconds=GRAPH_LIMIT_SECONDS, failure=CheckError,
        doing="the check of the graph",
    )  # fmt: skip
    return check


def read_graph(request: GraphRequest) -> Check:
    """Run in a child.

    Raises:
        CheckError: as `check_graph`.
    """
    import onnx

    config = read_json(request.package / "genai_config.json")["model"]
    path = request.package / config["decoder"]["filename"]
    try:
        model = onnx.load(str(path), load_external_data=False)
        tensors = list(_places(model, request.package))
        _name_runtime_operators(model)
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise _refusal(" ".join(str(error).split())[:300], "a valid ONNX graph") from error
    _compare_values(model, config)
    return Check(
        name="graph", found=f"{len(model.graph.node)} nodes, {len(tensors)} tensors beside them, ONNX's checker"
    )


def _refusal(found: str, expected: str) -> CheckError:
    return CheckError(f"graph: {found}", expected, ADVICE)


def _places(model: "ModelProto", package: Path) -> Iterator[str]:
    """Yield every tensor that lies in another file, having looked that it lies in the package and within that file."""
    for tensor in model.graph.initializer:
        if tensor.data_location != tensor.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        file = package / place["location"]
        if file.resolve().parent != package.resolve() or not file.is_file():
            raise _refusal(f"{tensor.name} lies in {place['location']}", "a file of the package")
        end = int(place.get("offset", 0)) + int(place.get("length", 0))
        if end > file.stat().st_size:
            raise _refusal(f"{tensor.name} ends at byte {end:,} of {file.name}", f"at most {file.stat().st_size:,}")
        yield tensor.name


def _without_weights(model: "ModelProto") -> "ModelProto":
    """Return the model with inputs in the place of tensors in other files: ONNX looks for those where we are.

    Shapes of what lies between inputs and outputs are left out, since the builder's are not right: it gives a list of
    numbers the shape of a single one.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    outside = [tensor for tensor in bare.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    for tensor in outside:
        bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        bare.graph.initializer.remove(tensor)
    return bare


def _name_runtime_operators(model: "ModelProto") -> None:
    """Put ONNX Runtime's own operators into its domain, where ONNX looks at no operator.

    It has some in ONNX's domain, such as SimplifiedLayerNormalization. Source: onnxruntime, contrib_ops.
    """
    import onnx

    for node in model.graph.node:
        if node.domain == "" and not onnx.defs.has(node.op_type):
            node.domain = RUNTIME_DOMAIN
    if all(each.domain != RUNTIME_DOMAIN for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(RUNTIME_DOMAIN, 1))


def _compare_values(model: "ModelProto", config: dict[str, Any]) -> None:
    """Compare inputs and outputs with what genai_config.json calls them: caches by its heads, logits by its rows."""
    decoder = config["decoder"]
    values = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    heads, size = decoder["num_key_value_heads"], decoder["head_size"]
    for kind, names in (("past", decoder["inputs"]), ("present", decoder["outputs"])):
        for layer in range(decoder["num_hidden_layers"]):
            for part in ("key", "value"):
                shape = _shape_of(values, names[f"{kind}_{part}_names"].replace("%d", str(layer)))
                if len(shape) != 4 or shape[1] not in (heads, None) or shape[3] not in (size, None):
                    raise _refusal(f"layer {layer}'s {kind} {part} is {shape}", f"{heads} heads of {size}")
    if _shape_of(values, decoder["outputs"]["logits"])[-1] not in (config["vocab_size"], None):
        raise _refusal(f"logits of {values[decoder['outputs']['logits']][-1]} tokens", f"{config['vocab_size']}")
    _shape_of(values, decoder["inputs"]["input_ids"])


def _shape_of(values: dict[str, list[int | None]], name: str) -> list[int | None]:
    if name not in values:
        raise _refusal(f"genai_config.json names {name!r}", f"one of {', '.join(sorted(values)[:6])} ...")
    return values[name]


def _shape(value: Any) -> list[int | None]:
    """Return the sizes of a value, None for one that depends on the request."""
    dimensions = value.type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") else None for size in dimensions]
