"""What a training takes in memory, known from a checkpoint's headers before anything is loaded.

the model            its weights, float32 (or bfloat16 under an adapter)
what is trained      weight, gradient and Adam's two moments, float32
gradient checkpoints the hidden state before each layer, for every token of a batch
one layer, again     inputs and outputs of its matrices, computed once more on the way back
the logits           of every token of a batch, for the whole vocabulary, several times over
"""

import re
from pathlib import Path
from typing import NamedTuple

from slmpack.json_file import read_json
from slmpack.train_checkpoints import adapter_parameters
from slmpack.weights import read_weights

LIBRARY_BYTES = 650_000_000  # Python with torch, transformers and peft
OPTIMIZED_BYTES = 16  # a weight, its gradient, two moments
LOGIT_BYTES = 18.0  # a token and an entry of the vocabulary
KEPT_COPIES = 1.3  # of the inputs and outputs of a layer's matrices, of every layer that keeps them
WORKED_COPIES = 3.0  # of those of the layer that is on its way back: values, gradients, temporaries
MARGIN = 1.1
_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class ModelSizes(NamedTuple):
    """What of a checkpoint decides the memory.

    Attributes:
        parameters: of all tensors.
        matrices: of the decoder's layers, name to rows and columns.
        layers: how many there are.
        hidden: the width of the hidden state.
        vocabulary: how many logits a token has.
    """

    parameters: int
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
        parameters=sum(tensor.parameters for tensor in tensors.values()), matrices=matrices, layers=len(layers),
        hidden=int(width), vocabulary=int(fields.get("vocab_size", 0)),
    )  # fmt: skip


def trained_parameters(sizes: ModelSizes, rank: int) -> int:
    """Return how many weights are trained: an adapter's, or with rank 0 all."""
    return adapter_parameters(sizes.matrices, rank) if rank else sizes.parameters


def predicted_bytes(sizes: ModelSizes, rank: int, tokens: int, weight_bytes: int, kept_layers: int) -> int:
    """Predict the peak private memory of a training on a CPU, in bytes.

    Measured (unique set size): SmolLM2-135M, rank 16, batches of 488 tokens, float32, every layer kept: 2.40 to
    2.51 GB, predicted 2.82. Longer batches, larger models and gradient checkpointing follow from the shapes and were
    not measured.

    Args:
        rank: of the adapter; 0: all weights are trained.
        tokens: of a batch, padding included.
        weight_bytes: of a weight of the model while it is trained: 4, or 2 under an adapter.
        kept_layers: how many layers' inputs and outputs are kept for the way back: all, or 1 with gradient
            checkpointing.
    """
    optimized = OPTIMIZED_BYTES * trained_parameters(sizes, rank)
    frozen = weight_bytes * sizes.parameters if rank else 0
    one_layer = sum(rows + columns for rows, columns in sizes.matrices.values()) / max(1, sizes.layers)
    copies = KEPT_COPIES * kept_layers + WORKED_COPIES
    activations = tokens * 4 * (sizes.layers * sizes.hidden + copies * one_layer)
    return int(MARGIN * (LIBRARY_BYTES + frozen + optimized + activations + tokens * LOGIT_BYTES * sizes.vocabulary))
