"""What the matrices of a package mean, and of a checkpoint under the names that the builder gives them."""

from pathlib import Path
from typing import Any

import torch

from slmpack.checkpoint.blocks import Bits, Quantised, dequantise_rows, unpacked


def package_weights(package: Path, layer: int) -> dict[str, torch.Tensor]:
    """Return what the MatMulNBits of a layer compute with, `[N, K]`, by the last part of their names."""
    return {
        name.split("/")[-2]: weights for name, weights in all_weights(package).items() if f"/layers.{layer}/" in name
    }


def all_weights(package: Path) -> dict[str, torch.Tensor]:
    """Return what every MatMulNBits computes with, `[N, K]`, by its name."""
    import onnx_ir

    graph = onnx_ir.load(package / "model.onnx").graph
    return {str(node.name): _weights_of(node) for node in graph if node.op_type == "MatMulNBits"}


def _weights_of(node: Any) -> torch.Tensor:
    own = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    bits: Bits = 4 if own["bits"] == 4 else 8
    codes, scales, *rest = (torch.from_numpy(each.const_value.numpy().copy()) for each in node.inputs[1:])
    zeros = None
    if rest:
        packed = rest[0].view(own["N"], -1)
        zeros = unpacked(packed)[:, : codes.shape[1]] if bits == 4 else packed
    quantised = Quantised(codes, scales.view(own["N"], -1), zeros)
    return dequantise_rows(quantised, own["K"], bits, own["block_size"])


def layer_weights(plain: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """Return the same of a checkpoint's tensors, named and joined as the builder does it."""
    inside = f".layers.{layer}."
    own = {name.split(".")[-2]: tensor for name, tensor in plain.items() if inside in name and "_proj.w" in name}
    if "gate_up_proj" in own:
        own["gate_proj"], own["up_proj"] = own.pop("gate_up_proj").chunk(2)
    if "q_proj" in own:
        own["qkv_proj"] = torch.cat([own.pop(f"{part}_proj") for part in "qkv"])
    return own
