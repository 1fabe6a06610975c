"""A token of each of several texts through all blocks of a LLaMA-type decoder, in one call of compiled code.

A decoder reads few numbers of its own beside its weights, so what costs time around the products of a single token is
Python itself. Here the whole pass is one function. Each linear is an entry of a table that says where its kernel
(compiled.py) and its data stand, so that weights of all kinds go through the same function.

    h = norm(x);  q, k, v = h W_q^T, h W_k^T, h W_v^T;  x += attention(rotated q, rotated k, v) W_o^T
    h = norm(x);  x += (silu(h W_gate^T) * h W_up^T) W_down^T

Everything is computed in float32. With several threads each computes some tiles and heads; no sum depends on how many
there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import carray, njit, prange

from quant_engine.kernels import attention, compiled
from quant_engine.kernels.attention import exp
from quant_engine.kernels.compiled import call, multiply_tiles, pointer, prepare
from quant_engine.weights.int_activations import SMALLEST_MAXIMUM

ENTRY = np.dtype(
    [
        ("kernel", np.int64),
        ("weight", np.int64, 5),
        ("groups", np.int64),
        ("factors", np.int64),
        ("order", np.int64),
        ("column_scales", np.int64),
        ("bias", np.int64),
        ("input", np.int64),
        ("output", np.int64),
        ("input_levels", np.int64),
        ("output_levels", np.int64),
        ("input_rotation", np.int64),
        ("output_rotation", np.int64),
        ("adapter", np.int64),
    ]
)
"""An entry of the table of linears, which stand in sets that share their input: in each block q, k, v; o; gate, up;
down. It holds the kernel's address and the numbers that it takes first, how many groups a row has; addresses
of `input_factors`, of the order of columns int32, of what its columns are multiplied with float32, and of the bias
float32, 0 where there is none; the number in its set of the entry whose prepared input it takes, and of that which its
product is added to, its own in most cases; the highest code to which each token's inputs, or outputs, are rounded, 0
where they are not; and the addresses of the numbers of the rotations of its inputs and outputs (rotation.py), and of
its adapter (low_rank.py), 0 where it has none."""
_KERNEL, _WEIGHT = 0, 1
_GROUPS, _FACTORS, _ORDER, _COLUMN_SCALES, _BIAS, _INPUT, _OUTPUT, _INPUT_LEVELS, _OUTPUT_LEVELS = range(6, 15)
_INPUT_ROTATION, _OUTPUT_ROTATION, _ADAPTER = range(15, 18)
FIELDS = ENTRY.itemsize // 8
_SOURCES = compiled.SOURCES + compiled.hash_of(attention, compiled)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _normalize(x, weight, eps, out):  # type: ignore[no-untyped-def]
    """Root mean square norm of each row."""
    for row in range(x.shape[0]):
        total = np.float32(0)
        for j in range(x.shape[1]):
            total += x[row, j] * x[row, j]
        factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + eps)
        for j in range(x.shape[1]):
            out[row, j] = x[row, j] * factor * weight[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _round_to(x, highest, codes):  # type: ignore[no-untyped-def]
    """`codes` of a token's `x`, whole numbers up to `highest`, whose scale is returned: as `quantize_tokens`."""
    most = np.float32(SMALLEST_MAXIMUM)
    for j in range(x.shape[0]):
        most = max(most, abs(x[j]))
    scale = most / np.float32(highest)
    for j in range(x.shape[0]):
        codes[j] = np.rint(x[j] / scale)
    return scale


@njit(nogil=True, cache=True, error_model="numpy")
def _rotate_rows(numbers, x, rows, room):  # type: ignore[no-untyped-def]
    """The first `rows` of `x` rotated in their place by the numbers at an address."""
    kernel = carray(pointer(numbers), 1, np.int64)[0]
    for row in range(rows):
        call(kernel, (numbers, x.ctypes.data + row * 4 * x.shape[1], room.ctypes.data))


@njit(nogil=True, cache=True, error_model="numpy")
def _prepare_set(entries, start, end, x, rows, inputs, sums, picked, scales):  # type: ignore[no-untyped-def]
    """What the products of a set take of `x` [rows, columns]."""
    for number in range(end - start):
        entry = entries[start + number]
        if entry[_INPUT] != number:
            continue
        columns, source = entry[_WEIGHT + 3] * 32, x
        if entry[_ORDER] or entry[_COLUMN_SCALES] or entry[_INPUT_LEVELS]:
            source = carray(pointer(picked.ctypes.data), (x.shape[0], columns), np.float32)
            for row in range(x.shape[0]):
                for j in range(columns):
                    source[row, j] = x[row, j]
            if entry[_ORDER]:
                order = carray(pointer(entry[_ORDER]), columns, np.int32)
                for row in range(x.shape[0]):
                    for j in range(columns):
                        source[row, j] = x[row, order[j]]
            if entry[_COLUMN_SCALES]:
                of_columns = carray(pointer(entry[_COLUMN_SCALES]), columns, np.float32)
                for row in range(x.shape[0]):
                    for j in range(columns):
                        source[row, j] *= of_columns[j]
            if entry[_INPUT_ROTATION]:
                _rotate_rows(entry[_INPUT_ROTATION], source, x.shape[0], inputs[number])
            if entry[_INPUT_LEVELS]:
                for row in range(x.shape[0]):
                    scales[number, row] = _round_to(source[row], entry[_INPUT_LEVELS], source[row])
        factors = carray(pointer(entry[_FACTORS]), 32, np.float32)
        scaled = carray(pointer(inputs[number].ctypes.data), (rows, columns), np.float32)
        of_groups = carray(pointer(sums[number].ctypes.data), (rows, entry[_GROUPS]), np.float32)
        prepare(source, factors, entry[_WEIGHT + 2], scaled, of_groups)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_set(entries, start, end, rows, inputs, sums, outputs, part, parts):  # type: ignore[no-untyped-def]
    """One part of the products of a set."""
    for number in range(end - start):
        entry = entries[start + number]
        x, of_groups = inputs[entry[_INPUT]].ctypes.data, sums[entry[_INPUT]].ctypes.data
        y = outputs[number].ctypes.data
        multiply_tiles(entry[_KERNEL], entry[_WEIGHT : _WEIGHT + 5], rows, x, of_groups, y, part, parts)


@njit(nogil=True, cache=True, error_model="numpy")
def _result(entries, start, end, linear, x, rows, outputs, scales, room):  # type: ignore[no-untyped-def]
    """The product of one of a set's linears [rows, 16 * tiles] with what stands at the address `x`, its parts added up,
    with the bias."""
    number = 0
    for candidate in range(end - start):
        if entries[start + candidate, _OUTPUT] == candidate:
            if linear == 0:
                number = candidate
                break
            linear -= 1
    entry = entries[start + number]
    columns = entry[_WEIGHT + 4] * 16
    y = carray(pointer(outputs[number].ctypes.data), (rows, columns), np.float32)
    for other in range(number + 1, end - start):
        if entries[start + other, _OUTPUT] == number:
            more = carray(pointer(outputs[other].ctypes.data), (rows, columns), np.float32)
            for row in range(rows):
                for j in range(columns):
                    y[row, j] += more[row, j]
    if entry[_INPUT_LEVELS]:
        for row in range(scales.shape[1]):
            for j in range(columns):
                y[row, j] *= scales[entry[_INPUT], row]
    if entry[_OUTPUT_ROTATION]:
        _rotate_rows(entry[_OUTPUT_ROTATION], y, scales.shape[1], room)
    if entry[_ADAPTER]:
        adapter = carray(pointer(entry[_ADAPTER]), 1, np.int64)
        call(adapter[0], (entry[_ADAPTER], x, scales.shape[1], y.ctypes.data, columns, room.ctypes.data))
    if entry[_BIAS]:
        bias = carray(pointer(entry[_BIAS]), columns, np.float32)
        for row in range(rows):
            for j in range(columns):
                y[row, j] += bias[j]
    if entry[_OUTPUT_LEVELS]:
        for row in range(scales.shape[1]):
            scale = _round_to(y[row], entry[_OUTPUT_LEVELS], y[row])
            for j in range(columns):
                y[row, j] *= scale
    return y


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _rotate(x, heads, cos, sin):  # type: ignore[no-untyped-def]
    """Rotary embedding, in their own place, of the heads of each row."""
    size = cos.shape[1]
    half = size // 2
    for row in range(cos.shape[0]):
        for head in range(heads):
            for j in range(half):
                first, second = x[row, head * size + j], x[row, head * size + half + j]
                x[row, head * size + j] = first * cos[row, j] - second * sin[row, j]
                x[row, head * size + half + j] = second * cos[row, half + j] + first * sin[row, half + j]


@njit(nogil=True, cache=True, error_model="numpy")
def _attend(attend, block, task, q, k, v, texts, key_heads, scale, scores, out):  # type: ignore[no-untyped-def]
    """Attention of the query heads that share a key head; `task` counts rows and key heads. The row's key and value
    are written behind those of its text."""
    row, head = task // key_heads, task % key_heads
    size, shared = out.shape[2], out.shape[1] // key_heads
    capacity, length = texts[row, 1], texts[row, 2]
    all_keys = texts[row, 0] + 4 * size * capacity * ((2 * block) * key_heads + head)
    all_values = all_keys + 4 * size * capacity * key_heads
    key = carray(pointer(all_keys + 4 * size * length), size, np.float32)
    value = carray(pointer(all_values + 4 * size * length), size, np.float32)
    for j in range(size):
        key[j] = k[row, head * size + j]
        value[j] = v[row, head * size + j]
    first = 4 * size * shared * head
    queries, weighed = q.ctypes.data + row * 4 * q.shape[1] + first, out.ctypes.data + row * 4 * size * out.shape[1]
    call(
        attend,
        (queries, all_keys, all_values, length + 1, scale.ctypes.data, scores.ctypes.data, weighed + first),
    )


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _gate(gate, up, out):  # type: ignore[no-untyped-def]
    """silu(gate) * up."""
    for row in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[row, j] = gate[row, j] / (np.float32(1) + exp(min(-gate[row, j], np.float32(87)))) * up[row, j]


@njit(nogil=True, cache=True, error_model="numpy")
def _add(x, y):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[row, j] += y[row, j]


@cache
def stepper(parallel: bool) -> Callable[..., None]:
    """`step(entries, sets, norms, eps, x, cos, sin, texts, attend, key_heads, scale, h, hidden, attended, inputs, sums,
    outputs, picked, scales, scores, parts)`: `x` [rows, hidden_size], the embeddings of a token of each text, becomes
    what the last norm makes of them.

    If `parallel`, `parts` threads work at once. `entries` int64 [n, FIELDS] are those of all linears, and `sets`
    [4 * blocks + 1] says where each set begins; `norms` [2 * blocks + 1, hidden_size]; `cos` and `sin` [rows,
    head_size] of each text's position. `texts` int64 [rows, 3] are the address of a text's keys and values [blocks, 2,
    key_heads, capacity, head_size], its capacity and its length. `attend` is the address of an `attention`, and `scale`
    float32 [1] what its scores are multiplied with. The others are room to work in: `h` like x, `hidden`
    [rows, intermediate_size], `attended` [rows, heads, head_size], `inputs`, `sums`, `outputs` [entries of a set, as
    much as the largest takes], `picked` as one of them, `scales` [entries of a set, rows], and `scores` [parts, heads
    of a key head, longest length + 1].
    """
    sources = _SOURCES  # numbers and texts alone: what else a closure holds is another in each process

    def step(  # type: ignore[no-untyped-def]
        entries, sets, norms, eps, x, cos, sin, texts, attend, key_heads, scale, h, hidden, attended, inputs, sums,
        outputs, picked, scales, scores, parts,
    ):  # fmt: skip
        assert sources
        parts = parts if parallel else 1
        rows, heads = x.shape[0], attended.shape[1]
        padded = rows + (rows % 4 == 3)
        first, second, third = np.int64(0), np.int64(1), np.int64(2)  # as literals they would be compiled one by one
        of_heads = attended.reshape(rows, heads * attended.shape[2])
        for block in range(norms.shape[0] // 2):
            a, b, c, d, e = sets[4 * block : 4 * block + 5]
            _normalize(x, norms[2 * block], eps, h)
            _prepare_set(entries, a, b, h, padded, inputs, sums, picked, scales)
            for part in prange(parts):
                _multiply_set(entries, a, b, padded, inputs, sums, outputs, part, parts)
            q = _result(entries, a, b, first, h.ctypes.data, padded, outputs, scales, picked)
            k = _result(entries, a, b, second, h.ctypes.data, padded, outputs, scales, picked)
            v = _result(entries, a, b, third, h.ctypes.data, padded, outputs, scales, picked)
            _rotate(q, heads, cos, sin)
            _rotate(k, key_heads, cos, sin)
            for part in prange(parts):
                for task in range(rows * key_heads * part // parts, rows * key_heads * (part + 1) // parts):
                    _attend(attend, block, task, q, k, v, texts, key_heads, scale, scores[part], attended)
            _prepare_set(entries, b, c, of_heads, padded, inputs, sums, picked, scales)
            for part in prange(parts):
                _multiply_set(entries, b, c, padded, inputs, sums, outputs, part, parts)
            _add(x, _result(entries, b, c, first, of_heads.ctypes.data, padded, outputs, scales, picked))
            _normalize(x, norms[2 * block + 1], eps, h)
            _prepare_set(entries, c, d, h, padded, inputs, sums, picked, scales)
            for part in prange(parts):
                _multiply_set(entries, c, d, padded, inputs, sums, outputs, part, parts)
            gate = _result(entries, c, d, first, h.ctypes.data, padded, outputs, scales, picked)
            up = _result(entries, c, d, second, h.ctypes.data, padded, outputs, scales, picked)
            _gate(gate, up, hidden)
            _prepare_set(entries, d, e, hidden, padded, inputs, sums, picked, scales)
            for part in prange(parts):
                _multiply_set(entries, d, e, padded, inputs, sums, outputs, part, parts)
            _add(x, _result(entries, d, e, first, hidden.ctypes.data, padded, outputs, scales, picked))
        _normalize(x, norms[norms.shape[0] - 1], eps, x)

    return njit(parallel=parallel, nogil=True, cache=True, error_model="numpy")(step)
