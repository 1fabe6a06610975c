"""Stored weights on the CPU: multiply a few activation rows straight from the packed words, and dequantize.

Weights are re-laid for this when they are first needed (weights/interleaving.py), in place of their rows as files have
them: the same bits, a tile of 16 rows at a time. What is computed stands in kernels/vectors.py; here is which addresses
and numbers it takes.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch

from quant_engine.kernels import vectors
from quant_engine.kernels.vectors import Integers, Levels
from quant_engine.weights.binary import Binary
from quant_engine.weights.codebook import BLOCKS_PER_STEP, Codebook, dynamic_map
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.interleaving import ROWS
from quant_engine.weights.rotated import RotatedInt

BLOCK = vectors.BLOCK
FEW_ROWS = 16
"""Up to so many activation rows, multiplying from the words beats dequantizing a tile."""
SERIAL_WORK = 2**20
"""Products of fewer weights times rows are over before a second thread has begun."""

_RELAYING = threading.Lock()


class _Kind(NamedTuple):
    """How the tile kernels read a weight."""

    form: int
    bits: int
    variant: int
    words: torch.Tensor
    side: tuple[torch.Tensor | int | None, ...]
    """Tensors whose addresses the form takes, and numbers."""
    group: int
    """Columns that share their numbers."""


def _kind(weight: StoredWeight) -> _Kind:
    n = weight.in_features
    if isinstance(weight, RotatedInt):
        return _Kind(0, weight.bits, Integers.ROTATED, weight.codes, (weight.scale, None), n)
    if isinstance(weight, Codebook):
        variant = Levels.DOUBLE * weight.double | Levels.SHIFTED * weight.shifted
        last = -(-weight.blocks // BLOCKS_PER_STEP) - 1
        side = (weight.scales, weight.shifts, weight.scale_steps, weight.shift_steps, weight.scale_mean)
        return _Kind(1, weight.bits, variant, weight.codes, (*side, dynamic_map(), last), weight.block)
    if isinstance(weight, Binary):
        return _Kind(2, 1, 0, weight.signs, (weight.scales, None), weight.group)
    if isinstance(weight, DualBinary):
        return _Kind(3, 1, 0, weight.planes, (weight.scales, None), weight.group)
    variant = Integers.MIDDLE if weight.symmetric else Integers.ZEROS
    return _Kind(0, weight.bits, variant, weight.codes, (weight.scales, weight.zeros), weight.group)


def fits(weight: StoredWeight) -> bool:
    """Whether the kernels can take this weight: whole blocks of 32 columns, which do not lie across groups."""
    if isinstance(weight, Codebook):
        return weight.block % BLOCK == 0 and weight.in_features % weight.block == 0
    return weight.in_features % BLOCK == 0 and (weight.group % BLOCK == 0 or weight.groups == 1)


def prepare(weight: StoredWeight) -> None:
    """Re-lays a weight that `fits`, once."""
    with _RELAYING:
        if not weight.interleaved:
            weight.interleave()


def multiply(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features] float32, transformed, to [rows, out_features] float32. The weight must be one that
    `fits`."""
    prepare(weight)
    kind = _kind(weight)
    rows, columns, tiles = *x.shape, -(-weight.out_features // ROWS)
    # Three rows are done as four, of which the last is zero.
    padded = rows + (rows % vectors.AT_ONCE == vectors.AT_ONCE - 1)
    scaled, sums = np.empty((padded, columns), np.float32), np.empty((padded, -(-columns // kind.group)), np.float32)
    y = np.empty((padded, tiles * ROWS), np.float32)
    parts = torch.get_num_threads() if weight.out_features * columns * rows >= SERIAL_WORK else 1
    inputs = x.detach().contiguous().numpy()
    run = vectors.multiplier(kind.form, kind.bits, kind.variant, parts > 1)
    factors, side = vectors.input_factors(kind.form, kind.bits), _addresses(kind.side)
    per_group = min(kind.group, columns) // BLOCK
    if isinstance(weight, Binary):
        inputs = inputs * _live(weight)
    run(inputs, factors, kind.words.data_ptr(), side.ctypes.data, per_group, scaled, sums, y, parts)
    return torch.from_numpy(y)[:rows, : weight.out_features]


def dequantize_rows(weight: StoredWeight, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of the matrix between the weight's transforms, float32 [end - start, in_features], a view
    of columns that follow each other in memory."""
    if not fits(weight):
        return weight.stored_rows(start, end)
    prepare(weight)
    columns = _columns(weight, _kind(weight), start, end)
    if isinstance(weight, Binary):
        columns *= torch.from_numpy(_live(weight))[:, None]
    return columns.T


def _columns(
    weight: StoredWeight, kind: _Kind, start: int, end: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The transpose of `dequantize_rows`."""
    first, last = start // ROWS, -(-end // ROWS)
    out = torch.empty((weight.in_features, (last - first) * ROWS), dtype=dtype)
    parts = torch.get_num_threads() if out.numel() >= SERIAL_WORK // 4 else 1
    run = vectors.dequantizer(kind.form, kind.bits, kind.variant, parts > 1)
    side, tiles = _addresses(kind.side), -(-weight.out_features // ROWS)
    per_group = min(kind.group, weight.in_features) // BLOCK
    run(kind.words.data_ptr(), side.ctypes.data, per_group, first, tiles, out.numpy(), parts)
    return out[:, start - first * ROWS : end - first * ROWS]


def integer_rows(weight: GroupedInt, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of code - zero as int8 [end - start, in_features], for symmetric weights with a group a
    row that `fits`."""
    prepare(weight)
    kind = _Kind(0, weight.bits, Integers.WHOLE, weight.codes, (None, None), weight.in_features)
    return _columns(weight, kind, start, end, torch.int8).T


def _live(weight: Binary) -> np.ndarray:
    """1 for each column that has weights, and 0 for others: uint8 [in_features], which is whole words."""
    return np.unpackbits(weight.live.numpy().view(np.uint8), bitorder="little")


def _addresses(side: tuple[torch.Tensor | int | None, ...]) -> np.ndarray:
    return np.array([part.data_ptr() if isinstance(part, torch.Tensor) else part or 0 for part in side], np.int64)
