"""Kept blocks: the codes and scales that a GGUF file had, found again in its weights, so that nothing is lost.

A GGUF file is fetched as float32 weights, each a scale times a code. Of Q4_0 and Q8_0, blocks of 32 with a scale in
float16 and codes around zero, that is what MatMulNBits computes with, too: found again, they give every weight back.
Q4_1 and the K types have a minimum or a scale of scales, for which ONNX Runtime has no fast form: those weights are
quantised anew.

    weights of a block --extreme / 8, 7, ... 1--> scales that may be it --whole multiples only--> codes and scale

llama.cpp's own rounding gives the extreme the code -8 (Q4_0) or 127 (Q8_0), so the first scale tried is the one;
files made with an importance matrix have blocks where it is another.

Source: ggml/src/ggml-quants.c of ggml-org/llama.cpp, `quantize_row_q4_0_ref`, `dequantize_row_q4_0`, and of q8_0;
docs/ContribOperators.md of microsoft/onnxruntime, MatMulNBits.
"""

from typing import TYPE_CHECKING

from slmpack.checkpoint.blocks import Bits, Quantised, blocks_a_row, extremes, packed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_SIZE = 32


def exact_rows(weights: "Tensor", bits: Bits, block_size: int) -> Quantised | None:
    """Return the codes and scales whose products are the weights, every one of them; None if there are none.

    Zeros have no sign here: -0 comes back as 0 or -0.

    Args:
        weights: float32 `[rows, K]`, K even; not written to.

    Returns:
        As `quantise_rows`, the scales float32, of values that float16 has too.
    """
    import torch

    rows, columns = weights.shape
    padding = -columns % block_size
    blocks = torch.nn.functional.pad(weights, (0, padding)).view(-1, block_size)
    scales = _scales(blocks, 1 << (bits - 1))
    if scales is None:
        return None
    codes = _codes(blocks, scales).add_(1 << (bits - 1)).to(torch.uint8).view(rows, -1, block_size)
    if padding:
        codes[:, -1, block_size - padding :] = 0
    return Quantised(packed(codes) if bits == 4 else codes, scales.view(rows, blocks_a_row(columns, block_size)))


def _scales(blocks: "Tensor", half: int) -> "Tensor | None":
    """Return a scale for each block `[blocks, block_size]`, float32 `[blocks]`; None if one of them has none."""
    import torch

    farthest = extremes(blocks)
    scales = torch.zeros_like(farthest)
    left = (farthest != 0).nonzero().squeeze(1)  # of zeros only, zero is the scale; NaN stays, and fits none
    for code in (half - 1, *range(half, 0, -1)) if half > 8 else range(half, 0, -1):
        if not len(left):
            break
        # Only the lowest code has no counterpart; of the others the scale's sign does not matter.
        tried = farthest[left] / -half if code == half else farthest[left].abs() / code
        fits = _fits(blocks[left], tried, half)
        scales[left[fits]] = tried[fits]
        left = left[~fits]
    return None if len(left) else scales


def _fits(blocks: "Tensor", scales: "Tensor", half: int) -> "Tensor":
    """Tell which scales have a code for each weight of their block, bool `[blocks]`."""
    codes = _codes(blocks, scales)
    whole = (codes * scales.unsqueeze(-1) == blocks).all(-1)
    within = (codes.amin(-1) >= -half) & (codes.amax(-1) < half)
    return whole & within & (scales.half().float() == scales)


def _codes(blocks: "Tensor", scales: "Tensor") -> "Tensor":
    """Return the nearest codes around zero, float32; zeros where the scale is zero."""
    import torch

    divisors = torch.where(scales == 0, 1.0, scales).unsqueeze(-1)
    return (blocks / divisors).round_()
