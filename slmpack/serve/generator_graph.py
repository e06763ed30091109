"""A package whose graph has no table of slots: the runtime's own generators, one a slot, in turn.

Packages that optimum exported append to their keys and values instead of writing into them, and a GPU's lie on the GPU.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class GeneratorGraph:
    """Generators of ONNX Runtime GenAI over one model.

    Args:
        model: an `onnxruntime_genai.Model`.
        slots: generators at a time.
    """

    def __init__(self, model: Any, slots: int) -> None:
        self._model = model
        self.slots = slots
        self._generators: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}

    @property
    def taken_tokens(self) -> int:
        """Tokens for whose keys and values memory was taken."""
        return sum(self._lengths.values())

    def cut(self, slot: int, length: int) -> None:
        """Drop what a slot holds: a generator is as long as one prompt and its answer."""
        self._generators.pop(slot, None)
        self._lengths.pop(slot, None)

    def copy(self, source: int, target: int, length: int) -> None:
        """Refuse: generators share nothing.

        Raises:
            NotImplementedError: always; nobody asks with `reuse` off.
        """
        raise NotImplementedError("a generator's keys and values cannot be copied")

    def reserve(self, slot: int, length: int) -> None:
        """Make a generator for so many tokens; the runtime takes its memory at once."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=length, do_sample=False)
        self._generators[slot] = og.Generator(self._model, params)
        self._lengths[slot] = length

    def advance(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Append tokens to a slot; return the logits behind the last of them, float32 `[vocabulary]`."""
        generator = self._generators[slot]
        generator.append_tokens(np.asarray(tokens, np.int32))
        logits = np.asarray(generator.get_logits(), np.float32)
        last: Logits = logits.reshape(-1, logits.shape[-1])[-1]
        return last

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each of some slots; return the logits behind it, float32 `[vocabulary]` a slot."""
        return {slot: self.advance(slot, [token]) for slot, token in tokens.items()}


def open_generators(folder: Path, slots: int, threads: int, provider: str) -> GeneratorGraph:
    """Return the generators of a package.

    Raises:
        ProviderError: it is for a GPU, and there is none.
    """
    from slmpack.log.chat_model import Runtime, Settings

    settings = Settings("", "chat", 1, threads, True, provider)
    return GeneratorGraph(Runtime(folder, settings).model, slots)
