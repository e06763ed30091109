"""Predict how long GPTQ will take for a source on this machine, before anything is started.

Matrix products go by what they multiply, everything else by the weights; a second of each on this machine says how
fast it is now. For T tokens and matrices [N, K], of which some share their inputs:

    2 T N K   the layers' outputs            T K^2     the covariance of each input, half of it
    N K^2     what columns make up for       K^3 / 3   its factor

SmolLM2-135M: 65 s foretold of a machine with much else to do, which then took 127 s of wall time and less than 62 s of
a core. One [3072, 8192] matrix of Phi-3, 4,096 tokens: 12.0 s of a core foretold, 14.7 s used.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from slmpack.checkpoint.blocks import dequantise_rows
from slmpack.checkpoint.headers import Tensor
from slmpack.quantise.gptq.solve import factorise, solve
from slmpack.records import Record

SHARING = ("k_proj", "v_proj", "up_proj")  # have the inputs of q_proj and gate_proj
START_SECONDS = 6.0  # for the interpreter, torch and transformers
PRODUCT_SHAPE = (2048, 1024, 2048)
SAMPLE_ROWS, SAMPLE_COLUMNS = 3072, 256
MEASURE_SECONDS = 0.5  # of either kind


class SampleRequest(Record):
    """What to measure with."""

    block_size: int


class Speed(Record):
    """Of this machine, with what else it does now.

    Attributes:
        operations_a_second: float32 multiplications and additions in products of matrices.
        seconds_a_weight: for a weight's search, its rounding and its way back.
    """

    operations_a_second: float
    seconds_a_weight: float


class Cost(NamedTuple):
    """What there is to do: operations in products of matrices, and weights to solve."""

    operations: float
    weights: int


def cost_of(tensors: Mapping[str, Tensor], tokens: int) -> Cost:
    """Return the cost of a checkpoint's tensors; a matrix counts if it is in a layer."""
    shapes = {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) == 2 and ".layers." in name}
    operations = 0.0
    for name, (rows, columns) in shapes.items():
        operations += rows * columns * (2.0 * tokens + columns)
        if name.split(".")[-2] not in SHARING:
            operations += tokens * columns**2 + columns**3 / 3
    return Cost(operations, sum(rows * columns for rows, columns in shapes.values()))


def predicted_seconds(cost: Cost, speed: Speed) -> float:
    """Return the wall time in seconds."""
    return START_SECONDS + cost.operations / speed.operations_a_second + cost.weights * speed.seconds_a_weight


def measure_speed(request: SampleRequest) -> Speed:
    """Run in a child, as the work itself will: both kinds of work, for half a second each."""
    import torch

    rows, inner, columns = PRODUCT_SHAPE
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    weights, factor = torch.rand(SAMPLE_ROWS, SAMPLE_COLUMNS), factorise(torch.eye(SAMPLE_COLUMNS), "a sample")

    def product() -> None:
        left @ right

    def sample() -> None:
        dequantise_rows(solve(weights, factor, request.block_size), SAMPLE_COLUMNS, 4, request.block_size)

    with torch.inference_mode():
        return Speed(
            operations_a_second=2.0 * rows * inner * columns / _seconds_of(product),
            seconds_a_weight=_seconds_of(sample) / weights.numel(),
        )


def _seconds_of(work: Callable[[], None]) -> float:
    """Return how long it takes once it is warm."""
    work()
    started, times = time.monotonic(), 0
    while (passed := time.monotonic() - started) < MEASURE_SECONDS:
        work()
        times += 1
    return passed / times
