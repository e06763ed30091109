"""Graph: `model.onnx` of a package is a valid ONNX graph, and is the one that `genai_config.json` speaks of.

    model.onnx --onnx.checker--> nodes, types, shapes        genai_config.json --> names and sizes of inputs and outputs
               --every tensor's place--> model.onnx.data, inside the package and inside the file

No provider is needed for it, so it holds for hardware that this machine lacks.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from slmpack.errors import CheckError
from slmpack.machine.child import run_in_child
from slmpack.machine.forks import MLFLOW, forked_with
from slmpack.prove.matmul_sizes import wrong_size
from slmpack.records import Record
from slmpack.reports import Check

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

GRAPH_LIMIT_SECONDS = 600.0
ADVICE = "build the package again"
RUNTIME_DOMAIN = "com.microsoft"
OPERATOR_DOMAINS = ("", "ai.onnx", RUNTIME_DOMAIN)


class _Part(BaseModel):
    """A part of genai_config.json; what else is in it is the wrapper's to judge."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Inputs(_Part):
    input_ids: str
    past_key_names: str
    past_value_names: str


class _Outputs(_Part):
    logits: str
    present_key_names: str
    present_value_names: str


class _Decoder(_Part):
    filename: str
    head_size: int
    num_key_value_heads: int
    num_hidden_layers: int
    inputs: _Inputs
    outputs: _Outputs


class _ModelConfig(_Part):
    vocab_size: int
    decoder: _Decoder


class GraphRequest(Record):
    """The ONNX Runtime GenAI folder to look at."""

    package: Path


def check_graph(package: Path, log: Path) -> Check:
    """Check the graph of a package; no weight is read.

    Raises:
        CheckError: what does not hold.
    """
    check, _ = run_in_child(
        read_graph,
        GraphRequest(package=package),
        log=log,
        limit_seconds=GRAPH_LIMIT_SECONDS,
        failure=CheckError,
        doing="the check of the graph",
    )
    return check


@forked_with(*MLFLOW, "onnx")
def read_graph(request: GraphRequest) -> Check:
    """Run in a child.

    Raises:
        CheckError: as `check_graph`.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    config = _config_of(request.package)
    path = request.package / config.decoder.filename
    try:
        model = onnx.load(str(path), load_external_data=False)
        _require_known_domains(model)
        tensors = list(_places(model, request.package))
        if wrong := wrong_size(_nodes(model), {each.name: each for each in model.graph.initializer}):
            raise _refusal(*wrong)
        _name_runtime_operators(model)
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        DecodeError,
        OSError,
        ValueError,
    ) as error:
        raise _refusal(" ".join(str(error).split())[:300], "a valid ONNX graph") from error
    _compare_values(model, config)
    _require_wrapper_agrees(request.package)
    return Check(
        name="graph", found=f"{len(model.graph.node)} nodes, {len(tensors)} tensors beside them, ONNX's checker"
    )


def _config_of(package: Path) -> _ModelConfig:
    """Return genai_config.json as the wrapper reads it, which refuses every key that no build writes."""
    from slmpack.log.chat_model import IntegrityError, read_config

    try:
        return _ModelConfig.model_validate(read_config(package)["model"])
    except (IntegrityError, OSError, ValueError) as error:
        raise _refusal(" ".join(str(error).split())[:300], "a configuration that a build writes") from error


def _require_wrapper_agrees(package: Path) -> None:
    """Refuse what the wrapper would refuse before it opens the graph."""
    from slmpack.log.chat_model import IntegrityError, verify_graph

    try:
        verify_graph(package)
    except IntegrityError as error:
        raise _refusal(str(error)[:300], "one that the wrapper opens") from error


def _refusal(found: str, expected: str) -> CheckError:
    return CheckError(f"graph: {found}", expected, ADVICE)


def _places(model: "ModelProto", package: Path) -> Iterator[str]:
    """Yield every tensor that lies in another file, having looked that it lies in the package and within that file."""
    for tensor in _inner_tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            raise _refusal(f"{tensor.name or 'a constant'} inside a node lies in another file", "an initialiser")
    for tensor in model.graph.initializer:
        if tensor.data_location != tensor.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        file = package / location
        if location != Path(location).name or "\\" in location or file.is_symlink() or not file.is_file():
            raise _refusal(f"{tensor.name} lies in {location}", "a file of the package")
        start, length = (_bytes_of(tensor.name, key, place) for key in ("offset", "length"))
        if start + length > file.stat().st_size:
            raise _refusal(
                f"{tensor.name} ends at byte {start + length:,} of {file.name}", f"at most {file.stat().st_size:,}"
            )
        if length != _size_of(tensor):
            raise _refusal(
                f"{tensor.name} has {length:,} bytes in {file.name}", f"the {_size_of(tensor):,} of its shape"
            )
        yield tensor.name


def _bytes_of(name: str, key: str, place: dict[str, str]) -> int:
    text = place.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        raise _refusal(f"{name} has the {key} {text!r}", "a whole number of bytes")
    return int(text)


def _size_of(tensor: "TensorProto") -> int:
    """Return the bytes that a tensor of this type and shape has in a file; two 4-bit numbers share a byte."""
    import onnx

    count = int(math.prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    item: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return count * item


def _inner_tensors(model: "ModelProto") -> "Iterator[TensorProto]":
    """Yield every tensor but the graph's own initialisers: constants, and those in bodies of If, Loop and functions."""
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                sparse += graph.sparse_initializer
            yield from (part for each in sparse for part in (each.values, each.indices))
    yield from (part for each in model.graph.sparse_initializer for part in (each.values, each.indices))


def _nodes(model: "ModelProto") -> "Iterator[NodeProto]":
    """Yield every node, however deep."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting += graph.node


def _require_known_domains(model: "ModelProto") -> None:
    """Refuse operators of other libraries, which a runtime would have to load to know them."""
    for node in _nodes(model):
        if node.domain not in OPERATOR_DOMAINS:
            raise _refusal(
                f"{node.name or node.op_type} is of the operator domain {node.domain!r}",
                f"one of {', '.join(map(repr, OPERATOR_DOMAINS))}",
            )


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


def _compare_values(model: "ModelProto", config: _ModelConfig) -> None:
    """Compare inputs and outputs with what genai_config.json calls them: caches by its heads, logits by its rows."""
    decoder = config.decoder
    values = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    heads, size = decoder.num_key_value_heads, decoder.head_size
    names = decoder.inputs.model_dump() | decoder.outputs.model_dump()
    for kind in ("past", "present"):
        for layer in range(decoder.num_hidden_layers):
            for part in ("key", "value"):
                shape = _shape_of(values, names[f"{kind}_{part}_names"].replace("%d", str(layer)))
                if len(shape) != 4 or shape[1] not in (heads, None) or shape[3] not in (size, None):
                    raise _refusal(f"layer {layer}'s {kind} {part} is {shape}", f"{heads} heads of {size}")
    tokens = (_shape_of(values, decoder.outputs.logits) or [0])[-1]
    if tokens not in (config.vocab_size, None):
        raise _refusal(f"logits of {tokens} tokens", f"{config.vocab_size}")
    _shape_of(values, decoder.inputs.input_ids)


def _shape_of(values: dict[str, list[int | None]], name: str) -> list[int | None]:
    if name not in values:
        raise _refusal(f"genai_config.json names {name!r}", f"one of {', '.join(sorted(values)[:6])} ...")
    return values[name]


def _shape(value: Any) -> list[int | None]:
    """Return the sizes of a value, None for one that depends on the request."""
    dimensions = value.type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") else None for size in dimensions]
