"""The product of a few activation rows with a low-rank adapter (weights/low_rank.py), in compiled code."""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from quant_engine.kernels.compiled import function, pointer

_NUMBERS = 7
"""The addresses of `adder`, of A [rank, columns] and B [outputs, rank] float16 and of their scale float32 [1], the
rank, outputs and columns."""


@intrinsic
def _float(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 of a float16's bits."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), code


def plan(a: np.ndarray, b: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    """The numbers of an adapter with the factors `a` [rank, columns] and `b` [outputs, rank] float16, int64 [_NUMBERS],
    and the arrays that they point to."""
    scales = np.array([scale], np.float32)
    addresses = [adder().address, *(array.ctypes.data for array in (a, b, scales))]
    return np.array([*addresses, len(a), len(b), a.shape[1]], np.int64), a, b, scales


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add(address, x_at, rows, y_at, y_columns, room_at):  # type: ignore[no-untyped-def]
    numbers = carray(pointer(address), _NUMBERS, np.int64)
    rank, outputs, columns = numbers[4], numbers[5], numbers[6]
    a = carray(pointer(numbers[1]), (rank, columns), np.uint16)
    b = carray(pointer(numbers[2]), (outputs, rank), np.uint16)
    scale = carray(pointer(numbers[3]), 1, np.float32)[0]
    x = carray(pointer(x_at), (rows, columns), np.float32)
    y = carray(pointer(y_at), (rows, y_columns), np.float32)
    room = carray(pointer(room_at), rank, np.float32)
    for row in range(rows):
        for inner in range(rank):
            total = np.float32(0)
            for j in range(columns):
                total += _float(a[inner, j]) * x[row, j]
            room[inner] = total * scale
        for output in range(outputs):
            total = np.float32(0)
            for inner in range(rank):
                total += _float(b[output, inner]) * room[inner]
            y[row, output] += total


@cache
def adder() -> Any:
    """A function of (numbers, x, rows, y, y_columns, room): `y` [rows, y_columns] float32, of which there are
    at least as many as outputs, += scale * `x` [rows, columns] A^T B^T, by the `numbers` of a plan. `room` has space
    for a row of x A^T. All are addresses but the sizes."""

    @function(6)
    def add(numbers, x, rows, y, y_columns, room):  # type: ignore[no-untyped-def]
        _add(numbers, x, rows, y, y_columns, room)

    return add
