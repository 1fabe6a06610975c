"""The salient weights of partly binary ones (weights/binary.py): few, of 8 bits, anywhere in a row.

What a tile's vectors (vectors.py) take for zero is found here by its mark, one weight after the other. The codes are a
stream in the order of rows, as files have them.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from quant_engine.weights.binary import LOW_BITS
from quant_engine.weights.interleaving import ROWS

FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The float32 value of every float16 bit pattern."""
_SIDE = 9
"""Numbers beside the codes: addresses of scales, marks, codes, the rows' first codes, their scales and zeros, and of
FLOAT16; how many rows there are, and words of codes."""
_MARKS, _CODES, _STARTS, _SCALES, _ZEROS, _FLOAT16, _ROW_COUNT, _WORDS = range(1, _SIDE)


@intrinsic
def pointer(typing, address):  # type: ignore[no-untyped-def]
    """What stands at an address."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), code


@intrinsic
def _lowest_bit(typing, word):  # type: ignore[no-untyped-def]
    """The number of the lowest bit that is set in a word that has one."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], cgutils.true_bit)

    return types.uint32(types.uint32), code


@njit(nogil=True, cache=True, error_model="numpy")
def each_salient(side, signs, tile, blocks, x, x_row, y, y_row, rows, products):  # type: ignore[no-untyped-def]
    """Goes through the salient weights of a tile. If `products`, those with `rows` activation rows at `x` are added to
    `y`, where the tile's 16 results of a row are; else a weight is written to `y`, where its column's 16 rows are.
    `x_row` and `y_row` are the bytes from a row, or a column, to the next."""
    numbers = carray(pointer(side), _SIDE, np.int64)
    words = numbers[_WORDS]
    first, last = tile * ROWS, min(tile * ROWS + ROWS, numbers[_ROW_COUNT])
    marks = carray(pointer(numbers[_MARKS] + tile * blocks * ROWS * 4), (blocks, ROWS), np.uint32)
    planes = carray(pointer(signs + tile * blocks * ROWS * 4), (blocks, ROWS), np.uint32)
    codes = carray(pointer(numbers[_CODES]), words, np.uint32)
    starts = carray(pointer(numbers[_STARTS]), last, np.int32)
    scales = carray(pointer(numbers[_SCALES]), last, np.uint16)
    zeros = carray(pointer(numbers[_ZEROS]), last, np.uint8)
    floats = carray(pointer(numbers[_FLOAT16]), 2**16, np.float32)
    for row in range(first, last):
        lane, at = np.uint64(row - first), np.uint64(starts[row]) * np.uint64(LOW_BITS)
        scale, zero = floats[scales[row]], np.int32(zeros[row])
        for block in range(blocks):
            mark, plane = marks[block, lane], planes[block, lane]
            while mark:
                bit = _lowest_bit(mark)
                mark &= mark - np.uint32(1)
                word = at >> np.uint64(5)
                both = np.uint64(codes[word]) | np.uint64(codes[min(word + np.uint64(1), np.uint64(words - 1))]) << 32
                code = (both >> (at & np.uint64(31))) & np.uint64(2**LOW_BITS - 1)
                code |= np.uint64((plane >> bit) & np.uint32(1)) << np.uint64(LOW_BITS)
                at += np.uint64(LOW_BITS)
                weight = scale * np.float32(np.int32(code) - zero)
                column = block * 32 + np.int64(bit)
                if products:
                    for number in range(rows):
                        value = carray(pointer(x + number * x_row + 4 * column), 1, np.float32)
                        total = carray(pointer(y + number * y_row), ROWS, np.float32)
                        total[lane] += weight * value[0]
                else:
                    carray(pointer(y + column * y_row), ROWS, np.float32)[lane] = weight
