"""Weights: which files of a checkpoint hold them, and what, by their headers alone. A pickle is never opened.

    model.safetensors                 alone, regardless of other files
    model.safetensors.index.json      where there is no such file: the shards have the names that it gives them

Source: transformers 5.22, modeling_utils.py, `_get_resolved_checkpoint_files`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from slmpack.errors import SourceError
from slmpack.machine.bounded_file import MIB, open_regular, parse_json
from slmpack.machine.json_file import read_json
from slmpack.records import Record

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

SUFFIX = ".safetensors"
MOST_HEADER_BYTES = 32 * MIB  # a file of 100,000 tensors, which no known model has, has 11 MB
# A file beside the index, by a name that every store of artifacts takes: no path, no control character, no `%` or `#`.
_SHARD = re.compile(rf"[\w .,+=@~()-]+{re.escape(SUFFIX)}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Source: README of huggingface/safetensors, "Format".
_ITEM_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
}
_UNQUANTISED = ("F32", "F16", "BF16")
# A file's first bytes tell what it is, regardless of its name.
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
    """Say whether a file of a snapshot, by its path in it, holds weights: a snapshot has no others of this kind."""
    return name.endswith(SUFFIX)


def weight_names(names: Collection[str], read: Callable[[], dict[str, str]]) -> frozenset[str]:
    """Return the files that transformers loads a checkpoint's weights from, the index among them where it decides.

    Others (`consolidated.safetensors`, `fp16` variants, an earlier set of shards) would be paid for twice.

    Args:
        names: the files of the checkpoint.
        read: reads the index, see `read_index`; called only where it decides.
    """
    if WEIGHTS in names:
        return frozenset({WEIGHTS})
    return frozenset({INDEX, *read().values()}) if INDEX in names else frozenset()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads the weights of a checkpoint from, sorted; [] for none.

    Raises:
        SourceError: the index is not usable.
    """
    here = {name for name in (WEIGHTS, INDEX) if (folder / name).is_file()}
    names = weight_names(here, lambda: read_index(folder / INDEX, str(folder / INDEX)))
    return sorted(folder / name for name in names if name != INDEX)


def read_index(path: Path, where: str) -> dict[str, str]:
    """Return the shard of each tensor, by the name of the tensor.

    Args:
        path: of the index.
        where: what to call it.

    Raises:
        SourceError: it is not one that transformers reads, or names a file that cannot be a shard beside it.
    """
    index = read_json(path)
    shards = index.get("weight_map")
    if not (isinstance(shards, dict) and shards):
        raise SourceError(f"{where} has no weight_map", "tensor names and their shards", "fetch it again")
    for shard in shards.values():
        if not (isinstance(shard, str) and _SHARD.fullmatch(shard)):
            raise SourceError(
                f"{where} names {repr(str(shard)[:200])[1:-1]}",
                "the name of a .safetensors file beside it",
                "save the model again",
            )
    return shards


def missing_shard(where: str, shard: str) -> SourceError:
    """Return the error for a shard that an index, called `where`, names and that is not there."""
    return SourceError(f"{where} names {shard}, which is not there", "every shard", "fetch it again")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint, having compared the index with its shards."""
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    shards = weight_files(folder)
    if not shards:
        raise no_weights(str(folder), [path.name for path in folder.iterdir() if path.is_file()])
    index = read_index(folder / INDEX, str(folder / INDEX))
    tensors: dict[str, Tensor] = {}
    for path in shards:
        shard = path.name
        if not path.is_file():
            raise missing_shard(str(folder / INDEX), shard)
        found = read_header(path)
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
            f"{where} has its weights as pickles ({pickles[0]})",
            f"safetensors ({WEIGHTS})",
            "save it again with save_pretrained, on a machine that may run its code",
        )
    other = next((name for name in files if name.endswith((SUFFIX, ".gguf"))), "no weights")
    return SourceError(f"{where} has {other}", f"{WEIGHTS} or {INDEX}", "name a whole checkpoint")


def read_header(path: Path) -> dict[str, Tensor]:
    """Read what a safetensors file says it holds.

    The file is 8 bytes of little-endian header length, that many bytes of JSON (tensor name to `dtype`, `shape`,
    `data_offsets`), then the data. Source: README of huggingface/safetensors, "Format".

    Raises:
        SourceError: it is something else, or its header is cut off, corrupt, or points beyond the file.
    """
    from safetensors import SafetensorError, safe_open

    with _opened(path) as file:
        start = file.read(32)
        for magic, what in _DISGUISES.items():
            # A header length begins with any byte, but a ninth byte that is "{" makes it safetensors.
            if start.startswith(magic) and start[8:9] != b"{":
                raise SourceError(f"{path} is {what}", "a safetensors file", "fetch or save the model again")
        if int.from_bytes(start[:8], "little") > MOST_HEADER_BYTES:
            raise _damaged(path, f"a header of more than {MOST_HEADER_BYTES:,} bytes")
        try:
            with safe_open(str(path), framework="np"):  # the library checks lengths, offsets and dtypes
                pass
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
    try:
        header, _ = raw_header(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    header.pop("__metadata__", None)
    return {name: Tensor(dtype=value["dtype"], shape=tuple(value["shape"])) for name, value in header.items()}


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", "a safetensors file", "name another") from error


def _damaged(path: Path, reason: str) -> SourceError:
    return SourceError(f"{path} is damaged ({reason})", "a whole safetensors file", "fetch or save the model again")


def raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file's header says as it is, and where in the file its data begins.

    Raises:
        ValueError: what stands there is no JSON, or more than any model has.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes, more than {MOST_HEADER_BYTES:,}")
        return parse_json(file.read(length), MOST_HEADER_BYTES), 8 + length


def main_dtype(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Return the dtype that most bytes have."""
    weights = Counter[str]()
    for tensor in tensors.values():
        weights[tensor.dtype] += tensor.parameters * _ITEM_BITS.get(tensor.dtype, 8)
    dtype = max(weights, key=weights.__getitem__, default="none")
    if dtype not in _UNQUANTISED:
        raise SourceError(
            f"the weights in {folder} are {dtype}",
            f"{', '.join(_UNQUANTISED)}",
            "name the model that it was made from: quantised checkpoints are not supported yet",
        )
    return dtype
