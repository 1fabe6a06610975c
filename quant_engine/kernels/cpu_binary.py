"""Partly binary weights on the CPU: multiply straight from the planes of bits, and dequantize.

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

from quant_engine.kernels.threads import parallel_kernels
from quant_engine.weights.binary import LOW_BITS, PartlyBinary

FEW_ROWS = 4
"""Up to so many activation rows, multiplying from the planes beats dequantizing a tile."""
BYTE = 8
FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The float32 value of every float16 bit pattern."""

ROWS_AT_ONCE = 64

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_COUNTS = _BITS.sum(1).astype(np.uint64)
"""How many bits of a byte are set."""
_BIT_INDICES = np.argsort(_BITS == 0, axis=1, kind="stable").astype(np.uint64)
"""Which bits of a byte are set [256, 8], then those that are not."""
_LOW_MASK = np.uint64(2**LOW_BITS - 1)
_HIGHEST = np.float32(2**LOW_BITS)


def fits(weight: PartlyBinary) -> bool:
    """Whether the row kernels can take this weight: no byte of a plane lies across groups."""
    return weight.group % BYTE == 0 or weight.groups == 1


def prepare(weight: PartlyBinary) -> None:
    """Nothing: planes are read as files have them."""


def multiply(x: torch.Tensor, weight: PartlyBinary) -> torch.Tensor:
    """`x` [rows, in_features] float32 to [rows, out_features] float32. The weight must be one that `fits`."""
    with parallel_kernels():
        return torch.stack([_multiply_row(row, weight) for row in x])


def _multiply_row(x: torch.Tensor, weight: PartlyBinary) -> torch.Tensor:
    signs, scales = bytes_of(weight.signs), weight.scales.view(torch.uint16).numpy()
    inputs = padded_to(x.detach(), signs) * _column_bits(weight.live)
    per_group = -(-weight.group // BYTE)
    y = np.empty(weight.out_features, np.float32)
    table, marks = subset_sums(inputs), bytes_of(weight.marks)
    totals = np.add.reduceat(inputs, np.arange(0, len(inputs), per_group * BYTE))
    _multiply(table, totals, inputs, signs, marks, *_salient(weight), scales, per_group, FLOAT16, y)
    return torch.from_numpy(y)


def dequantize_rows(weight: PartlyBinary, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` as float32 [end - start, in_features]."""
    out = np.empty((end - start, weight.in_features), np.float32)
    signs, scales = bytes_of(weight.signs), weight.scales.view(torch.uint16).numpy()
    live = _column_bits(weight.live)
    with parallel_kernels():
        _dequantize(signs, scales, weight.group, live, FLOAT16, start, out)
        _dequantize_salient(signs, bytes_of(weight.marks), *_salient(weight), live, FLOAT16, start, out)
    return torch.from_numpy(out)


def bytes_of(plane: torch.Tensor) -> np.ndarray:
    return plane.numpy().view(np.uint8)


def padded_to(x: torch.Tensor, signs: np.ndarray) -> np.ndarray:
    """`x` [n] filled up with zeros to the bits of a row of the plane."""
    return torch.nn.functional.pad(x, (0, BYTE * signs.shape[1] - len(x))).numpy()


def _column_bits(plane: torch.Tensor) -> np.ndarray:
    """A row of bits, one per column, and those that fill up its last word: uint8."""
    return np.unpackbits(bytes_of(plane), bitorder="little")


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


# Indices are unsigned below, since a signed one is checked for counting from the end.


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _multiply(  # type: ignore[no-untyped-def]
    table, totals, x, signs, marks, codes, starts, grid_scales, grid_zeros, scales, per_group, float16, y
):
    count = table.shape[0]
    for chunk in prange((y.shape[0] + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE):
        columns = np.empty(8 * count + 8, np.uint64)
        for row in range(chunk * ROWS_AT_ONCE, min(chunk * ROWS_AT_ONCE + ROWS_AT_ONCE, y.shape[0])):
            total, inputs, found = np.float32(0), np.float32(0), np.uint64(0)
            for group in range(scales.shape[1]):
                marked, positive = np.float32(0), np.float32(0)
                for b in range(group * per_group, min(group * per_group + per_group, count)):
                    mark, sign = np.uint64(marks[row, b]), np.uint64(signs[row, b])
                    positive += table[np.uint64(b), sign & ~mark]
                    marked += table[np.uint64(b), mark]
                    # All eight are written, and those that are none are written over: no branch to be mispredicted.
                    for i in range(8):
                        columns[found + np.uint64(i)] = np.uint64(b * 8) + _BIT_INDICES[mark, i]
                    found += _COUNTS[mark]
                inputs += marked
                everything = totals[group] - marked
                total += float16[scales[row, group, 0]] * everything
                total += float16[scales[row, group, 1]] * (2 * positive - everything)
            salient = np.float32(0)
            at = np.uint64(starts[row]) * np.uint64(LOW_BITS)
            for i in range(found):
                column = columns[i]
                code = code_at(codes, at, LOW_BITS, _LOW_MASK)
                at += np.uint64(LOW_BITS)
                sign = np.uint64(signs[row, column >> np.uint64(3)]) >> (column & np.uint64(7)) & np.uint64(1)
                code |= sign << np.uint64(LOW_BITS)
                salient += np.float32(np.int32(code)) * x[column]
            y[row] = total + float16[grid_scales[row]] * (salient - np.float32(grid_zeros[row]) * inputs)


@njit(inline="always")
def code_at(words, at, bits, mask):  # type: ignore[no-untyped-def]
    """The code that starts at bit `at` of a stream of words."""
    word, offset = at // 32, at % 32
    code = np.uint64(words[word])
    if offset + bits > 32:
        code |= np.uint64(words[word + 1]) << np.uint64(32)
    return (code >> np.uint64(offset)) & mask


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
    signs, marks, codes, starts, grid_scales, grid_zeros, live, float16, start, out
):
    for i_row in prange(out.shape[0]):
        row = start + i_row
        at = np.int64(starts[row]) * LOW_BITS
        scale, zero = float16[grid_scales[row]], np.float32(grid_zeros[row])
        for b in range(marks.shape[1]):
            mark = marks[row, b]
            for i in range(_COUNTS[mark]):
                j = b * 8 + np.int64(_BIT_INDICES[mark, i])
                code = np.float32(np.int32(code_at(codes, at, LOW_BITS, _LOW_MASK)))
                at += LOW_BITS
                if _bit(signs, row, j):
                    code += _HIGHEST
                if live[j]:
                    out[i_row, j] = scale * (code - zero)
