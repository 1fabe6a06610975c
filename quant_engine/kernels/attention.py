"""One token of a text attends to those before it: the query heads that share a key head, in explicit vectors.

    out = softmax(scale * q K^T) V

Keys and values are read once for all heads that share them. A lane is a number of a head; what is known when compiling
is a head's size and how many share a key head; sizes that are no whole vectors go one number at a time. Everything is
computed in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from quant_engine.kernels.compiled import SOURCES, pointer
from quant_engine.kernels.vectors import F32, FLOATS, LANES, Emitter

IN_REGISTERS = 12
"""Vectors of 16 lanes that a CPU holds while it goes through all tokens."""


@intrinsic
def _float_of_bits(typing, bits):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy", inline="always")
def exp(x):  # type: ignore[no-untyped-def]
    """e^x in float32, for x up to 88, to 2 units in the last digit: 2^n times a polynomial of what is left, after
    Cephes. In vector code, where the library's own is not."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * x + np.float32(1.3981999507e-3)
    p = p * x + np.float32(8.3334519073e-3)
    p = p * x + np.float32(4.1665795894e-2)
    p = p * x + np.float32(1.6666665459e-1)
    p = p * x + np.float32(5.0000001201e-1)
    return (p * x * x + x + np.float32(1)) * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@intrinsic(prefer_literal=True)
def _score(typing, sources, size, heads, queries, keys, tokens, scores):  # type: ignore[no-untyped-def]
    """`scores` [heads, tokens] of `queries` [heads, size] with `keys` [tokens, size], all given by address."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        e, width = Emitter(context, builder), size.literal_value
        queries, keys, tokens, scores = args[3:]
        starts, all_heads = range(0, width, LANES), range(heads.literal_value)
        loaded = [[e.load(FLOATS, queries, 4 * (head * width + start)) for start in starts] for head in all_heads]
        with cgutils.for_range(builder, tokens) as at:
            address = e.after(keys, (at.index, 4 * width))
            key = [e.load(FLOATS, address, 4 * start) for start in starts]
            for head, query in enumerate(loaded):
                products = builder.fmul(query[0], key[0])
                for of_query, of_key in zip(query[1:], key[1:], strict=True):
                    products = e.fma(of_query, of_key, products)
                e.store(e.sum(products), e.after(scores, (at.index, 4), (tokens, 4 * head)))
        return context.get_dummy_value()

    return types.void(sources, size, heads, *(types.intp,) * 4), code


@intrinsic(prefer_literal=True)
def _weigh(typing, sources, size, heads, weights, values, tokens, out):  # type: ignore[no-untyped-def]
    """`out` [heads, size]: the sum of `values` [tokens, size] times `weights` [heads, tokens], all given by address."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        e, width, count = Emitter(context, builder), size.literal_value, heads.literal_value
        weights, values, tokens, out = args[3:]
        at_once = LANES * max(1, IN_REGISTERS // count)
        for first in range(0, width, at_once):
            starts = range(first, min(first + at_once, width), LANES)
            totals = [[cgutils.alloca_once(builder, FLOATS) for _ in starts] for _ in range(count)]
            for total in (total for row in totals for total in row):
                builder.store(e.floats(0), total)
            with cgutils.for_range(builder, tokens) as at:
                address = e.after(values, (at.index, 4 * width))
                value = [e.load(FLOATS, address, 4 * start) for start in starts]
                for head, row in enumerate(totals):
                    weight = e.splat(e.load(F32, e.after(weights, (at.index, 4), (tokens, 4 * head))))
                    for part, total in zip(value, row, strict=True):
                        builder.store(e.fma(weight, part, builder.load(total)), total)
            for head, row in enumerate(totals):
                for start, total in zip(starts, row, strict=True):
                    e.store(builder.load(total), out, 4 * (head * width + start))
        return context.get_dummy_value()

    return types.void(sources, size, heads, *(types.intp,) * 4), code


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _softmax(scores, scale):  # type: ignore[no-untyped-def]
    """Of each row of `scores` times `scale`, in their own place."""
    for head in range(scores.shape[0]):
        highest, total = scores[head, 0], np.float32(0)
        for token in range(scores.shape[1]):
            highest = max(highest, scores[head, token])
        for token in range(scores.shape[1]):
            scores[head, token] = exp((scores[head, token] - highest) * scale)
            total += scores[head, token]
        for token in range(scores.shape[1]):
            scores[head, token] /= total


@njit(nogil=True, cache=True, error_model="numpy")
def _score_one_by_one(queries, keys, scores):  # type: ignore[no-untyped-def]
    for head in range(scores.shape[0]):
        for token in range(scores.shape[1]):
            scores[head, token] = 0
            for j in range(keys.shape[1]):
                scores[head, token] += queries[head, j] * keys[token, j]


@njit(nogil=True, cache=True, error_model="numpy")
def _weigh_one_by_one(weights, values, out):  # type: ignore[no-untyped-def]
    out[:] = 0
    for head in range(weights.shape[0]):
        for token in range(weights.shape[1]):
            for j in range(values.shape[1]):
                out[head, j] += weights[head, token] * values[token, j]


@cache
def attention(size: int, heads: int) -> Any:
    """A compiled function, with its `address`, of (queries, keys, values, tokens, scale, scores, out): addresses, and
    how many tokens there are.

    `queries` and `out` are [heads, size], `keys` and `values` [tokens, size], `scale` a number and `scores` room for
    [heads, tokens], all float32.
    """
    sources = SOURCES  # numbers and texts alone: what else a closure holds is another in each process
    vectors = size % LANES == 0

    @cfunc(types.void(*(types.intp,) * 7), cache=True, error_model="numpy")
    def attend(queries, keys, values, tokens, scale, scores, out):  # type: ignore[no-untyped-def]
        found = carray(pointer(scores), (heads, tokens), np.float32)
        if vectors:
            _score(sources, size, heads, queries, keys, tokens, scores)
        else:
            own, others = carray(pointer(queries), (heads, size), np.float32), (tokens, size)
            _score_one_by_one(own, carray(pointer(keys), others, np.float32), found)
        _softmax(found, carray(pointer(scale), 1, np.float32)[0])
        if vectors:
            _weigh(sources, size, heads, scores, values, tokens, out)
        else:
            whole = carray(pointer(values), (tokens, size), np.float32)
            _weigh_one_by_one(found, whole, carray(pointer(out), (heads, size), np.float32))

    return attend
