"""Dual-binary weights on the CPU: multiply one activation row straight from the two planes of bits, and dequantize.

The product with a plane is a sum of those inputs whose bit is set, taken eight at a time from a table (cpu_binary.py).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from quant_engine.kernels.cpu import FLOAT16
from quant_engine.kernels.cpu_binary import BYTE, bytes_of, padded_to, subset_sums
from quant_engine.weights.dual_binary import DualBinary


def fits(weight: DualBinary) -> bool:
    """Whether `multiply_row` can take this weight: no byte of a plane lies across groups."""
    return weight.group % BYTE == 0 or weight.groups == 1


def multiply_row(x: torch.Tensor, weight: DualBinary) -> torch.Tensor:
    """`x` [in_features] float32 to [out_features] float32. The weight must be one that `fits`."""
    y = np.empty(weight.out_features, np.float32)
    b1, b2 = (bytes_of(plane) for plane in weight.planes)
    table = subset_sums(padded_to(x.detach(), b1))
    _multiply(table, b1, b2, *_scales(weight), -(-weight.group // BYTE), FLOAT16, y)
    return torch.from_numpy(y)


def dequantize_rows(weight: DualBinary, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` as float32 [end - start, in_features]."""
    out = np.empty((end - start, weight.in_features), np.float32)
    b1, b2 = (bytes_of(plane) for plane in weight.planes)
    _dequantize(b1, b2, *_scales(weight), weight.group, FLOAT16, start, out)
    return torch.from_numpy(out)


def _scales(weight: DualBinary) -> np.ndarray:
    return weight.scales.view(torch.uint16).numpy()


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _multiply(table, b1, b2, first, second, per_group, float16, y):  # type: ignore[no-untyped-def]
    count = table.shape[0]
    for row in prange(y.shape[0]):
        total = np.float32(0)
        for group in range(first.shape[1]):
            with_b1, with_b2 = np.float32(0), np.float32(0)
            for b in range(group * per_group, min(group * per_group + per_group, count)):
                with_b1 += table[b, b1[row, b]]
                with_b2 += table[b, b2[row, b]]
            total += float16[first[row, group]] * with_b1 + float16[second[row, group]] * with_b2
        y[row] = total


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _dequantize(b1, b2, first, second, group_size, float16, start, out):  # type: ignore[no-untyped-def]
    columns = out.shape[1]
    for i in prange(out.shape[0]):
        row = start + i
        for group in range(first.shape[1]):
            a, b = float16[first[row, group]], float16[second[row, group]]
            for j in range(group * group_size, min(group * group_size + group_size, columns)):
                at, shift = j >> 3, j & 7
                value = np.float32(0)
                if b1[row, at] >> shift & 1:
                    value += a
                if b2[row, at] >> shift & 1:
                    value += b
                out[i, j] = value
