"""What the matrices of a package mean, and of a checkpoint under the names that the builder gives them."""

from pathlib import Path

import torch

from slmpack.quantise import Bits, Quantised, dequantise_rows, unpacked


def package_weights(package: Path, layer: int) -> dict[str, torch.Tensor]:
    """Return what the MatMulNBits of a layer compute with, `[N, K]`, by the last part of their names."""
    return {
        name.split("/")[-2]: weights for name, weights in all_weights(package).items() if f"/layers.{layer}/" in name
    }


def all_weights(package: Path) -> dict[str, torch.Tensor]:
    """Return what every MatMulNBits computes with, `[N, K]`, by its name."""
    import onnx

    graph = onnx.load(package / "model.onnx").graph
    values = {value.name: value for value in graph.initializer}
    return {
        node.name: _weights_of(node, [values[name] for name in node.input[1:]])
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }


def _weights_of(node: object, tensors: list[object]) -> torch.Tensor:
    from onnx.numpy_helper import to_array

    own = {attribute.name: attribute.i for attribute in node.attribute}  # type: ignore[attr-defined]
    bits: Bits = 4 if own["bits"] == 4 else 8
    codes, scales, *rest = (torch.from_numpy(to_array(each).copy()) for each in tensors)  # type: ignore[arg-type]
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
