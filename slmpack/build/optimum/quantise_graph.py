"""The exported graph, quantised: every MatMul that reads a weight becomes MatMulNBits, by ONNX Runtime's quantiser.

    float32 graph --Gemm and tied heads as MatMul--> MatMuls with weights --MatMulNBitsQuantizer--> model.onnx + .data

Scales are by the blocks' extremes, without zero points: neither calibration nor folding know these graphs. Embeddings
stay in float32.
"""

import re
from pathlib import Path
from typing import Any, Literal

from slmpack.errors import BuildError
from slmpack.progress import report
from slmpack.records import Record

Bits = Literal[4, 8]
GRAPH, DATA = "model.onnx", "model.onnx.data"
ACCURACY_LEVEL = 4  # activations in int8, as the builder has it for CPUs
INLINE_BYTES = 1024  # smaller tensors stay in model.onnx, where shape inference can read them
_LAYER = re.compile(r"/[^/]*\.(\d+)/")
# What a block calls the matrix that makes the values (alone or with queries and keys), and the one that ends its MLP.
_SENSITIVE = re.compile(
    r"/(v_proj|query_key_value|c_attn|Wqkv|qkv_proj|down_proj|dense_4h_to_h|fc2|fc_out|mlp/c_proj)/MatMul$"
)


class GraphOptions(Record):
    """How an exported graph is quantised.

    Attributes:
        bits: of every MatMul; None: nothing is quantised.
        block_size: weights that share one scale.
        mixed: the head and the sensitive matrices have 8 bits.
    """

    bits: Bits | None
    block_size: int = 32
    mixed: bool = False


def write_graph(exported: Path, options: GraphOptions, layers: int, into: Path) -> tuple[str, ...]:
    """Write `model.onnx` and `model.onnx.data` of an exported graph; return a sentence for each thing done to it.

    Raises:
        BuildError: the graph's head is not a MatMul, so that it is not known where its weights are.
    """
    import onnx

    model = onnx.load(exported)
    remarks: tuple[str, ...] = ()
    if options.bits is not None:
        _make_matmuls(model.graph)
        model, remarks = _quantised(model, options, layers)
    onnx.save_model(model, into / GRAPH, save_as_external_data=True, location=DATA, size_threshold=INLINE_BYTES)
    return remarks


def _quantised(model: Any, options: GraphOptions, layers: int) -> tuple[Any, tuple[str, ...]]:
    import onnx

    assert options.bits is not None
    matrices = _matrices(model.graph)
    head = _head_of(model.graph)
    raised = [name for name in matrices if name == head or is_sensitive(name, layers)] if options.mixed else []
    others = [name for name in matrices if name not in raised]
    if raised:
        model = _quantise(model, 8, options.block_size, others)
    report("build", len(raised), len(matrices), "matrices quantised")
    model = _quantise(model, options.bits, options.block_size, [])
    report("build", len(matrices), len(matrices), "matrices quantised")
    left = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name in matrices]
    if left:
        raise BuildError(f"ONNX Runtime's quantiser left {left[0]} as it is", "MatMulNBits", "use another --target")
    if "com.microsoft" not in {each.domain for each in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model, _remarks_of(options, len(others), len(raised))


def _remarks_of(options: GraphOptions, others: int, raised: int) -> tuple[str, ...]:
    remarks = [f"{others} matrices have {options.bits} bits in blocks of {options.block_size}, by the blocks' extremes"]
    if raised:
        remarks.append(
            f"{raised} have 8 bits: the head, and the values and the ends of MLPs in outer and every third layer"
        )
    return tuple(remarks)


def is_sensitive(node: str, layers: int) -> bool:
    """Say whether 4 bits would cost the most in this MatMul: its name, such as `/transformer/h.0/mlp/c_proj/MatMul`.

    It is the values' or the MLP's last matrix in the first or last eighth of the layers, or in every third between.
    Source: llama.cpp, src/llama-quant.cpp, `use_more_bits`, as ONNX Runtime GenAI's builder has it for k_quant_mixed.
    """
    found = _LAYER.search(node)
    if found is None or _SENSITIVE.search(node) is None:
        return False
    layer = int(found[1])
    return layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2


def _quantise(model: Any, bits: int, block_size: int, leave_out: list[str]) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block_size,
        is_symmetric=True,
        accuracy_level=ACCURACY_LEVEL,
        nodes_to_exclude=leave_out,
        op_types_to_quantize=("MatMul",),
    )
    quantiser.process()
    return quantiser.model.model


def _matrices(graph: Any) -> list[str]:
    """Return the names of the MatMuls whose second input is a weight `[K, N]`."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def _head_of(graph: Any) -> str:
    """Return the name of the last MatMul with a weight before the logits; a scale or a cap may come after it."""
    makers = {output: node for node in graph.node for output in node.output}
    matrices = set(_matrices(graph))
    node = makers.get("logits")
    while node is not None and node.name not in matrices:
        node = next((makers[name] for name in node.input if name in makers), None)
    if node is None:
        raise BuildError(
            "an exported graph without a MatMul before its logits", "a head that is one", "use --target transformers"
        )
    return str(node.name)


# ------------------------------------------------------------------------------- what the quantiser does not know


def _make_matmuls(graph: Any) -> None:
    """Turn Gemms with a weight, and MatMuls of a weight that is transposed in the graph, into plain MatMuls."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    added: dict[str, Any] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "Gemm" and _is_linear(node, tensors):
            nodes += _as_matmul(node, tensors, added)
            continue
        if node.op_type == "MatMul":
            _take_transposed(node, makers, tensors, added)
        nodes.append(node)
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    graph.ClearField("node")
    graph.node.extend(node for node in nodes if node.op_type != "Transpose" or node.output[0] in read)
    graph.initializer.extend(added.values())
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _is_linear(node: Any, tensors: dict[str, Any]) -> bool:
    """Say whether a Gemm is `input @ weight + bias`, the weight maybe transposed."""
    numbers = {attribute.name: attribute for attribute in node.attribute}
    scaled = any(name in numbers and numbers[name].f != 1.0 for name in ("alpha", "beta"))
    return node.input[1] in tensors and not scaled and not ("transA" in numbers and numbers["transA"].i)


def _as_matmul(node: Any, tensors: dict[str, Any], added: dict[str, Any]) -> list[Any]:
    import onnx

    transposes = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    weight = _transposed(node.input[1], tensors, added) if transposes else node.input[1]
    name = node.name.removesuffix("/Gemm")
    biased = len(node.input) > 2
    product = f"{name}/MatMul_output_0" if biased else node.output[0]
    made = [onnx.helper.make_node("MatMul", [node.input[0], weight], [product], name=f"{name}/MatMul")]
    if biased:
        made.append(onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{name}/Add"))
    return made


def _take_transposed(node: Any, makers: dict[str, Any], tensors: dict[str, Any], added: dict[str, Any]) -> None:
    """Let a MatMul read a weight that is stored transposed instead of transposing it: a head tied to the embedding."""
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "Transpose" or maker.input[0] not in tensors:
        return
    permutation = next((list(each.ints) for each in maker.attribute if each.name == "perm"), [1, 0])
    if permutation == [1, 0]:
        node.input[1] = _transposed(maker.input[0], tensors, added)


def _transposed(name: str, tensors: dict[str, Any], added: dict[str, Any]) -> str:
    """Add the transposed copy of a weight, once."""
    import numpy as np
    from onnx import numpy_helper

    other = f"{name}_transposed"
    if other not in added:
        added[other] = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensors[name]).T), other)
    return other
