"""Stored weights on the CPU: multiply a few activation rows straight from the packed words, and dequantize.

Weights are re-laid for this when they are first needed (weights/interleaving.py), in place of their rows as files have
them: the same bits, a tile of 16 rows at a time. What is computed stands in kernels/vectors.py and kernels/compiled.py;
here is which addresses and numbers it takes.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numba.core.registry import cpu_target

from quant_engine.kernels import compiled, stored_vectors, vectors
from quant_engine.kernels.stored_vectors import SCALE_TYPES, ScaledIntegers
from quant_engine.kernels.threads import Pace
from quant_engine.kernels.vectors import Halves, IntegerDots, Integers, Levels, TwoPlanes
from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary
from quant_engine.weights.codebook import BLOCKS_PER_STEP, Codebook, Fp4Codebook, dynamic_map
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.gguf_blocks import KINDS, GgufBlocks
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.half import Half
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.interleaving import ROWS
from quant_engine.weights.rotated import RotatedInt
from quant_engine.weights.scaled import Float8, ScaledInt

BLOCK = vectors.BLOCK
FEW_ROWS = 16
"""Up to so many activation rows, multiplying from the words beats dequantizing a tile."""
SERIAL_WORK = 2**20
"""Products of fewer weights times rows are over before a second thread has begun."""

_RELAYING = threading.Lock()
_PACES: defaultdict[int, Pace] = defaultdict(Pace)
"""By how much work there is to do at once."""


class Plan(NamedTuple):
    """How the kernels read a weight."""

    form: int
    bits: int
    variant: int
    weight: np.ndarray
    """What every kernel takes first, int64 [5]: where the numbers of its form (`side`) and its codes stand, blocks that
    share their numbers, blocks of a row, tiles."""
    side: np.ndarray
    product: int
    """The address of its `compiled.product`."""
    factors: np.ndarray
    groups: int

    @property
    def tiles(self) -> int:
        return int(self.weight[4])


_PLANS: WeakKeyDictionary[StoredWeight, Plan] = WeakKeyDictionary()
"""Of interleaved weights, as long as they stay so."""


def plan(weight: StoredWeight) -> Plan:
    """How the kernels read a weight that `fits`. Re-lays it the first time."""
    known = _PLANS.get(weight) if weight.interleaved else None
    if known is None:
        with _RELAYING:
            if not weight.interleaved:
                weight.interleave()
            known = _PLANS[weight] = _read(weight)
    return known


def _read(weight: StoredWeight) -> Plan:
    side: tuple[torch.Tensor | int | None, ...]
    if isinstance(weight, RotatedInt):
        form, variant, words, side, group = 0, Integers.ROTATED, weight.codes, (weight.scale, 0), weight.in_features
    elif isinstance(weight, Codebook):
        form, variant = 1, Levels.DOUBLE * weight.double | Levels.SHIFTED * weight.shifted
        form, words = 7 if isinstance(weight, Fp4Codebook) else form, weight.codes
        side = (weight.scales, weight.shifts, weight.scale_steps, weight.shift_steps, weight.scale_mean)
        side, group = (*side, dynamic_map(), -(-weight.blocks // BLOCKS_PER_STEP) - 1), weight.block
    elif isinstance(weight, ResidualBinary):
        form, variant, words, group = 3, TwoPlanes.RESIDUAL, weight.signs, weight.group
        side = (weight.scales, weight.marks, weight.salient)
    elif isinstance(weight, PartlyBinary):
        form, variant, words, group = 11, 0, weight.signs, weight.group
        side = (
            weight.scales, weight.marks, weight.codes, weight.starts, weight.grid_scales, weight.grid_zeros,
            vectors.EXPANSION.ctypes.data,
        )  # fmt: skip
    elif isinstance(weight, Binary):
        form, variant, words, side, group = 2, 0, weight.signs, (weight.scales, 0), weight.group
    elif isinstance(weight, DualBinary):
        form, variant, words, group = 3, TwoPlanes.DUAL, weight.planes, weight.group
        side = (weight.scales, weight.planes[1], 0)
    elif isinstance(weight, Half):
        form, words, side, group = 4, weight.values, (0,), weight.in_features
        variant = Halves.BFLOAT16 if weight.dtype == "bfloat16" else Halves.FLOAT16
    elif isinstance(weight, ScaledInt | Float8 | GgufBlocks):
        form, variant, words, side, group = _of_other_programs(weight)
    elif sums_integers(weight):
        form, variant, words, side, group = 12, Integers.MIDDLE, weight.codes, (weight.scales, 0), weight.in_features
    else:
        form, variant = 0, Integers.MIDDLE if weight.symmetric else Integers.ZEROS
        words, side, group = weight.codes, (weight.scales, weight.zeros), weight.group
    bits = getattr(weight, "bits", 1)
    addresses = [part.data_ptr() if isinstance(part, torch.Tensor) else part or 0 for part in side]
    numbers = np.array(addresses, np.int64)
    per_group, blocks = min(group, weight.in_features) // BLOCK, weight.in_features // BLOCK
    groups, tiles = -(-weight.in_features // group), -(-weight.out_features // ROWS)
    first = np.array([numbers.ctypes.data, words.data_ptr(), per_group, blocks, tiles], np.int64)
    product = compiled.product(form, bits, variant).address
    return Plan(form, bits, variant, first, numbers, product, stored_vectors.input_factors(form, bits), groups)


def sums_integers(weight: StoredWeight) -> bool:
    """Whether the products of this weight are sums of integers, as fast as any for however many activation rows."""
    return isinstance(weight, IntActivations) and weight.bits in IntegerDots.WIDTHS and fits(weight) and _has_dots()


@cache
def _has_dots() -> bool:
    return IntegerDots.is_fast(cpu_target.target_context.codegen().magic_tuple()[2])


def _of_other_programs(weight: ScaledInt | Float8 | GgufBlocks) -> tuple[int, int, torch.Tensor, tuple, int]:
    """Form, variant, words, side data and columns of a group of a form that other programs' files have."""
    if isinstance(weight, GgufBlocks):
        side = weight.scales, weight.minimums, weight.scale_codes, weight.minimum_codes
        form = 8 if weight.kind == "iq4_nl" else 9 if weight.group == BLOCK else 10
        return form, list(KINDS).index(weight.kind), weight.codes, side, 256 if form == 10 else BLOCK
    variant = SCALE_TYPES.index(weight.scale_dtype)
    if isinstance(weight, Float8):
        return 6, variant, weight.codes, (weight.scales,), weight.group
    zeros = 0 if weight.symmetric else ScaledIntegers.WITH_ZEROS
    return 5, variant + zeros, weight.codes, (weight.scales, weight.zeros), weight.group


def fits(weight: StoredWeight) -> bool:
    """Whether the kernels can take this weight: whole blocks of 32 columns, which do not lie across groups."""
    if isinstance(weight, Codebook):
        return weight.block % BLOCK == 0 and weight.in_features % weight.block == 0
    if isinstance(weight, GgufBlocks):
        return True
    return weight.in_features % BLOCK == 0 and (weight.group % BLOCK == 0 or weight.groups == 1)


def prepare(weight: StoredWeight) -> None:
    """Re-lays a weight that `fits`, once."""
    plan(weight)


def is_current(weight: StoredWeight, read: Plan) -> bool:
    """Whether a weight still lies as an earlier `plan` says."""
    return weight.interleaved and _PLANS.get(weight) is read


def multiply(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features] float32, transformed, to [rows, out_features] float32. The weight must be one that
    `fits`."""
    read = plan(weight)
    rows, columns = x.shape
    padded = padded_rows(rows)
    scaled, sums = np.empty((padded, columns), np.float32), np.empty((padded, read.groups), np.float32)
    y = np.empty((padded, read.tiles * ROWS), np.float32)
    inputs = x.detach().contiguous().numpy()
    if isinstance(weight, Binary):
        inputs = inputs * live_columns(weight)
    with _threads(weight.out_features * columns * rows) as parts:
        compiled.multiplier(parts > 1)(inputs, read.factors, read.product, read.weight, scaled, sums, y, parts)
    whole = torch.from_numpy(y)
    return whole if whole.shape == (rows, weight.out_features) else whole[:rows, : weight.out_features]


def padded_rows(rows: int) -> int:
    """How many activation rows are multiplied for so many: three are done as four, of which the last is zero."""
    return rows + (rows % vectors.AT_ONCE == vectors.AT_ONCE - 1)


def dequantize_rows(weight: StoredWeight, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of the matrix between the weight's transforms, float32 [end - start, in_features], a view
    of columns that follow each other in memory."""
    if not fits(weight):
        return weight.stored_rows(start, end)
    columns = _columns(weight, plan(weight), start, end)
    if isinstance(weight, Binary):
        columns *= torch.from_numpy(live_columns(weight))[:, None]
    return columns.T


def _columns(
    weight: StoredWeight, read: Plan, start: int, end: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The transpose of `dequantize_rows`."""
    first, last = start // ROWS, -(-end // ROWS)
    out = torch.empty((weight.in_features, (last - first) * ROWS), dtype=dtype)
    kernel = compiled.dequantizer(read.form, read.bits, read.variant).address
    with _threads(4 * out.numel()) as parts:
        compiled.unpacker(parts > 1)(kernel, read.weight, out.numpy(), first, parts)
    return out[:, start - first * ROWS : end - first * ROWS]


def integer_rows(weight: GroupedInt, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of code - zero as int8 [end - start, in_features], for symmetric weights with a group a
    row that `fits`."""
    whole = plan(weight)._replace(variant=Integers.WHOLE)
    return _columns(weight, whole, start, end, torch.int8).T


def _threads(work: int) -> AbstractContextManager[int]:
    """How many threads so much work is worth, which is then done."""
    return nullcontext(1) if work < SERIAL_WORK or torch.get_num_threads() == 1 else _PACES[work].threads()


def live_columns(weight: Binary) -> np.ndarray:
    """1 for each column that has weights, and 0 for others: uint8 [in_features], which is whole words."""
    return np.unpackbits(weight.live.numpy().view(np.uint8), bitorder="little")
