"""MatMulNBits: every MatMul of the builder's graph that reads a weight becomes one that reads codes and scales.

As ONNX Runtime's quantiser does it: the same nodes, the same names, the same order of tensors; zero points, which it
would write for other recipes, come after codes and scales. The new tensors have shapes and no content: they are made
when the data file is written.

Source: onnxruntime/quantization/matmul_nbits_quantizer.py, `DefaultWeightOnlyQuantizer.quantize_matmul`;
onnxruntime_genai/models/builders/base.py, `Model.to_nbits` and `make_tied_quantized_embedding_input_names`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmpack.checkpoint.blocks import Bits, blocks_a_row
from slmpack.errors import BuildError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

MATRIX = "slmpack.matrix"  # in the meta of an ONNX value: the tensor or `TransposedMatrix` that it is made of
FormOf = Callable[["tuple[Tensor, ...]", Bits], "Form"]
# Values are `onnx_ir.Value`; as Any, since the library lets every value lack a name, a type and a shape.
HEAD = "/lm_head/MatMul"


@dataclass(frozen=True)
class Matrix:
    """The weight `[N, K]` of a MatMul, in parts one below the other that are never joined.

    The builder asks for `weight.shape` and `weight.T`, and for no number in it.
    """

    parts: "tuple[Tensor, ...]"

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def T(self) -> "TransposedMatrix":  # noqa: N802 - torch's name, which the builder asks for
        return TransposedMatrix(self)


@dataclass(frozen=True)
class TransposedMatrix:
    """The same, `[K, N]`, as ONNX has it."""

    of: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.of.shape
        return columns, rows

    def joined(self, name: str, dtype: "ir.DataType") -> "ir.LazyTensor":
        """Return it as one tensor, made when it is used: the stock builder's way."""
        import onnx_ir as ir
        import torch
        from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

        def join() -> TorchTensor:
            return TorchTensor(torch.cat(self.of.parts).T.to(to_torch_dtype(dtype)), name=name)

        return ir.LazyTensor(join, dtype=dtype, shape=ir.Shape(self.shape), name=name)


@dataclass(frozen=True)
class Form:
    """What becomes of a weight: its width, and whether its blocks have zero points of their own."""

    bits: Bits
    zeros: bool = False


@dataclass(frozen=True)
class QuantisedWeight:
    """The tensors that took a weight's place, and the node that reads them.

    Attributes:
        codes: uint8 `[N, blocks, bytes]`.
        scales: `[N, blocks]`.
        zeros: uint8 `[N, ceil(blocks / 2)]`, None where 8 is zero everywhere.
    """

    node: Any
    codes: Any
    scales: Any
    zeros: Any
    parts: "tuple[Tensor, ...]"
    bits: Bits


def unsupported_reason_in(model: Any) -> str | None:
    """Return why the graph of a builder's model has no streaming form, None if it has."""
    for node in model.model.graph:
        weight = _weight_of(model, node)
        if weight is None:
            continue
        if node.op_type == "Gather" and model.quant_attrs["bits"] == 4:
            return f"{node.name} is quantised too"
        if node.op_type == "MatMul" and (len(weight.shape) != 2 or weight.shape[0] % 2 or MATRIX not in weight.meta):
            return f"{weight.name} {list(weight.shape)} is not a matrix with rows of an even length"
    return None


def replace_matmuls(model: Any, form_of: "FormOf | None" = None) -> list[QuantisedWeight]:
    """Replace the MatMuls of a builder's model; drop the initializers that nothing reads any more.

    The stock builder goes over the graph once for each width: that of most weights first.

    Args:
        form_of: given a weight's parts and the width that the builder gives it, its form; None: of that width.

    Raises:
        BuildError: a node is to have another width, and the model has no such MatMul.
    """
    graph, body = model.model.graph, model.quant_attrs["bits"]
    others = {name: config["bits"] for name, config in model.int4_customized_weight_config.items()}
    nodes = [node for node in graph if node.op_type == "MatMul" and _weight_of(model, node)]
    # The builder's own placements name both q, k, v and what they are packed into.
    if unknown := sorted(set(getattr(model, "named_nodes", ())) - {node.name for node in nodes}):
        raise BuildError(
            f"{unknown[0]} is to have {others[unknown[0]]} bits",
            "a MatMul of this model",
            f"name one such as {nodes[0].name}",
        )
    forms = {}
    for node in nodes:
        width = others.get(node.name, body)
        forms[node] = form_of(_parts_of(node), width) if form_of else Form(width)
    quantised = []
    for bits in dict.fromkeys([body, *(form.bits for form in forms.values())]):
        quantised += [_replace(model, node, form) for node, form in forms.items() if form.bits == bits]
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    return quantised


def _weight_of(model: Any, node: "ir.Node") -> Any:
    """Return the constant that a MatMul or a Gather reads if it is to be quantised, else None."""
    attributes = model.quant_attrs
    if node.name in attributes["nodes_to_exclude"] or node.op_type not in attributes["op_types_to_quantize"]:
        return None
    value = node.inputs[{"MatMul": 1, "Gather": 0}[node.op_type]]
    return value if value is not None and value.const_value is not None else None


def _replace(model: Any, node: "ir.Node", form: Form) -> QuantisedWeight:
    import onnx_ir as ir

    weight: Any = node.inputs[1]
    columns, rows = weight.shape
    block_size, level = model.quant_attrs["matmul_block_size"], model.quant_attrs["accuracy_level"]
    blocks, parts = blocks_a_row(columns, block_size), _parts_of(node)
    codes_name, scales_name = _names(model, node, weight.name, form.bits)
    codes = model.make_value(codes_name, ir.DataType.UINT8, [rows, blocks, block_size * form.bits // 8])
    scales = model.make_value(scales_name, weight.dtype, [rows, blocks])
    made = [codes, scales]
    if form.zeros:
        made.append(model.make_value(f"{weight.name}_zero_points", ir.DataType.UINT8, [rows, -(-blocks // 2)]))
    old_name = node.name
    node.op_type, node.domain, node.name = "MatMulNBits", "com.microsoft", f"{old_name}_Q{form.bits}"
    node.resize_inputs(1 + len(made))
    for place, value in enumerate(made, start=1):
        model.model.graph.initializers[value.name] = value
        node.replace_input_with(place, value)
    attributes = {"K": columns, "N": rows, "accuracy_level": level, "bits": form.bits, "block_size": block_size}
    for name, number in attributes.items():
        if name != "accuracy_level" or level:  # as the stock quantiser: most providers do not know it
            node.attributes[name] = ir.AttrInt64(name, number)
    zeros = made[2] if form.zeros else None
    if zeros is not None and old_name == HEAD:
        _give_embedding(scales, zeros)
    return QuantisedWeight(node, codes, scales, zeros, parts, form.bits)


def _give_embedding(scales: Any, zeros: Any) -> None:
    """Let an embedding that reads the head's codes and scales read its zero points too."""
    for reader, _ in list(scales.uses()):
        if reader.op_type == "GatherBlockQuantized":
            reader.resize_inputs(4)
            reader.replace_input_with(3, zeros)


def _names(model: Any, node: "ir.Node", weight: str, bits: Bits) -> tuple[str, str]:
    """Return the names of codes and scales; a head that is the embedding too has those that the embedding reads."""
    if node.name == HEAD and model.tied_quantized_embeddings:
        _, codes, scales, _ = model.make_tied_quantized_embedding_input_names()
        return codes, scales
    return f"{weight}_Q{bits}", f"{weight}_scales"


def _parts_of(node: "ir.Node") -> "tuple[Tensor, ...]":
    """Return the matrices whose rows, one below the other, a MatMul's weight is made of."""
    weight: Any = node.inputs[1]
    matrix = weight.meta[MATRIX]
    return matrix.of.parts if isinstance(matrix, TransposedMatrix) else (matrix.T,)
