"""Binary weights on the CPU: multiply one activation row straight from the planes of bits, and dequantize.

Everything that a product needs are sums of those inputs whose bit is set. With P such a sum over the signs of a group,
and X the sum of all its inputs:

    sum of (mean + s * spread) x = mean * X + spread * (2 P - X)

For eight inputs there are only 256 such sums. They are laid out once for each activation row; a weight row then takes
one look-up for eight weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from quant_engine.kernels.cpu import FLOAT16, code_at
from quant_engine.weights.binary import LOW_BITS, Binary, PartlyBinary, ResidualBinary

BYTE = 8

_LOWEST = np.array([0] + [(value & -value).bit_length() - 1 for value in range(1, 256)], np.int64)
"""The place of the lowest bit that is set in a byte."""
_LOW_MASK = np.uint64(2**LOW_BITS - 1)
_HIGHEST = np.float32(2**LOW_BITS)


def fits(weight: Binary) -> bool:
    """Whether the row kernels can take this weight: no byte of a plane lies across groups."""
    return weight.group % BYTE == 0 or weight.groups == 1


def multiply_row(x: torch.Tensor, weight: Binary) -> torch.Tensor:
    """`x` [in_features] float32 to [out_features] float32. The weight must be one that `fits`."""
    inputs = x.detach() * weight.column_bits(weight.live)
    y = np.empty(weight.out_features, np.float32)
    signs, scales = bytes_of(weight.signs), weight.scales.view(torch.uint16).numpy()
    per_group = -(-weight.group // BYTE)
    if isinstance(weight, ResidualBinary):
        salient = inputs * weight.column_bits(weight.salient)
        tables = subset_sums(padded_to(inputs - salient, signs)), subset_sums(padded_to(salient, signs))
        _multiply_residual(*tables, signs, bytes_of(weight.marks), scales, per_group, FLOAT16, y)
    elif isinstance(weight, PartlyBinary):
        padded = padded_to(inputs, signs)
        # Salient weights of inputs that were never seen have codes of their own.
        salient = padded_to(x.detach(), signs)
        _multiply_partly(
            subset_sums(padded),
            salient,
            signs,
            bytes_of(weight.marks),
            scales,
            per_group,
            *_salient(weight),
            FLOAT16,
            y,
        )
    else:
        _multiply(subset_sums(padded_to(inputs, signs)), signs, scales, per_group, FLOAT16, y)
    return torch.from_numpy(y)


def dequantize_rows(weight: Binary, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` as float32 [end - start, in_features]."""
    out = np.empty((end - start, weight.in_features), np.float32)
    signs, scales = bytes_of(weight.signs), weight.scales.view(torch.uint16).numpy()
    live = weight.column_bits(weight.live).numpy()
    if isinstance(weight, ResidualBinary):
        salient = weight.column_bits(weight.salient).numpy()
        _dequantize_residual(signs, bytes_of(weight.marks), scales, weight.group, live, salient, FLOAT16, start, out)
    else:
        _dequantize(signs, scales, weight.group, live, FLOAT16, start, out)
    if isinstance(weight, PartlyBinary):
        _dequantize_salient(signs, bytes_of(weight.marks), *_salient(weight), FLOAT16, start, out)
    return torch.from_numpy(out)


def bytes_of(plane: torch.Tensor) -> np.ndarray:
    return plane.numpy().view(np.uint8)


def padded_to(x: torch.Tensor, signs: np.ndarray) -> np.ndarray:
    """`x` [n] filled up with zeros to the bits of a row of the plane."""
    return torch.nn.functional.pad(x, (0, BYTE * signs.shape[1] - len(x))).numpy()


def _salient(weight: PartlyBinary) -> tuple[np.ndarray, ...]:
    return (
        weight.codes.numpy().view(np.uint32),
        weight.starts.numpy(),
        weight.grid_scales.view(torch.uint16).numpy(),
        weight.grid_zeros.numpy(),
    )


@njit(nogil=True, cache=True)
def subset_sums(x):  # type: ignore[no-untyped-def]
    """For each eight inputs, the sums over all subsets: [n / 8, 256]; subset v holds the inputs whose bit in v is 1."""
    table = np.zeros((x.shape[0] // 8, 256), np.float32)
    for b in range(table.shape[0]):
        for j in range(8):
            for v in range(1 << j):
                table[b, (1 << j) + v] = table[b, v] + x[b * 8 + j]
    return table


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _multiply(table, signs, scales, per_group, float16, y):  # type: ignore[no-untyped-def]
    count = table.shape[0]
    for row in prange(y.shape[0]):
        total = np.float32(0)
        for group in range(scales.shape[1]):
            everything, positive = np.float32(0), np.float32(0)
            for b in range(group * per_group, min(group * per_group + per_group, count)):
                everything += table[b, 255]
                positive += table[b, signs[row, b]]
            total += float16[scales[row, group, 0]] * everything
            total += float16[scales[row, group, 1]] * (2 * positive - everything)
        y[row] = total


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _multiply_partly(  # type: ignore[no-untyped-def]
    table, x, signs, marks, scales, per_group, codes, starts, grid_scales, grid_zeros, float16, y
):
    count = table.shape[0]
    for row in prange(y.shape[0]):
        total = np.float32(0)
        salient, inputs = np.float32(0), np.float32(0)
        at = np.int64(starts[row]) * LOW_BITS
        for group in range(scales.shape[1]):
            everything, positive = np.float32(0), np.float32(0)
            for b in range(group * per_group, min(group * per_group + per_group, count)):
                mark = np.int64(marks[row, b])
                sign = np.int64(signs[row, b])
                everything += table[b, 255 & ~mark]
                positive += table[b, sign & ~mark]
                while mark:
                    j = _LOWEST[mark]
                    mark &= mark - 1
                    code = np.float32(np.int32(code_at(codes, at, LOW_BITS, _LOW_MASK)))
                    at += LOW_BITS
                    if sign >> j & 1:
                        code += _HIGHEST
                    salient += code * x[b * 8 + j]
                    inputs += x[b * 8 + j]
            total += float16[scales[row, group, 0]] * everything
            total += float16[scales[row, group, 1]] * (2 * positive - everything)
        y[row] = total + float16[grid_scales[row]] * (salient - np.float32(grid_zeros[row]) * inputs)


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _multiply_residual(plain, salient, signs, marks, scales, per_group, float16, y):  # type: ignore[no-untyped-def]
    count = plain.shape[0]
    for row in prange(y.shape[0]):
        total = np.float32(0)
        for group in range(scales.shape[1]):
            unmarked, unmarked_positive = np.float32(0), np.float32(0)
            marked, marked_positive = np.float32(0), np.float32(0)
            everything, first, second = np.float32(0), np.float32(0), np.float32(0)
            for b in range(group * per_group, min(group * per_group + per_group, count)):
                mark, sign = np.int64(marks[row, b]), np.int64(signs[row, b])
                unmarked += plain[b, 255 & ~mark]
                unmarked_positive += plain[b, sign & ~mark]
                marked += plain[b, mark]
                marked_positive += plain[b, sign & mark]
                everything += salient[b, 255]
                first += salient[b, sign]
                second += salient[b, mark]
            scale = scales[row, group]
            total += float16[scale[0]] * unmarked + float16[scale[1]] * (2 * unmarked_positive - unmarked)
            total += float16[scale[2]] * marked + float16[scale[3]] * (2 * marked_positive - marked)
            total += float16[scale[4]] * everything + float16[scale[5]] * (2 * first - everything)
            total += float16[scale[6]] * everything + float16[scale[7]] * (2 * second - everything)
        y[row] = total


@njit(inline="always")
def _bit(plane, row, column):  # type: ignore[no-untyped-def]
    return plane[row, column >> 3] >> (column & 7) & 1


@njit(inline="always")
def _term(float16, scale, number, positive):  # type: ignore[no-untyped-def]
    mean, spread = float16[scale[2 * number]], float16[scale[2 * number + 1]]
    return mean + spread if positive else mean - spread


@njit(parallel=True, nogil=True, cache=True)
def _dequantize(signs, scales, group_size, live, float16, start, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    for i in prange(out.shape[0]):
        row = start + i
        for group in range(scales.shape[1]):
            high, low = _term(float16, scales[row, group], 0, True), _term(float16, scales[row, group], 0, False)
            for j in range(group * group_size, min(group * group_size + group_size, columns)):
                out[i, j] = (high if _bit(signs, row, j) else low) if live[j] else np.float32(0)


@njit(parallel=True, nogil=True, cache=True)
def _dequantize_salient(  # type: ignore[no-untyped-def]
    signs, marks, codes, starts, grid_scales, grid_zeros, float16, start, out
):
    for i in prange(out.shape[0]):
        row = start + i
        at = np.int64(starts[row]) * LOW_BITS
        scale, zero = float16[grid_scales[row]], np.float32(grid_zeros[row])
        for b in range(marks.shape[1]):
            mark = np.int64(marks[row, b])
            while mark:
                j = b * 8 + _LOWEST[mark]
                mark &= mark - 1
                code = np.float32(np.int32(code_at(codes, at, LOW_BITS, _LOW_MASK)))
                at += LOW_BITS
                if _bit(signs, row, j):
                    code += _HIGHEST
                out[i, j] = scale * (code - zero)


@njit(parallel=True, nogil=True, cache=True)
def _dequantize_residual(  # type: ignore[no-untyped-def]
    signs, marks, scales, group_size, live, salient, float16, start, out
):
    columns = out.shape[1]
    for i in prange(out.shape[0]):
        row = start + i
        levels = np.empty(8, np.float32)
        for group in range(scales.shape[1]):
            scale = scales[row, group]
            # By salient column, mark and sign.
            for mark in range(2):
                for sign in range(2):
                    levels[2 * mark + sign] = _term(float16, scale, mark, sign)
                    levels[4 + 2 * mark + sign] = _term(float16, scale, 2, sign) + _term(float16, scale, 3, mark)
            for j in range(group * group_size, min(group * group_size + group_size, columns)):
                level = 4 * salient[j] + 2 * _bit(marks, row, j) + _bit(signs, row, j)
                out[i, j] = levels[level] if live[j] else np.float32(0)
