"""Sizes of quantised matrices: a MatMulNBits whose weights are smaller than it says would be read beyond their end.

ONNX's checker knows nothing of ONNX Runtime's own operators. Release 1.31 of the runtime looks at the shapes itself;
earlier ones read what lies behind the weights in memory.

Source: microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_OPERATOR = "MatMulNBits"


def wrong_size(nodes: Iterable["NodeProto"], tensors: Mapping[str, "TensorProto"]) -> tuple[str, str] | None:
    """Return what the first matrix has that does not fit its node, and what it should have; None if all fit.

    Args:
        nodes: of the graph and of all within it.
        tensors: the initialisers by name; an input that is none of them is computed, and not looked at.
    """
    for node in nodes:
        if node.op_type != _OPERATOR:
            continue
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        rows, columns, bits, block = (numbers.get(name, 0) for name in ("N", "K", "bits", "block_size"))
        bits = bits or 4
        if min(rows, columns, bits, block) <= 0:
            return f"{node.name or _OPERATOR} has the sizes {numbers}", "positive N, K, bits and block_size"
        blocks = rows * -(-columns // block)
        for name, expected in zip(node.input[1:3], (blocks * -(-block * bits // 8), blocks), strict=False):
            if name in tensors and (found := math.prod(tensors[name].dims)) != expected:
                return f"{name} has {found:,} values", f"the {expected:,} of {rows} x {columns} in blocks of {block}"
    return None
