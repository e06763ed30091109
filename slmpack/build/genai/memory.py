"""Memory that the builder's own way takes, predicted from a checkpoint's headers."""

import math
from collections.abc import Mapping

from slmpack.checkpoint.headers import Tensor

# Coefficients of `predicted_stock_peak`, fitted to the table there.
LIBRARY_BYTES = 450_000_000  # Python with torch, transformers and the builder


FLOAT32_BYTES = 4.0


RESULT_COPIES = 1.5


MIXED_BYTES = 0.3  # a weight of k_quant_mixed: zero points, and the sensitive layers in int8


SCRATCH_BYTES = {"default": 5.2, "k_quant": 39.0}  # for a weight of the largest matrix, while it is quantised


MARGIN = 1.05


def predicted_stock_peak(tensors: Mapping[str, Tensor], bits: int, block_size: int, algo_config: str) -> int:
    """Predict the peak memory of the stock builder, in bytes that the kernel cannot take back.

    Pages of the mapped checkpoint do not count: psutil's unique set size (`peak_private_bytes`, in brackets in the
    table) has up to the checkpoint's size more of them, and the kernel takes them back when memory is short.

    peak = 1.05 *
        ( 450 MB                                   the libraries
        + parameters * 4 bytes                     every weight as float32 in one message
        + parameters * 1.5 * the recipe's bytes    the results, which are beside it until the end
        + largest matrix * 5.2 or 39 bytes         copies while it is quantised; k_quant searches in float arrays
        + largest matrix * 4 bytes )               int8 with a tied head: the embedding is in float32 beside it

    Measured with onnxruntime-genai 0.18.0 and onnxruntime 1.31.1 for the target cpu, in GB: anonymous memory, in
    brackets the unique set size, then the prediction. Phi-3 is Phi-3-mini's shape in bfloat16 with 2, 4 or 8 layers and
    a vocabulary of 49,152; tiny has 13 M parameters; SmolLM2 is the one with 135 M, in float32, its head tied.

                 int4, block 32       int8, block 32       int8, block 128
    tiny          0.45 (0.49)  0.57    0.46 (0.49)  0.58    0.47 (0.49)  0.58
    SmolLM2       1.17 (1.70)  1.32    1.42 (2.04)  1.55    1.47 (2.13)  1.53
    Phi-3, 2      3.80 (4.88)  4.04    4.13 (5.28)  4.45    4.10 (5.26)  4.37
    Phi-3, 4      4.88 (6.46)  5.21    5.42 (6.95)  5.81    5.26 (7.00)  5.69
    Phi-3, 8      7.13 (9.59)  7.56    7.99 (10.39) 8.51    7.88 (10.34) 8.33

                 k_quant_mixed, 32    k_quant_mixed, 16
    tiny          0.69 (0.73)  0.80    0.67 (0.68)  0.81
    SmolLM2       2.16 (2.83)  2.39    2.25 (2.91)  2.42
    Phi-3, 2      8.90 (10.09) 9.65    9.31 (10.41) 9.75
    Phi-3, 4     10.12 (10.77) 10.93

    From 500 M parameters on it is 5 to 9 % too high; for SmolLM2 up to 14 %, for tiny up to 27 % (0.12 GB). It was
    never too low. k_quant beyond 4 layers, other targets and other architectures were not measured.

    Args:
        tensors: the checkpoint's, as `read_weights` gives them.
        bits: 4 or 8.
        block_size: weights that share one float32 scale.
        algo_config: the builder's; those that begin with `k_quant` cost more.
    """
    parameters = sum(tensor.parameters for tensor in tensors.values())
    largest = max((math.prod(tensor.shape[-2:]) for tensor in tensors.values()), default=0)
    scratch = SCRATCH_BYTES["k_quant" if algo_config.startswith("k_quant") else "default"]
    if bits == 8 and not any(name.endswith("lm_head.weight") for name in tensors):
        scratch += FLOAT32_BYTES
    results = bits / 8 + FLOAT32_BYTES / block_size + (MIXED_BYTES if algo_config == "k_quant_mixed" else 0.0)
    weight = FLOAT32_BYTES + RESULT_COPIES * results
    return int(MARGIN * (LIBRARY_BYTES + parameters * weight + largest * scratch))
