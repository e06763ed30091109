"""GPTQ's codes on disk: a safetensors file a matrix, written when it is solved and read some rows at a time.

    <folder>/<checkpoint tensor name>.safetensors    codes   uint8 [N, blocks, block_size / 2]
                                                     scales  float32 [N, blocks]
                                                     zeros   uint8 [N, blocks]

Rows are read from the file and not through a map of it, whose pages would count as this process's memory.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmpack.checkpoint.blocks import Quantised
from slmpack.checkpoint.headers import raw_header

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """Where a tensor's rows are in their file.

    Attributes:
        offset: of the first byte.
        shape: rows first.
    """

    path: Path
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> "Tensor":
        import numpy as np
        import torch

        row = int(np.prod(self.shape[1:]))
        offset = self.offset + start * row * np.dtype(self.dtype).itemsize
        flat = np.fromfile(self.path, self.dtype, (stop - start) * row, offset=offset)
        return torch.from_numpy(flat.reshape(stop - start, *self.shape[1:]))


@dataclass(frozen=True)
class SolvedMatrix:
    """The codes of a matrix `[N, K]`, read from its file when they are used, from any number of threads."""

    codes: Stored
    scales: Stored
    zeros: Stored

    @property
    def count(self) -> int:
        """How many rows it has."""
        return self.codes.shape[0]

    def read(self, start: int, stop: int) -> Quantised:
        """Return rows `start` to `stop`, both within it."""
        return Quantised(*(stored.read(start, stop) for stored in (self.codes, self.scales, self.zeros)))


def write_solved(folder: Path, name: str, solved: Quantised) -> None:
    """Write the file of the checkpoint's tensor `name`."""
    from safetensors.torch import save_file

    tensors = {"codes": solved.codes, "scales": solved.scales, "zeros": solved.zeros}
    save_file(
        {key: value.contiguous() for key, value in tensors.items() if value is not None}, folder / (name + SUFFIX)
    )


def open_gptq(folder: Path) -> dict[str, SolvedMatrix]:
    """Return the matrices that `gptq_run.quantise_by_gptq` stored, by the names of the checkpoint's tensors."""
    return {path.name.removesuffix(SUFFIX): _open(path) for path in sorted(folder.glob("*" + SUFFIX))}


def _open(path: Path) -> SolvedMatrix:
    header, begin = raw_header(path)

    def stored(key: str, dtype: str) -> Stored:
        found = header[key]
        return Stored(path, dtype, begin + found["data_offsets"][0], tuple(found["shape"]))

    return SolvedMatrix(stored("codes", "uint8"), stored("scales", "<f4"), stored("zeros", "uint8"))
