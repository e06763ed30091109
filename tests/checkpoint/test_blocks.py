"""Quantise: rows to codes and scales, as ONNX Runtime's own kernel does it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from slmpack.checkpoint.blocks import Bits, Quantised, quantise_rows

GENERATOR = torch.Generator().manual_seed(0)
ROWS = 64


def by_the_runtime(weights: torch.Tensor, bits: int, block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return what ONNX Runtime's C++ kernel, which the stock builder calls, makes of `weights` `[N, K]`."""
    rows, columns = weights.shape
    blocks = -(-columns // block_size)
    padded = np.pad(np.ascontiguousarray(weights.T.numpy()), ((0, blocks * block_size - columns), (0, 0)))
    codes = np.zeros((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((rows, blocks), padded.dtype)
    zero_points = np.zeros((rows, -(-blocks * bits // 8)), np.uint8)
    quantize = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    quantize(codes, padded, scales, zero_points, block_size, rows, columns, True)
    return codes, scales


def weights_of_a_kind(kind: str, columns: int) -> torch.Tensor:
    normal = torch.randn(ROWS, columns, generator=GENERATOR)
    match kind:
        case "normal":
            return normal * 0.02
        case "of every magnitude":
            spread = torch.exp(6 * torch.randn(ROWS, columns, generator=GENERATOR))
            return (normal * spread).clamp(-60000, 60000)
        case "almost nothing":
            return normal * 1e-9
        case "all ties":
            return torch.randint(-8, 9, (ROWS, columns), generator=GENERATOR) / 8
        case _:
            signs = torch.randint(0, 2, (ROWS, columns), generator=GENERATOR)
            return torch.where(signs == 0, 0.0, -0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 16), (4, 32), (8, 32), (8, 128)])
@pytest.mark.parametrize("columns", [96, 576, 98])
@pytest.mark.parametrize("kind", ["normal", "of every magnitude", "almost nothing", "all ties", "zeros of both signs"])
def test_is_the_runtimes_own_to_the_bit(
    kind: str, columns: int, bits: Bits, block_size: int, dtype: torch.dtype
) -> None:
    weights = weights_of_a_kind(kind, columns).to(dtype)
    codes, scales = by_the_runtime(weights, bits, block_size)
    found = quantise_rows(weights.clone(), bits, block_size)
    assert np.array_equal(found.codes.numpy(), codes)
    assert found.scales.dtype is dtype
    assert found.scales.numpy().tobytes() == scales.tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_off_than_half_a_step(bits: Bits) -> None:
    weights = torch.randn(ROWS, 128, generator=GENERATOR)
    found = dequantised(quantise_rows(weights.clone(), bits, 32), bits)
    steps = quantise_rows(weights.clone(), bits, 32).scales.abs().double().repeat_interleave(32, dim=1)
    highest = weights.double().abs() > (2 ** (bits - 1) - 1) * steps  # of the other sign than the extreme: cut off
    off = (found - weights.double()).abs() / steps
    assert off[~highest].max() <= 0.5 + 1e-5
    assert off[highest].max() <= 1.0 + 1e-5


def dequantised(quantised: Quantised, bits: int) -> torch.Tensor:
    """Return float64 `[rows, K]`, written down as the operator's documentation has it: (code - zero point) * scale."""
    codes = quantised.codes
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    zero_point = float(1 << (bits - 1))
    return ((codes.double() - zero_point) * quantised.scales.double().unsqueeze(-1)).flatten(-2)


def test_rows_do_not_depend_on_each_other() -> None:
    weights = torch.randn(ROWS, 96, generator=GENERATOR)
    whole = quantise_rows(weights.clone(), 4, 32)
    part = quantise_rows(weights[10:13].clone(), 4, 32)
    assert torch.equal(part.codes, whole.codes[10:13])
    assert torch.equal(part.scales, whole.scales[10:13])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_block_with_one_weight_that_is_not_finite_has_such_a_scale(wrong: float) -> None:
    weights = torch.randn(2, 64, generator=GENERATOR)
    weights[1, 40] = wrong
    assert quantise_rows(weights, 4, 32).scales.isfinite().tolist() == [[True, True], [True, False]]
