"""Zero-point search: the best of the ranges that are tried, as plain loops in float64 find it, and never worse."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slmpack.checkpoint.blocks import dequantise_rows, packed_zeros, quantise_rows, unpacked
from slmpack.errors import BuildError
from slmpack.quantise.scale_search import search_rows
from slmpack.quantise.zero_point_search import ENDS, search_zero_points

GENERATOR = torch.Generator().manual_seed(0)
ROWS = 16
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


def lopsided_weights(columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return weights whose blocks reach further to one side, as a few large channels make them."""
    weights = torch.randn(ROWS, columns, generator=GENERATOR) * 0.02
    return (weights + 0.05 * torch.rand(ROWS, columns, generator=GENERATOR) ** 8).to(dtype)


def uneven_energy(columns: int) -> torch.Tensor:
    return torch.exp(4 * torch.randn(columns, generator=GENERATOR))


def losses(found: torch.Tensor, weights: torch.Tensor, energy: torch.Tensor, block_size: int) -> NDArray[np.float64]:
    """Return the weighted error of every block, float64 `[rows, blocks]`."""
    lost = ((found.double() - weights.double()) ** 2 * energy.double()).numpy()
    lost = np.pad(lost, ((0, 0), (0, -lost.shape[1] % block_size)))
    summed: NDArray[np.float64] = lost.reshape(len(lost), -1, block_size).sum(axis=-1)
    return summed


def slow_search(weights: NDArray[np.float64], energy: NDArray[np.float64]) -> float:
    """Return what a block loses in float64 with the best of the ranges and its scale fitted twice."""

    def codes_for(scale: float, zero: float) -> NDArray[np.float64]:
        return np.clip(np.round(weights / scale + zero), 0, 15)

    def fitted(codes: NDArray[np.float64], zero: float) -> float:
        steps = codes - zero
        return float((energy * weights * steps).sum() / (energy * steps**2).sum())

    def loss_of(codes: NDArray[np.float64], scale: float, zero: float) -> float:
        return float((energy * (weights - (codes - zero) * scale) ** 2).sum())

    lowest, highest = min(weights.min(), 0.0), max(weights.max(), 0.0)
    tried = []
    for lower, upper in product(ENDS, ENDS):
        scale = (highest - lowest) * (1 - lower - upper) / 15
        zero = float(np.clip(np.round(-(lowest + (highest - lowest) * lower) / scale), 0, 15))
        codes = codes_for(scale, zero)
        tried.append((loss_of(codes, fitted(codes, zero), zero), fitted(codes, zero), zero))
    _, scale, zero = min(tried)
    scale = fitted(codes_for(scale, zero), zero)
    return loss_of(codes_for(scale, zero), scale, zero)


@pytest.mark.parametrize("columns", [192, 96, 72])
def test_finds_what_a_plain_search_in_float64_finds(columns: int) -> None:
    weights, energy = lopsided_weights(columns), uneven_energy(columns)
    found = losses(dequantise_rows(search_zero_points(weights, energy, 32), columns, 4, 32), weights, energy, 32)
    symmetric = losses(dequantise_rows(search_rows(weights, energy, 4, 32), columns, 4, 32), weights, energy, 32)
    padding = -columns % 32
    blocks = np.pad(weights.double().numpy(), ((0, 0), (0, padding))).reshape(ROWS, -1, 32)
    counts = np.pad(energy.double().numpy(), (0, padding)).reshape(-1, 32)
    for row, block in np.ndindex(found.shape):
        expected = min(slow_search(blocks[row, block], counts[block]), symmetric[row, block])
        size = (counts[block] * blocks[row, block] ** 2).sum()
        assert found[row, block] == pytest.approx(expected, rel=1e-3, abs=1e-6 * size), (row, block)


@DTYPES
@pytest.mark.parametrize("block_size", [16, 32])
def test_no_block_is_worse_than_without_a_zero_point_and_most_are_better(dtype: torch.dtype, block_size: int) -> None:
    weights, energy = lopsided_weights(192, dtype), uneven_energy(192)
    found = dequantise_rows(search_zero_points(weights, energy, block_size), 192, 4, block_size)
    symmetric = dequantise_rows(search_rows(weights, energy, 4, block_size), 192, 4, block_size)
    lost, lost_without = (losses(each, weights, energy, block_size) for each in (found, symmetric))
    assert (lost <= lost_without * (1 + 1e-4)).all()
    assert (lost < lost_without).mean() > 0.5
    assert lost.sum() < 0.9 * lost_without.sum()


def test_without_energy_or_with_a_number_that_is_not_finite_a_block_is_as_by_default() -> None:
    weights, energy = lopsided_weights(96), uneven_energy(96)
    energy[:32] = 0.0
    weights[3, 40] = float("nan")
    found, default = search_zero_points(weights, energy, 32), quantise_rows(weights.clone(), 4, 32)
    assert found.zeros is not None
    for rows, block in ((slice(None), 0), (slice(3, 4), 1)):
        assert torch.equal(found.zeros[rows, block], torch.full_like(found.zeros[rows, block], 8))
        assert torch.equal(found.scales[rows, block].isnan(), default.scales[rows, block].isnan())
    assert torch.equal(found.codes[:, 0], default.codes[:, 0])


def test_rows_come_out_as_they_do_alone() -> None:
    weights, energy = lopsided_weights(96), uneven_energy(96)
    together = search_zero_points(weights, energy, 32)
    assert together.zeros is not None
    for row in (0, ROWS - 1):
        alone = search_zero_points(weights[row : row + 1], energy, 32)
        assert alone.zeros is not None
        assert torch.equal(alone.zeros[0], together.zeros[row])
        torch.testing.assert_close(alone.scales[0], together.scales[row])


def test_two_zero_points_share_a_byte_the_first_in_its_lower_half() -> None:
    zeros = torch.tensor([[1, 2, 3], [15, 0, 8]], dtype=torch.uint8)
    assert packed_zeros(zeros).tolist() == [[1 | 2 << 4, 3], [15, 8]]
    codes = torch.tensor([[0x21, 0xF3]], dtype=torch.uint8)
    assert unpacked(codes).tolist() == [[1, 2, 3, 15]]


def test_refuses_the_energy_of_another_matrix() -> None:
    with pytest.raises(BuildError, match=r"a calibration of shape \[64\]; \[96\], as the weight's rows"):
        search_zero_points(lopsided_weights(96), uneven_energy(64), 32)
