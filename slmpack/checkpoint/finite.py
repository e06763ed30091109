"""Finite: a NaN or an infinity in the weights is refused, by the tensor's name; one would spread over every answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.checkpoint.headers import weight_files
from slmpack.errors import BuildError

if TYPE_CHECKING:
    from torch import Tensor

PIECE_WEIGHTS = 1 << 22


def require_finite(tensor: "Tensor", name: str) -> None:
    """Refuse a tensor that holds anything else; integers always pass.

    Raises:
        BuildError: with its name.
    """
    import torch

    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise BuildError(
            f"{name} holds a NaN, an infinity or more than {dtype} can hold", "finite weights", "save the model again"
        )


def require_finite_weights(checkpoint: Path) -> None:
    """Read every tensor of a checkpoint, piece by piece, and refuse it if one is not finite.

    Raises:
        BuildError: with the first such tensor's name.
    """
    from safetensors import safe_open

    for path in weight_files(checkpoint):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                for piece in file.get_tensor(name).flatten().split(PIECE_WEIGHTS):
                    require_finite(piece, name)
