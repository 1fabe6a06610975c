"""The product of a few activation rows with a low-rank adapter (weights/low_rank.py), in compiled code."""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from quant_engine.kernels.salient import pointer

NUMBERS = 5
"""Addresses of A [rank, columns] and B [outputs, rank] float16 and of their scale float32 [1], the rank, outputs."""


@intrinsic
def _float(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 of a float16's bits."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), code


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def add_low_rank(address, x, y, room):  # type: ignore[no-untyped-def]
    """`y` [at least as many rows as x, at least outputs] += scale * `x` [rows, columns] A^T B^T, by the numbers at
    `address`. `room` has space for a row of `x` A^T."""
    numbers = carray(pointer(address), NUMBERS, np.int64)
    rank, outputs, columns = numbers[3], numbers[4], x.shape[1]
    a = carray(pointer(numbers[0]), (rank, columns), np.uint16)
    b = carray(pointer(numbers[1]), (outputs, rank), np.uint16)
    scale = carray(pointer(numbers[2]), 1, np.float32)[0]
    for row in range(x.shape[0]):
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
