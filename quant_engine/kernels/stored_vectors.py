"""Vectors of the forms that other programs' files have, in the manner of kernels/vectors.py, and all forms by number.

The blocks of GGUF have factors for groups of 32 or of 16 columns. Those of 32 are as grouped integers: a number for a
group and one that is added. Where 16 columns share a factor a block has two of them, and each column's value is
multiplied with its own, so that nothing is left for the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.ir as ir
import numpy as np

from quant_engine.kernels.vectors import (
    BLOCK,
    FLOATS,
    I16,
    I64,
    INTS,
    LANES,
    Emitter,
    Group,
    Halves,
    IntegerDots,
    Integers,
    Levels,
    MarkedSigns,
    Signs,
    TwoPlanes,
    code_offsets,
    cut,
    stays_shifted,
)
from quant_engine.weights.codebook import fp4_levels
from quant_engine.weights.gguf_blocks import KINDS, LEVELS

SCALE_TYPES = ("float32", "bfloat16", "float16")


def scales_of(e: Emitter, address: ir.Value, index: ir.Value, dtype: str) -> ir.Value:
    """The vector number `index` of an array of scales, as float32."""
    if dtype == "float32":
        return e.load(FLOATS, e.after(address, (index, 4 * LANES)))
    if dtype == "float16":
        return e.halves(address, index)
    b = e.builder
    bits = e.load(ir.VectorType(I16, LANES), e.after(address, (index, 2 * LANES)))
    return b.bitcast(b.shl(b.zext(bits, INTS), e.ints(16)), FLOATS)


class ScaledIntegers(Integers):
    """scale * (code - zero) with scales of any type: the type's number, and 4 more where there are packed zeros."""

    WITH_ZEROS = 4

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        e, b = self.e, self.e.builder
        packed = self.variant & self.WITH_ZEROS
        zero = e.codes(self.zeros, at.index, self.bits) if packed else e.floats(2.0 ** (self.bits - 1))
        scale = scales_of(e, self.scales, at.index, SCALE_TYPES[self.variant % self.WITH_ZEROS])
        return scale, zero if apart else b.fneg(b.fmul(scale, zero))

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return self.e.builder.fmul(self.e.builder.fsub(value, constant), factor)


class Floats8:
    """scale * an 8-bit float of four exponent bits. Side data: address of the scales, whose type is the variant.

    Without its sign such a float is the upper half of a float16 but for the exponent's middle, which is 2^8 away.
    """

    more_planes = ()
    shifts = False

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant
        self.scales = e.load(I64, side)

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        scale = scales_of(self.e, self.scales, at.index, SCALE_TYPES[self.variant])
        return self.e.builder.fmul(scale, self.e.floats(2.0**8)), self.e.floats(0)

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        e, b = self.e, self.e.builder
        for word, offset in code_offsets(self.bits):
            code = cut(e, words[0], word, offset, self.bits)
            half = b.or_(b.shl(b.and_(code, e.ints(128)), e.ints(8)), b.shl(b.and_(code, e.ints(127)), e.ints(7)))
            yield e.from_half(b.trunc(half, ir.VectorType(I16, LANES)))

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return self.e.builder.fmul(value, factor)


class Fp4Levels(Levels):
    """level[code] * scale, with bitsandbytes' 4-bit floats for levels."""

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        super().__init__(e, bits, variant, side)
        self.levels = fp4_levels().tolist()


class BlockLevels(Levels):
    """LEVELS[code] * d of iq4_nl. Side data: address of the scales float16."""

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant
        self.scales, self.levels = e.load(I64, side), [float(level) for level in LEVELS]

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        return self.e.halves(self.scales, at.index), self.e.floats(0)


class Blocks32(Integers):
    """Blocks with numbers for 32 columns each. Side data: addresses of d and m, float16, and of the packed s and t. The
    variant is the number of the kind."""

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.about = e, bits, list(KINDS.values())[variant]
        self.scales, self.minimums, self.scale_codes, self.minimum_codes = (e.load(I64, side, 8 * n) for n in range(4))

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        e, b, bits = self.e, self.e.builder, self.about.scale_bits
        if not bits:
            return e.halves(self.scales, at.index), e.halves(self.minimums, at.index)
        block = b.udiv(at.index, I64(self.about.columns // self.about.group))
        scale = b.fmul(e.halves(self.scales, block), e.codes(self.scale_codes, at.index, bits))
        minimum = b.fmul(e.halves(self.minimums, block), e.codes(self.minimum_codes, at.index, bits))
        return scale, b.fneg(minimum)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        # The product of a code with its factor is exact, so that the sum alone is rounded.
        return self.e.builder.fadd(self.e.builder.fmul(value, factor), constant)


class Blocks16(Blocks32):
    """Blocks of 256 with numbers for 16 columns each."""

    shifts = False

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        self.first = self.e.builder.mul(self.e.builder.mul(at.tile, at.groups), I64(256 // self.about.group))
        self.d = self.e.halves(self.scales, at.index)
        self.m = self.e.halves(self.minimums, at.index) if self.about.minimums else None
        return self.e.floats(1), self.e.floats(0)

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        e, b, about = self.e, self.e.builder, self.about
        whole = list(super().values(words, False, block))
        for half in range(2):
            index = b.add(self.first, b.add(b.mul(block, I64(2)), I64(half)))
            factor = e.codes(self.scale_codes, index, about.scale_bits)
            if about.scale_middle:
                factor = b.fsub(factor, e.floats(float(about.scale_middle)))
            factor = b.fmul(self.d, factor)
            added = b.fmul(self.m, e.codes(self.minimum_codes, index, about.scale_bits)) if about.minimums else None
            for code in whole[half * BLOCK // 2 : (half + 1) * BLOCK // 2]:
                value = (
                    b.fmul(b.fsub(code, e.floats(float(about.middle))), factor)
                    if about.middle
                    else b.fmul(code, factor)
                )
                yield value if added is None else b.fsub(value, added)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return value


FORMS = (
    Integers, Levels, Signs, TwoPlanes, Halves, ScaledIntegers, Floats8, Fp4Levels, BlockLevels, Blocks32, Blocks16,
    MarkedSigns, IntegerDots,
)  # fmt: skip


def emitted(
    context: Any, builder: ir.IRBuilder, form: int, bits: int, variant: int, side: ir.Value
) -> tuple[Emitter, Any]:
    """The form of this number, ready to give its instructions. `side` is the address of its side data."""
    e = Emitter(context, builder)
    return e, FORMS[form](e, bits, variant, side)


def input_factors(form: int, bits: int) -> np.ndarray:
    """What each of a block's 32 inputs is multiplied with, since its code stays shifted: float32 [32]. Where inputs are
    bytes, instead the numbers of the columns that they belong to, less 32."""
    if FORMS[form] is IntegerDots:
        return np.array(IntegerDots.columns(bits), np.float32) - BLOCK
    if not FORMS[form].shifts:
        return np.ones(BLOCK, np.float32)
    shifts = [offset if stays_shifted(bits, offset) else 0 for _, offset in code_offsets(bits)]
    return np.array([2.0**-shift for shift in shifts], np.float32)
