"""A single activation row times a stored weight on a GPU, in Triton: what an answer is decoded with.

What limits it is how many bytes are on their way at once. So every word is loaded once, for eight codes, by a thread
that has words of several rows on their way, and what eight columns share is applied to their sums. What differs between
forms is one function of such sums. Groups must be eights of columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from quant_engine.kernels.gpu_codes import code_at, eight_at, twice_quantized

ROWS, EIGHTS = 4, 256
"""Rows and eights of columns in a tile: a thread has two words of four rows on their way."""


@triton.jit
def _digit(window, bits: tl.constexpr, j: tl.constexpr):
    """Code `j` of the eight in a `window` of bits, int32."""
    return ((window >> (j * bits)) & (2**bits - 1)).to(tl.int32)


@triton.jit
def _sum(inputs):
    """The sum of eight columns."""
    total = inputs[0]
    for j in tl.static_range(1, 8):
        total += inputs[j]
    return total


@triton.jit
def integer_sums(side, config: tl.constexpr, n, row, e, there, inputs):
    """scale * (sum of code * x - zero * sum of x): grouped integers, also for integer activations; rotated ones."""
    codes, scales, zeros = side
    bits: tl.constexpr = config[0]
    group: tl.constexpr = config[1]
    groups: tl.constexpr = config[2]
    row_words = tl.cdiv(n * bits, 32)
    window = eight_at(codes + row * row_words, e, row_words, bits, there)
    products = _digit(window, bits, 0).to(tl.float32) * inputs[0]
    for j in tl.static_range(1, 8):
        products += _digit(window, bits, j).to(tl.float32) * inputs[j]
    at = row * groups + e * 8 // group
    scale = tl.load(scales + at, there, 0).to(tl.float32)
    zero = config[3] if zeros is None else code_at(zeros, at, bits, there).to(tl.float32)
    return scale * (products - zero * _sum(inputs))


@triton.jit
def level_sums(side, config: tl.constexpr, n, row, e, there, inputs):
    """scale * sum of level[code] * x + shift * sum of x: codebook weights."""
    codes, table, dynamic, scales, scale_steps, scale_mean, shifts, shift_steps = side
    bits: tl.constexpr = config[0]
    block: tl.constexpr = config[1]
    per_step: tl.constexpr = config[2]
    row_words = tl.cdiv(n * bits, 32)
    window = eight_at(codes + row * row_words, e, row_words, bits, there)
    products = tl.load(table + _digit(window, bits, 0)) * inputs[0]
    for j in tl.static_range(1, 8):
        products += tl.load(table + _digit(window, bits, j)) * inputs[j]
    at = (row * n + e * 8) // block
    scale = twice_quantized(scales, scale_steps, dynamic, per_step, at, there)
    if scale_mean is not None:
        scale += tl.load(scale_mean)
    total = scale * products
    if shifts is not None:
        total += twice_quantized(shifts, shift_steps, dynamic, per_step, at, there) * _sum(inputs)
    return total


@triton.jit
def plane_sums(side, config: tl.constexpr, n, row, e, there, inputs):
    """a1 * sum of b1 * x + a2 * sum of b2 * x: dual-binary weights."""
    b1, b2, first, second = side
    group: tl.constexpr = config[0]
    groups: tl.constexpr = config[1]
    row_words = tl.cdiv(n, 32)
    window1 = eight_at(b1 + row * row_words, e, row_words, 1, there)
    window2 = eight_at(b2 + row * row_words, e, row_words, 1, there)
    products1 = _digit(window1, 1, 0).to(tl.float32) * inputs[0]
    products2 = _digit(window2, 1, 0).to(tl.float32) * inputs[0]
    for j in tl.static_range(1, 8):
        products1 += _digit(window1, 1, j).to(tl.float32) * inputs[j]
        products2 += _digit(window2, 1, j).to(tl.float32) * inputs[j]
    at = row * groups + e * 8 // group
    a1, a2 = tl.load(first + at, there, 0).to(tl.float32), tl.load(second + at, there, 0).to(tl.float32)
    return a1 * products1 + a2 * products2


@triton.jit
def _apart(values, eights: tl.constexpr):
    """The columns of `values` [eights, 8], each [1, eights]. They stay in the thread that loaded them."""
    even, odd = tl.split(tl.reshape(values, [eights, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0[None, :], x1[None, :], x2[None, :], x3[None, :], x4[None, :], x5[None, :], x6[None, :], x7[None, :]


@triton.jit
def _multiply_row(
    x, y, side, m, n, sums: tl.constexpr, config: tl.constexpr, rows: tl.constexpr, eights: tl.constexpr,
):  # fmt: skip
    """y [1, m] = x [1, n] times the transpose of a weight, for `rows` rows of it."""
    here = tl.program_id(0) * rows + tl.arange(0, rows)
    row = tl.minimum(here, m - 1)[:, None]
    total = tl.zeros([rows, eights], tl.float32)
    for start in range(0, tl.cdiv(n, 8), eights):
        col = (start + tl.arange(0, eights))[:, None] * 8 + tl.arange(0, 8)[None, :]
        inputs = _apart(tl.load(x + col, col < n, 0).to(tl.float32), eights)
        e = (start + tl.arange(0, eights))[None, :]
        there = (row >= 0) & (e * 8 < n)
        total += sums(side, config, n, row, e, there, inputs)
    tl.store(y + here, tl.sum(total, 1), here < m)


def multiply_row(x: torch.Tensor, m: int, sums: Any, side: tuple[Any, ...], config: tuple[float, ...]) -> torch.Tensor:
    """`x` [1, n] times the transpose of a weight with `m` rows, of which `sums` reads `side`: float32 [1, m]."""
    y = torch.empty((1, m), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _multiply_row[(triton.cdiv(m, ROWS),)](
            x.contiguous(), y, side, m, x.shape[1], sums, config, ROWS, EIGHTS, enable_fp_fusion=True
        )
    return y
