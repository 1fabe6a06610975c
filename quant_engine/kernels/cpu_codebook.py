"""Codebook weights on the CPU: multiply one activation row straight from the packed words, and dequantize.

For a row of weights whose blocks have a scale s and perhaps a shift t, and an input x:

    y = sum over blocks of  s * sum of level[code_j] x_j  +  t * sum of x_j

Laid out as in kernels/cpu.py: one vector lane takes 32 codes, which fill exactly b words. The levels are constants of
the generated code, so that looking up a lane's levels is one gather.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
import torch

from quant_engine.kernels.cpu import BLOCK, row_kernels
from quant_engine.weights.codebook import BLOCKS_PER_STEP, Codebook, dynamic_map, levels


def fits(weight: Codebook) -> bool:
    """Whether the row kernel can take this weight: whole lanes of 32, which do not lie across blocks."""
    return weight.in_features % BLOCK == 0 and weight.block % BLOCK == 0


def multiply_row(x: torch.Tensor, weight: Codebook) -> torch.Tensor:
    """`x` [in_features] float32 to [out_features] float32. The weight must be one that `fits`."""
    y = np.empty(weight.out_features, np.float32)
    words = weight.codes.numpy().view(np.uint32)
    _compiled(weight.bits).multiply(x.detach().numpy(), words, *_side_data(weight), weight.block // BLOCK, y)
    return torch.from_numpy(y)


def dequantize_rows(weight: Codebook, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` as float32 [end - start, in_features]."""
    if not fits(weight):
        return weight.dequantize(start, end)
    out = np.empty((end - start, weight.in_features), np.float32)
    words = weight.codes.numpy().view(np.uint32)
    _compiled(weight.bits).dequantize(words, *_side_data(weight), weight.block // BLOCK, start, out)
    return torch.from_numpy(out)


def _side_data(weight: Codebook) -> tuple[np.ndarray | float | None, ...]:
    """Scales, their steps and mean, shifts and their steps; None for what is not there."""
    arrays = (weight.scales, weight.scale_steps, weight.shifts, weight.shift_steps)
    scales, scale_steps, shifts, shift_steps = (None if a is None else a.numpy() for a in arrays)
    return scales, scale_steps, weight.scale_mean.item() if weight.double else 0.0, shifts, shift_steps


_VALUE_OF = """
LEVELS = np.array({levels}, np.float32)
DYNAMIC = np.array({dynamic}, np.float32)


@njit(error_model="numpy")
def value_of(values, steps, mean, block):
    # A block's scale or shift. What is None is settled when compiling.
    if values is None:
        return np.float32(0)
    if steps is None:
        return values[block]
    return DYNAMIC[values[block]] * steps[block // {blocks_per_step}] + np.float32(mean)
"""
_SUM_UP = """
first = row * used
for block in range(first // per_block, (first + used - 1) // per_block + 1):
    part, inputs = np.float32(0), np.float32(0)
    for k in range(max(block * per_block - first, 0), min((block + 1) * per_block - first, used)):
        part += dots[k]
        inputs += sums[k]
    total += value_of(scales, scale_steps, scale_mean, block) * part
    total += value_of(shifts, shift_steps, 0.0, block) * inputs
"""
_LANES_OF_ROW = """
first = row * used
for block in range(first // per_block, (first + used - 1) // per_block + 1):
    scale = value_of(scales, scale_steps, scale_mean, block)
    shift = value_of(shifts, shift_steps, 0.0, block)
    for k in range(max(block * per_block - first, 0), min((block + 1) * per_block - first, used)):
"""


@cache
def _compiled(bits: int) -> ModuleType:
    """The kernels of one width."""
    return row_kernels(
        "codebook",
        bits,
        head=_VALUE_OF.format(
            levels=levels(bits).tolist(), dynamic=dynamic_map().tolist(), blocks_per_step=BLOCKS_PER_STEP
        ),
        side="scales, scale_steps, scale_mean, shifts, shift_steps, per_block",
        code="LEVELS[{}]",
        sum_up=_SUM_UP,
        lanes_of_row=_LANES_OF_ROW,
        weight="{} * scale + shift",
    )
