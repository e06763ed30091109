"""Fold graph: the fold that was chosen for a checkpoint, carried over to the builder's graph of it.

    norm --(Cast)--> MatMulNBits, ...       the norm's multiplier is divided, the columns of what reads it multiplied
    MatMulNBits --> Add                     the rows are divided, and the bias that is added with them

The graph is looked at before anything is multiplied: if a divided norm is read by something whose columns are not
multiplied with the same, or a divided norm is not there, nothing is folded, and the reason is reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slmpack.build.genai.data_file import Part
from slmpack.build.genai.matmul_nbits import QuantisedWeight
from slmpack.checkpoint.mapped_rows import Rows
from slmpack.quantise.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from slmpack.quantise.awq.channel_pairs import Fold


# A weight that took a MatMul's place, and the checkpoint's rows that it is made of.
Source = tuple[QuantisedWeight, tuple[Rows, ...]]


def part_of(rows: Rows, fold: "Fold | None") -> Part:
    """Return a part of a weight with what the fold multiplies it with."""
    if fold is None:
        return Part(rows)
    factors = fold.rows.get(rows.name)
    return Part(
        rows,
        None if factors is None else factors[rows.first : rows.first + rows.count],
        fold.columns.get(rows.name),
    )


def fold_for(graph: "ir.Graph", weights: Sequence[Source], plan: Plan) -> tuple[Plan, str | None]:
    """Return the plan, without its fold and what was made with it if the graph does not have the fold's shape; why."""
    reason = None if plan.fold is None else _unsupported_reason(graph, weights, plan.fold)
    return (plan, None) if reason is None else (replace(plan, fold=None, stored={}), reason)


def _unsupported_reason(graph: "ir.Graph", weights: Sequence[Source], fold: "Fold") -> str | None:
    import torch

    columns = {weight.node: part_of(rows[0], fold).column_factors for weight, rows in weights}
    for name, factors in fold.norms.items():
        norm: Any = graph.initializers.get(name)
        if norm is None:
            return f"the builder's graph has no {name}"
        for reader in (reader for node, _ in norm.uses() for reader in _readers(node)):
            found = columns.get(reader)
            if found is None or not torch.allclose(found * factors, torch.ones_like(factors), rtol=1e-5):
                return f"{reader.name} reads {name} and has no part in it"
    return None


def _readers(node: Any) -> "Iterator[ir.Node]":
    """Yield what reads a node's first output, behind casts."""
    for reader, _ in node.outputs[0].uses():
        if reader.op_type == "Cast":
            yield from _readers(reader)
        else:
            yield reader


def folded_tensors(graph: "ir.Graph", weights: Sequence[Source], fold: "Fold | None") -> "dict[Any, ir.TensorProtocol]":
    """Return the small tensors that the fold changes: norms, and the biases behind folded rows."""
    if fold is None:
        return {}
    factors: dict[Any, Tensor] = {graph.initializers[name]: by for name, by in fold.norms.items()}
    for weight, rows in weights:
        if (by_row := _row_factors([part_of(part, fold) for part in rows])) is not None:
            factors |= dict.fromkeys(_biases(weight.node), by_row)
    return {value: _multiplied(value.const_value, by) for value, by in factors.items()}


def _row_factors(parts: Sequence[Part]) -> "Tensor | None":
    """Return what the rows of the whole are multiplied with, `[N]`; None where it is nothing."""
    import torch

    if all(part.row_factors is None for part in parts):
        return None
    return torch.cat([torch.ones(part.rows.count) if part.row_factors is None else part.row_factors for part in parts])


def _biases(node: Any) -> Iterator[Any]:
    for reader in _readers(node):
        if reader.op_type == "Add":
            yield from (value for value in reader.inputs if value is not None and value.const_value is not None)


def _multiplied(tensor: "ir.TensorProtocol", factors: "Tensor") -> "ir.TensorProtocol":
    import onnx_ir as ir

    numbers = tensor.numpy()
    folded = (numbers.astype("float32") * factors.numpy()).astype(numbers.dtype)
    return ir.Tensor(folded, dtype=tensor.dtype, name=tensor.name)
