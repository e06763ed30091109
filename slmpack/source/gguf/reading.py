"""Reading of GGUF files by transformers, without what makes it slow.

transformers reads a file twice by the gguf package's reader. That slices a numpy memmap three million times for a
vocabulary of 49,152 tokens, each with a call of Python that a plain array does without; and for every module of the
model it makes the table of all tensor names anew. Both take half of a conversion's time.
"""

import functools
from typing import Any


def quicken_reading() -> None:
    """Let the gguf package read through plain arrays and make each table of names once; for a process of its own."""
    import gguf
    import numpy

    class PlainReader(gguf.GGUFReader):
        """The same reader; its slices are not memmaps."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(numpy.ndarray)

    gguf.GGUFReader = PlainReader  # type: ignore[misc] # the class that transformers looks up here
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
