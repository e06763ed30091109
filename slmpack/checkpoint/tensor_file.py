"""Tensor file: a safetensors file written tensor by tensor, so that none but the one at hand is in memory.

    length of the header, 8 bytes, little-endian | header, JSON: name to dtype, shape, data_offsets | data

Source: README of huggingface/safetensors, "Format".
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slmpack.checkpoint.headers import Tensor as Header

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


class Planned(NamedTuple):
    """A tensor that is not made yet; `pieces` yields it, cut along its first axis or whole."""

    header: Header
    pieces: "Callable[[], Iterator[Tensor]]"


def write_tensors(
    path: Path, planned: Mapping[str, Planned], on_progress: Callable[[int], object] = lambda _: None
) -> None:
    """Write the file `path`.

    Args:
        on_progress: called with how many tensors are written, after each.
    """
    import torch

    end, header = 0, {}
    for name, (tensor, _) in planned.items():
        begin, end = end, end + tensor.parameters * _BYTES[tensor.dtype]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (tensor, pieces) in enumerate(planned.values(), start=1):
            dtype = getattr(torch, _NAMES[tensor.dtype])
            for piece in pieces():
                file.write(piece.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
            on_progress(number)
