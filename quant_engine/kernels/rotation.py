"""Rotations of a few activation rows (weights/rotated.py) in compiled code, where Python's own steps would take longer
than the rotation: for the compiled step of decoding.py.

A row is put into one order, laid out as [p1, p2], multiplied by a matrix along each axis, and put into another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

from quant_engine.kernels.compiled import function, pointer
from quant_engine.weights.rotated import Kind, rotation

_NUMBERS = 9
"""The address of `rotator`, p1, p2, whether each slice has its own matrix, whether the second axis comes first, and the
addresses of the two orders int32 and of the two matrices float32."""


@cache
def plan(size: int, seed: int, side: str, kind: Kind) -> tuple[np.ndarray, ...]:
    """The numbers of a rotation, int64 [_NUMBERS], and the arrays that they point to: of the rotation of the inputs, or
    of that back of the outputs."""
    found = rotation(size, seed, side, kind)
    back, sliced = side == "outputs", kind == "blocked"
    orders = (found.back_out, found.back_into) if back else (found.into, found.out)
    if sliced:  # along p1 [from, to, p2], along p2 [p1, from, to]
        left, right = found.left.permute(1, 2, 0) if back else found.left.permute(2, 1, 0), found.right
        right = right if back else right.transpose(1, 2)
    else:  # [from, to]
        left, right = (found.left, found.right) if back else (found.left.T, found.right.T)
    arrays = [np.ascontiguousarray(order.numpy(), np.int32) for order in orders]
    arrays += [np.ascontiguousarray(matrix.numpy(), np.float32) for matrix in (left, right)]
    numbers = [rotator().address, *found.shape, sliced, back, *(array.ctypes.data for array in arrays)]
    return np.array(numbers, np.int64), *arrays


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _along_columns(x, matrix, sliced, out):  # type: ignore[no-untyped-def]
    """out[c, b] = sum over a of matrix[a, c, b] x[a, b]; without `sliced`, matrix[a, c, 0]."""
    out[:] = 0
    for c in range(out.shape[0]):
        for a in range(x.shape[0]):
            if sliced:
                for b in range(x.shape[1]):
                    out[c, b] += matrix[a, c, b] * x[a, b]
            else:
                factor = matrix[a, c, 0]
                for b in range(x.shape[1]):
                    out[c, b] += factor * x[a, b]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _along_rows(x, matrix, sliced, out):  # type: ignore[no-untyped-def]
    """out[a, d] = sum over b of matrix[a, b, d] x[a, b]; without `sliced`, matrix[0, b, d]."""
    out[:] = 0
    for a in range(x.shape[0]):
        of_row = matrix[a if sliced else 0]
        for b in range(x.shape[1]):
            factor = x[a, b]
            for d in range(x.shape[1]):
                out[a, d] += of_row[b, d] * factor


@njit(nogil=True, cache=True, error_model="numpy")
def _turn(address, x_at, room_at):  # type: ignore[no-untyped-def]
    numbers = carray(pointer(address), _NUMBERS, np.int64)
    p1, p2, sliced = numbers[1], numbers[2], numbers[3] != 0
    size = p1 * p2
    x, room = carray(pointer(x_at), size, np.float32), carray(pointer(room_at), size, np.float32)
    first = carray(pointer(numbers[5]), size, np.int32)
    last = carray(pointer(numbers[6]), size, np.int32)
    left = carray(pointer(numbers[7]), (p1, p1, p2 if sliced else 1), np.float32)
    right = carray(pointer(numbers[8]), (p1 if sliced else 1, p2, p2), np.float32)
    for j in range(size):
        room[j] = x[first[j]]
    laid_out, other = room.reshape(p1, p2), x.reshape(p1, p2)
    if numbers[4]:
        _along_rows(laid_out, right, sliced, other)
        _along_columns(other, left, sliced, laid_out)
    else:
        _along_columns(laid_out, left, sliced, other)
        _along_rows(other, right, sliced, laid_out)
    for j in range(size):
        x[j] = room[last[j]]


@cache
def rotator() -> Any:
    """A function of (numbers, x, room), addresses: rotates the first p1 * p2 values float32 of `x` in their place by
    the `numbers` of a plan. `room` has space for as many."""

    @function(3)
    def rotate(numbers, x, room):  # type: ignore[no-untyped-def]
        _turn(numbers, x, room)

    return rotate
