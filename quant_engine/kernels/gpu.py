"""Low-bit weights on a GPU, in Triton: multiply a few activation rows straight from the packed words, and dequantize.

A program takes a few rows of the weight and walks over their columns, a tile at a time. What differs between forms is
one function that makes a tile's values from what is stored. All of a tile's columns share a group where groups are
whole tiles; then scales are read once for each row (`lead` is the tile's first column), otherwise for every weight.
A single row, as answers are decoded with, goes through a kernel of its own where there is one (gpu_row.py).

The kernels also run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 before this module is imported).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from quant_engine.kernels import gpu_row
from quant_engine.kernels.gpu_codes import code_at, twice_quantized
from quant_engine.weights.binary import LOW_BITS, Binary, PartlyBinary
from quant_engine.weights.codebook import BLOCKS_PER_STEP, Codebook, dynamic_map
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.rotated import RotatedInt

FEW_ROWS = 16
"""Up to so many activation rows are multiplied from packed words: the least that a GPU's matrix units take at once."""
ROWS_BY_COLUMNS = 512
"""Weights in a tile for one activation row: four for each of 128 threads."""
TILE_WEIGHTS = 2**22
"""Weights that are dense at once where many rows are multiplied: 16 MiB in float32."""
FORMS = (GroupedInt, RotatedInt, Codebook, DualBinary, Binary)
"""With their subclasses; the parts of other forms are of these."""
CLOSE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""By type of the activations, how far a kernel may be off at its first use: the error's norm over the product's."""

log = logging.getLogger(__name__)
_WORKS: dict[tuple[Any, ...], bool] = {}
"""What `fits` decided, by what a kernel is compiled for."""


@triton.jit
def _integers(side, config: tl.constexpr, n, row, col, lead, inside, known, seen):
    """scale * (code - zero): grouped integers, also for integer activations; rotated ones have one scale for all."""
    codes, scales, zeros = side
    bits: tl.constexpr = config[0]
    group: tl.constexpr = config[1]
    groups: tl.constexpr = config[2]
    code = code_at(codes + row * tl.cdiv(n * bits, 32), col, bits, inside)
    at = row * groups + lead // group
    scale = tl.load(scales + at, known, 0).to(tl.float32)
    zero = config[3] if zeros is None else code_at(zeros, at, bits, known).to(tl.float32)
    return scale * (code - zero), seen


@triton.jit
def _levels(side, config: tl.constexpr, n, row, col, lead, inside, known, seen):
    """level[code] * scale + shift: codebook weights."""
    codes, table, dynamic, scales, scale_steps, scale_mean, shifts, shift_steps = side
    bits: tl.constexpr = config[0]
    block: tl.constexpr = config[1]
    per_step: tl.constexpr = config[2]
    code = code_at(codes + row * tl.cdiv(n * bits, 32), col, bits, inside)
    at = (row * n + lead) // block
    scale = twice_quantized(scales, scale_steps, dynamic, per_step, at, known)
    if scale_mean is not None:
        scale += tl.load(scale_mean)
    value = tl.load(table + code) * scale
    if shifts is not None:
        value += twice_quantized(shifts, shift_steps, dynamic, per_step, at, known)
    return value, seen


@triton.jit
def _two_planes(side, config: tl.constexpr, n, row, col, lead, inside, known, seen):
    """a1 * b1 + a2 * b2: dual-binary weights."""
    b1, b2, first, second = side
    group: tl.constexpr = config[0]
    groups: tl.constexpr = config[1]
    words = row * tl.cdiv(n, 32)
    at = row * groups + lead // group
    a1, a2 = tl.load(first + at, known, 0).to(tl.float32), tl.load(second + at, known, 0).to(tl.float32)
    return a1 * code_at(b1 + words, col, 1, inside) + a2 * code_at(b2 + words, col, 1, inside), seen


@triton.jit
def _term(scales, at, known, positive):
    """mean + spread where positive, else mean - spread."""
    mean = tl.load(scales + at, known, 0).to(tl.float32)
    spread = tl.load(scales + at + 1, known, 0).to(tl.float32)
    return tl.where(positive, mean + spread, mean - spread)


@triton.jit
def _signs(side, config: tl.constexpr, n, row, col, lead, inside, known, seen):
    """Binary weights with one term; with four and salient columns (BiLLM); with salient weights of 8 bits (PB-LLM).

    These lie in a stream of their own: a salient weight's place there is its row's start and the number of salient
    weights `seen` before it in the row.
    """
    signs, scales, live, marks, salient, codes, starts, grid_scales, grid_zeros = side
    group: tl.constexpr = config[0]
    groups: tl.constexpr = config[1]
    terms: tl.constexpr = config[2]
    low_bits: tl.constexpr = config[3]
    words = row * tl.cdiv(n, 32)
    at = (row * groups + lead // group) * (2 * terms)
    sign = code_at(signs + words, col, 1, inside)
    value = _term(scales, at, known, sign > 0)
    if marks is not None:
        mark = code_at(marks + words, col, 1, inside)
        if salient is not None:
            value = tl.where(mark > 0, _term(scales, at + 2, known, sign > 0), value)
            both = _term(scales, at + 4, known, sign > 0) + _term(scales, at + 6, known, mark > 0)
            value = tl.where(code_at(salient, col, 1, inside) > 0, both, value)
        else:
            salient_here = inside & (mark > 0)
            index = tl.load(starts + row) + seen + tl.cumsum(mark, 1) - mark
            code = code_at(codes, index, low_bits, salient_here) + (sign << low_bits)
            grid = tl.load(grid_scales + row).to(tl.float32) * (code - tl.load(grid_zeros + row).to(tl.int32))
            value = tl.where(salient_here, grid, value)
            seen += tl.sum(mark, 1)[:, None]
    return value * code_at(live, col, 1, inside), seen


@triton.jit
def _tile(start, n, whole: tl.constexpr, columns: tl.constexpr):
    """A tile's columns, the columns that stand for its groups, and which of both are there."""
    col = start + tl.arange(0, columns)[None, :]
    lead = tl.full([1, 1], start, tl.int32) if whole else col
    return col, lead, col < n, lead < n


@triton.jit(do_not_specialize=["count"])
def _multiply(
    x, y, side, count, m, n,
    values: tl.constexpr, config: tl.constexpr, whole: tl.constexpr,
    tokens: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """y [count, m] = x [count, n] times the weight's transpose, for `rows` rows of the weight."""
    here = tl.program_id(0) * rows + tl.arange(0, rows)
    row = tl.minimum(here, m - 1)[:, None]
    seen = tl.zeros([rows, 1], tl.int32)
    token = tl.arange(0, tokens)
    total = tl.zeros([rows, columns] if tokens == 1 else [tokens, rows], tl.float32)
    for start in range(0, n, columns):
        col, lead, inside, known = _tile(start, n, whole, columns)
        weight, seen = values(side, config, n, row, col, lead, inside, known, seen)
        inputs = tl.load(x + token[:, None] * n + col, (token < count)[:, None] & inside, 0)
        if tokens == 1:
            total += tl.where(inside, weight, 0) * inputs.to(tl.float32)
        else:
            weight = tl.where(inside, weight, 0).to(x.dtype.element_ty)
            total = tl.dot(inputs, tl.trans(weight), total, input_precision="ieee")
    if tokens == 1:
        tl.store(y + here, tl.sum(total, 1), here < m)
    else:
        there = (token < count)[:, None] & (here < m)[None, :]
        tl.store(y + token[:, None] * m + here[None, :], total, there)


@triton.jit(do_not_specialize=["first"])
def _dequantize(
    out, side, first, m, n,
    values: tl.constexpr, config: tl.constexpr, whole: tl.constexpr, in_order: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `first` + m of the weight, into out [m, n]; a tile each, or all of a row's tiles `in_order`."""
    here = tl.program_id(0) * rows + tl.arange(0, rows)[:, None]
    row = first + tl.minimum(here, m - 1)
    seen = tl.zeros([rows, 1], tl.int32)
    begin = 0 if in_order else tl.program_id(1) * columns
    end = n if in_order else begin + columns
    for start in range(begin, end, columns):
        col, lead, inside, known = _tile(start, n, whole, columns)
        weight, seen = values(side, config, n, row, col, lead, inside, known, seen)
        tl.store(out + here * n + col, weight, (here < m) & inside)


_SUMS = {_integers: gpu_row.integer_sums, _levels: gpu_row.level_sums, _two_planes: gpu_row.plane_sums}
"""By the function of a tile's values, that of the sums with a single row, where there is one."""


class _Plan(NamedTuple):
    """How the kernels read a form: the function of its values, what is stored, numbers known when compiling."""

    values: Any
    side: tuple[torch.Tensor | None, ...]
    config: tuple[float, ...]
    group: int
    """So many columns, from a multiple of it on, share a group in every row; 0: no such number."""
    in_order: bool = False
    """Whether a row's tiles have to be read from the left."""


def _plan(weight: StoredWeight) -> _Plan:
    if isinstance(weight, RotatedInt):
        config = (weight.bits, weight.in_features, 0, weight.middle)
        return _Plan(_integers, (weight.codes, weight.scale, None), config, weight.in_features)
    if isinstance(weight, Codebook):
        side = (
            weight.codes, weight.levels(weight.device), dynamic_map(weight.device),
            weight.scales, weight.scale_steps, weight.scale_mean, weight.shifts, weight.shift_steps,
        )  # fmt: skip
        group = weight.block if weight.in_features % weight.block == 0 else 0
        return _Plan(_levels, side, (weight.bits, weight.block, BLOCKS_PER_STEP), group)
    if isinstance(weight, DualBinary):
        return _Plan(_two_planes, (*weight.planes, *weight.scales), (weight.group, weight.groups), weight.group)
    if isinstance(weight, Binary):
        names = ("signs", "scales", "live", "marks", "salient", "codes", "starts", "grid_scales", "grid_zeros")
        partly = isinstance(weight, PartlyBinary)
        side = [getattr(weight, name, None) for name in names]
        if partly:
            side[names.index("salient")] = None  # here a count
        return _Plan(_signs, tuple(side), (weight.group, weight.groups, weight.terms, LOW_BITS), weight.group, partly)
    config = (weight.bits, weight.group, weight.groups, float(weight.middle))
    return _Plan(_integers, (weight.codes, weight.scales, weight.zeros), config, weight.group)


def _columns(plan: _Plan, n: int) -> tuple[bool, int]:
    """Whether tiles lie within groups, and the columns of a tile."""
    if plan.group >= n:
        return True, 128
    for columns in (128, 64, 32):
        if plan.group and plan.group % columns == 0:
            return True, columns
    return False, 64


def fits(weight: StoredWeight, dtype: torch.dtype) -> bool:
    """Whether the kernels can take this weight and activations of this type.

    Compilers and cards differ, so each kernel is held against torch's own operations when it is first needed, and left
    out with a warning where it does not compile or disagrees.
    """
    if not isinstance(weight, FORMS) or dtype not in CLOSE or weight.out_features * weight.in_features >= 2**31:
        return False
    plan = _plan(weight)
    there = tuple(part is not None for part in plan.side)
    key = (weight.device, dtype, plan.values, plan.config, there, weight.in_features)
    if key not in _WORKS:
        _WORKS[key] = _works(weight, dtype)
    return _WORKS[key]


@torch.no_grad()
def _works(weight: StoredWeight, dtype: torch.dtype) -> bool:
    rows = min(weight.out_features, 64)
    dense = weight.stored_rows(0, rows)
    random = torch.Generator().manual_seed(0)
    x = torch.randn((FEW_ROWS, weight.in_features), generator=random).to(weight.device, dtype)
    product = x.float() @ dense.T
    try:
        pairs = [(dequantize_rows(weight, 0, rows), dense)]
        pairs += [(multiply(x[:count], weight)[:, :rows], product[:count]) for count in (1, FEW_ROWS)]
        off = torch.stack([(product - exact).norm() / exact.norm().clamp(min=1e-30) for product, exact in pairs]).max()
    except Exception as error:  # a compiler, a driver or a card can refuse in any way
        log.warning("%s weights are multiplied by torch's operations: %s", weight.form, error)
        return False
    if off <= CLOSE[dtype]:
        return True
    log.warning("%s weights are multiplied by torch's operations: Triton's product is off by %.1g", weight.form, off)
    return False


def multiply(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features], at most FEW_ROWS, times the stored weight's transpose: float32 [rows, out_features]."""
    plan, (m, n) = _plan(weight), (weight.out_features, weight.in_features)
    if len(x) == 1 and _in_eights(plan, n):
        return gpu_row.multiply_row(x, m, _SUMS[plan.values], plan.side, plan.config)
    whole, columns = _columns(plan, n)
    tokens, rows = 1, ROWS_BY_COLUMNS // columns
    if len(x) > 1:
        tokens, rows, columns = FEW_ROWS, 32, 32
    y = torch.empty((len(x), m), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _multiply[(triton.cdiv(m, rows),)](
            x.contiguous(), y, plan.side, len(x), m, n,
            plan.values, plan.config, whole, tokens, rows, columns, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def _in_eights(plan: _Plan, n: int) -> bool:
    """Whether the codes of eight columns lie in two words at most and share a scale."""
    return (
        plan.values in _SUMS and plan.config[0] != 7 and (plan.group >= n or (plan.group > 0 and plan.group % 8 == 0))
    )


def dequantize_rows(weight: StoredWeight, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of the stored weight, as float32 [end - start, in_features], bit for bit as the form's."""
    plan, n = _plan(weight), weight.in_features
    whole, columns = _columns(plan, n)
    rows = 2 * ROWS_BY_COLUMNS // columns
    out = torch.empty((end - start, n), dtype=torch.float32, device=weight.device)
    grid = (triton.cdiv(end - start, rows), 1 if plan.in_order else triton.cdiv(n, columns))
    with torch.cuda.device_of(out):
        _dequantize[grid](
            out, plan.side, start, end - start, n,
            plan.values, plan.config, whole, plan.in_order, rows, columns, enable_fp_fusion=False,
        )  # fmt: skip
    return out
