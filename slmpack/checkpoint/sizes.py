"""Sizes of a checkpoint's parts, from its headers."""

import re
from pathlib import Path
from typing import NamedTuple

from slmpack.checkpoint.headers import read_weights
from slmpack.machine.json_file import read_json

STORED_BYTES = {"F32": 4, "F64": 8}  # others: 2


_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class ModelSizes(NamedTuple):
    """What of a checkpoint decides the memory.

    Attributes:
        parameters: of all tensors.
        stored_bytes: what they take in the files, which are mapped while they are loaded.
        matrices: of the decoder's layers, name to rows and columns.
        layers: how many there are.
        hidden: the width of the hidden state.
        vocabulary: how many logits a token has.
    """

    parameters: int
    stored_bytes: int
    matrices: dict[str, tuple[int, int]]
    layers: int
    hidden: int
    vocabulary: int


def sizes_of(checkpoint: Path) -> ModelSizes:
    """Read the sizes of a checkpoint from its headers and config.json."""
    tensors = read_weights(checkpoint)
    layers = {int(found[1]) for name in tensors if (found := _IN_LAYER.search(name))}
    matrices = {
        name: (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and _IN_LAYER.search(name)
    }
    config = read_json(checkpoint / "config.json")
    fields = config | config.get("text_config", {})
    width = fields.get("hidden_size") or fields.get("n_embd") or fields.get("d_model") or 0
    return ModelSizes(
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        stored_bytes=sum(tensor.parameters * STORED_BYTES.get(tensor.dtype, 2) for tensor in tensors.values()),
        matrices=matrices,
        layers=len(layers),
        hidden=int(width),
        vocabulary=int(fields.get("vocab_size", 0)),
    )
