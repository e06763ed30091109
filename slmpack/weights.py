"""Weights: what the safetensors of a checkpoint hold, by their headers alone. A pickle is never opened."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.json_file import read_json
from slmpack.records import Record

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The names that transformers loads; others (`consolidated`, `fp16` variants, adapters) would be paid for twice.
# Source: transformers.utils, SAFE_WEIGHTS_NAME and SAFE_WEIGHTS_INDEX_NAME.
WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Source: README of huggingface/safetensors, "Format".
_ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip
_UNQUANTISED = ("F32", "F16", "BF16")
# What a file begins with tells what it is, whatever its name.
_DISGUISES = {
    b"PK\x03\x04": "a zip archive as torch.save writes it, which is a pickle inside",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


class Tensor(Record):
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def is_weights(name: str) -> bool:
    """Say whether a file, by its path in the checkpoint, holds weights that transformers would load."""
    return WEIGHT_FILES.fullmatch(name) is not None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint, having compared the index with its shards."""
    if (folder / WEIGHTS).is_file():  # transformers, too, looks for the single file first
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise no_weights(str(folder), [path.name for path in folder.iterdir()])
    index = read_json(folder / INDEX).get("weight_map")
    if not (isinstance(index, dict) and index and all(isinstance(shard, str) for shard in index.values())):
        raise SourceError(f"{folder / INDEX} has no weight_map", "tensor names and their shards", "fetch it again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(index.values())):
        if not is_weights(shard) or not (folder / shard).is_file():
            raise SourceError(f"{folder / INDEX} names {shard}, which is not there", "every shard", "fetch it again")
        found = read_header(folder / shard)
        lost = sorted({name for name, place in index.items() if place == shard} - found.keys())
        if lost:
            raise SourceError(
                f"{folder / INDEX} names {lost[0]}, which {shard} does not have", "every tensor", "fetch it again"
            )
        tensors |= found
    return tensors


def no_weights(where: str, names: Iterable[str]) -> SourceError:
    """Return the error for files (their names) among which transformers finds no safetensors to load."""
    files = sorted(names)
    if pickles := [name for name in files if name.endswith(_PICKLES)]:
        return SourceError(  # a pickle may run any code when it is loaded
            f"{where} has its weights as pickles ({pickles[0]})", f"safetensors ({WEIGHTS})",
            "save it again with save_pretrained, on a machine that may run its code",
        )  # fmt: skip
    other = next((name for name in files if name.endswith((".safetensors", ".gguf"))), "no weights")
    return SourceError(f"{where} has {other}", f"{WEIGHTS} or {INDEX}", "name a whole checkpoint")


def read_header(path: Path) -> dict[str, Tensor]:
    """Read what a safetensors file says it holds.

    The file is 8 bytes of little-endian header length, that many bytes of JSON (tensor name to `dtype`, `shape`,
    `data_offsets`), then the data. Source: README of huggingface/safetensors, "Format".

    Raises:
        SourceError: it is something else, or its header is cut off, corrupt, or points beyond the file.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(32)
        for magic, what in _DISGUISES.items():
            # A header length begins with any byte, but a ninth byte that is "{" makes it safetensors.
            if start.startswith(magic) and start[8:9] != b"{":
                raise SourceError(f"{path} is {what}", "a safetensors file", "fetch or save the model again")
        try:
            with safe_open(str(path), framework="np"):  # the library checks lengths, offsets and dtypes
                pass
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{path} is damaged ({error})", "a whole safetensors file", "fetch or save the model again"
            ) from error
    header, _ = raw_header(path)
    header.pop("__metadata__", None)
    return {name: Tensor(dtype=value["dtype"], shape=tuple(value["shape"])) for name, value in header.items()}


def raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file's header says as it is, and where in the file its data begins.

    Raises:
        ValueError: what stands there is no JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def main_dtype(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Return the dtype that most bytes have."""
    weights = Counter[str]()
    for tensor in tensors.values():
        weights[tensor.dtype] += tensor.parameters * _ITEM_BITS.get(tensor.dtype, 8)
    dtype = max(weights, key=weights.__getitem__, default="none")
    if dtype not in _UNQUANTISED:
        raise SourceError(
            f"the weights in {folder} are {dtype}", f"{', '.join(_UNQUANTISED)}",
            "name the model that it was made from: quantised checkpoints are not supported yet",
        )  # fmt: skip
    return dtype
