"""How the Triton kernels of a GPU read what is packed (weights/packing.py): a code at a time, or eight of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def code_at(words, at, bits: tl.constexpr, there):
    """Code number `at` of a stream of packed words (weights/packing.py), int32; 0 where not `there`."""
    bit = at * bits
    word, shift = bit // 32, (bit % 32).to(tl.uint32)
    code = tl.load(words + word, there, 0).to(tl.uint32, bitcast=True) >> shift
    if 32 % bits:
        over = there & (shift + bits > 32)
        high = tl.load(words + word + 1, over, 0).to(tl.uint32, bitcast=True)
        code |= tl.where(over, high << (32 - shift) % 32, 0)
    return (code & (2**bits - 1)).to(tl.int32)


@triton.jit
def twice_quantized(values, steps, dynamic, per_step: tl.constexpr, at, known):
    """A block's scale or shift, perhaps stored twice quantized."""
    value = tl.load(values + at, known, 0)
    if steps is not None:
        value = tl.load(dynamic + value.to(tl.int32), known, 0) * tl.load(steps + at // per_step, known, 0)
    return value


@triton.jit
def eight_at(words, e, row_words, bits: tl.constexpr, there):
    """The bits of eight codes, the lowest first, that begin at byte `e` * `bits` of a row of packed words."""
    byte = e * bits
    at, shift = byte // 4, ((byte % 4) * 8).to(tl.uint32)
    low = tl.load(words + at, there, 0).to(tl.uint32, bitcast=True)
    if 4 % bits == 0:
        return low >> shift
    over = there & (shift + 8 * bits > 32) & (at + 1 < row_words)
    high = tl.load(words + at + 1, over, 0).to(tl.uint32, bitcast=True)
    window = (high.to(tl.uint64) << 32 | low.to(tl.uint64)) >> shift.to(tl.uint64)
    return window.to(tl.uint32) if 8 * bits <= 32 else window
