"""Machine code of the CPU's kernels: compiled when first asked for, and kept on disk beside this file, by CPU.

There is a function for each kind of weights (form, width, variant). It is known by its address, so that whatever
multiplies by weights of several kinds is compiled once for all of them. Its arguments are whole numbers and addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import cfunc, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from quant_engine.kernels import stored_vectors, vectors
from quant_engine.kernels.vectors import I64


def hash_of(*modules: ModuleType) -> str:
    """A hash of the files of modules."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


SOURCES = hash_of(vectors, stored_vectors)
"""What the instructions are made of. numba makes a function anew when its own file changes, or a value in its closure:
this is such a value."""


@intrinsic(prefer_literal=True)
def _multiply_tile(  # type: ignore[no-untyped-def]
    typing, sources, form, bits, variant, rows, side, words, x, sums, y, tile, tiles, blocks, per_group
):
    literals = (sources, form, bits, variant, rows)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        e, emitted = stored_vectors.emitted(context, builder, *(kind.literal_value for kind in literals[1:4]), args[5])
        multiply = vectors.integer_product if isinstance(emitted, vectors.IntegerDots) else vectors.product
        multiply(e, emitted, rows.literal_value, args[6:])

    return types.void(*literals, *(types.intp,) * 9), code


@intrinsic(prefer_literal=True)
def _dequantize_tile(  # type: ignore[no-untyped-def]
    typing, sources, form, bits, variant, side, words, out, stride, tile, tiles, blocks, per_group
):
    literals = (sources, form, bits, variant)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        e, emitted = stored_vectors.emitted(context, builder, *(kind.literal_value for kind in literals[1:]), args[4])
        vectors.weights(e, emitted, args[5:])

    return types.void(*literals, *(types.intp,) * 8), code


def function(arguments: int) -> Callable[[Callable[..., None]], Any]:
    """Compiles a function of so many whole numbers, which has an `address`."""
    return cfunc(types.void(*(types.intp,) * arguments), cache=True, error_model="numpy")


@cache
def product(form: int, bits: int, variant: int) -> Any:
    """A function of (side, words, per_group, blocks, tiles, rows, x, sums, y, first, last): the products of `rows`
    activation rows with the tiles from `first` to before `last`, of `tiles` in all.

    `side` and `words` are where the weight's data stand; `x` [rows, 32 * blocks] the activations, each column times
    `stored_vectors.input_factors`, and `sums` [rows, groups] those of their groups; `y` [rows, 16 * tiles] is written.
    """
    sources = SOURCES

    @function(11)
    def multiply(side, words, per_group, blocks, tiles, rows, x, sums, y, first, last):  # type: ignore[no-untyped-def]
        x_row, y_row, sums_row = 128 * blocks, 64 * tiles, 4 * ((blocks + per_group - 1) // per_group)
        for tile in range(first, last):
            for row in range(0, rows // 4 * 4, 4):
                _multiply_tile(
                    sources, form, bits, variant, 4, side, words, x + row * x_row, sums + row * sums_row,
                    y + row * y_row, tile, tiles, blocks, per_group,
                )  # fmt: skip
            for row in range(rows // 4 * 4, rows):
                _multiply_tile(
                    sources, form, bits, variant, 1, side, words, x + row * x_row, sums + row * sums_row,
                    y + row * y_row, tile, tiles, blocks, per_group,
                )  # fmt: skip

    return multiply


@cache
def dequantizer(form: int, bits: int, variant: int) -> Any:
    """A function of (side, words, per_group, blocks, tiles, out, stride, step, first, last): the weights of the tiles
    from `first` to before `last`, as columns. `out` is where those of `first` begin, with `step` bytes from tile to
    tile and `stride` from a column of the weight to the next."""
    sources = SOURCES

    @function(10)
    def dequantize(side, words, per_group, blocks, tiles, out, stride, step, first, last):  # type: ignore[no-untyped-def]
        for tile in range(first, last):
            _dequantize_tile(
                sources, form, bits, variant, side, words, out + (tile - first) * step, stride, tile, tiles, blocks,
                per_group,
            )  # fmt: skip

    return dequantize


@intrinsic
def pointer(typing, address):  # type: ignore[no-untyped-def]
    """What stands at an address."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), code


@intrinsic
def call(typing, address, args):  # type: ignore[no-untyped-def]
    """Calls the function at an address with a tuple of whole numbers."""

    def code(context, builder, signature, values):  # type: ignore[no-untyped-def]
        numbers = [builder.extract_value(values[1], index) for index in range(args.count)]
        kind = ir.FunctionType(ir.VoidType(), [I64] * args.count)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(types.intp, args), code


@njit(nogil=True, cache=True, error_model="numpy")
def multiply_tiles(kernel, weight, rows, x, sums, y, part, parts):  # type: ignore[no-untyped-def]
    """One of `parts` parts of a product. `kernel` is the address of a `product`, `weight` the numbers that it takes
    first, int64 [5]."""
    tiles = weight[4]
    first, last = tiles * part // parts, tiles * (part + 1) // parts
    call(kernel, (weight[0], weight[1], weight[2], weight[3], tiles, rows, x, sums, y, first, last))


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def prepare(x, factors, per_group, scaled, sums):  # type: ignore[no-untyped-def]
    """`x` with each column times its block's `factors` [32], and the sum of each group; rows that `x` has not are 0.
    Negative factors are numbers of columns, less 32: each row's columns in this order are its first bytes."""
    columns = x.shape[1]
    for row in range(scaled.shape[0]):
        if row >= x.shape[0]:
            scaled[row] = 0
            sums[row] = 0
            continue
        for group in range(sums.shape[1]):
            total = np.float32(0)
            for block in range(group * per_group, min(group * per_group + per_group, columns // 32)):
                for j in range(32):
                    value = x[row, block * 32 + j]
                    total += value
                    scaled[row, block * 32 + j] = value * factors[j]
            sums[row, group] = total
        if factors[0] < 0:
            numbers = scaled[row].view(np.int8)
            for block in range(columns // 32):
                for j in range(32):
                    numbers[block * 32 + j] = np.int8(x[row, block * 32 + 32 + np.int64(factors[j])])


@cache
def multiplier(parallel: bool) -> Callable[..., None]:
    """`multiply(x, factors, kernel, weight, scaled, sums, y, parts)`: `x` [rows, columns] times any weight, in so many
    parts at once if `parallel`. `scaled` (like x), `sums` [rows, groups] and `y` [rows, 16 * tiles] are written, and
    may have more rows than x."""

    def multiply(x, factors, kernel, weight, scaled, sums, y, parts):  # type: ignore[no-untyped-def]
        parts = parts if parallel else 1
        prepare(x, factors, weight[2], scaled, sums)
        scaled_at, sums_at, y_at = scaled.ctypes.data, sums.ctypes.data, y.ctypes.data
        for part in prange(parts):
            multiply_tiles(kernel, weight, y.shape[0], scaled_at, sums_at, y_at, part, parts)

    return njit(parallel=parallel, nogil=True, cache=True, error_model="numpy")(multiply)


@cache
def unpacker(parallel: bool) -> Callable[..., None]:
    """`dequantize(kernel, weight, out, first, parts)`: the weights of tiles from `first` on, as columns of `out`
    [columns, 16 * how many]. `kernel` is the address of a `dequantizer`."""

    def dequantize(kernel, weight, out, first, parts):  # type: ignore[no-untyped-def]
        parts = parts if parallel else 1
        count, step, out_at = out.shape[1] // 16, 16 * out.itemsize, out.ctypes.data
        for part in prange(parts):
            start, end = count * part // parts, count * (part + 1) // parts
            call(
                kernel,
                (
                    weight[0], weight[1], weight[2], weight[3], weight[4], out_at + start * step,
                    out.itemsize * out.shape[1], step, first + start, first + end,
                ),
            )  # fmt: skip

    return njit(parallel=parallel, nogil=True, cache=True, error_model="numpy")(dequantize)
