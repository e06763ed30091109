"""What the runtime says of a package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import torch


def logits_of(package: Path, ids: Sequence[int]) -> torch.Tensor:
    """Return the runtime's logits `[sequence, vocabulary]`."""
    model = og.Model(str(package))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    return torch.from_numpy(np.array(generator.get_output("logits"))[0])
