"""Tiles of 16 weight rows on the CPU, in vector instructions that are written out through LLVM.

A lane is a row of the weight (weights/interleaving.py). A word of each row is one load; 32 columns fill exactly b
words, so code j of all 16 rows is cut out with constant shifts and masks and multiplied with x_j, which is the same for
all lanes: no sum runs across lanes and nothing is gathered. In every form the weights of a group of columns are

    w = a * v(code) + c

with numbers a and c for each row and group, so that a group's product is a * (sum of v_j x_j) + c * (sum of x_j).
LLVM makes of it what the CPU at hand has, AVX2 or AVX-512 or neither (compiled.py). What is known when compiling is
form, width and variant; everything else is a number in the running program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba.core import cgutils

from quant_engine.weights.binary import RESIDUAL_TERMS
from quant_engine.weights.codebook import BLOCKS_PER_STEP, levels
from quant_engine.weights.interleaving import ROWS as LANES

BLOCK = 32
"""Columns whose codes fill whole words, whatever their width."""
AT_ONCE = 4
"""Activation rows that share the work of cutting out codes."""

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, INTS, FLOATS = ir.VectorType(I8, LANES), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)

_MASKS = np.unpackbits(np.arange(2**8 + 1, dtype=np.uint16).astype(np.uint8)[:, None], axis=1, bitorder="little")
EXPANSION = np.where(_MASKS > 0, _MASKS.cumsum(1) - 1, 0x80).astype(np.uint8)
"""For each mask of eight lanes, the number of the byte that a lane gets; without one it gets zero. The last row is
there because 16 bytes are loaded for eight."""


class Emitter:
    """Instructions on vectors of 16 lanes, appended to a function that numba compiles."""

    def __init__(self, context: Any, builder: ir.IRBuilder) -> None:
        self.builder = builder
        triple, _, features = context.codegen().magic_tuple()
        self.features = set(features.split(","))
        self.is_x86 = "86" in triple

    def ints(self, *values: int) -> ir.Constant:
        """A vector of these numbers, or of one in all lanes."""
        return ir.Constant(INTS, list(values) * (LANES // len(values)))

    def floats(self, value: float) -> ir.Constant:
        return ir.Constant(FLOATS, [value] * LANES)

    def load(self, kind: ir.Type, address: ir.Value, offset: int = 0) -> ir.Value:
        return self.builder.load(self._pointer(kind, address, offset), align=1)

    def store(self, value: ir.Value, address: ir.Value, offset: int = 0) -> None:
        self.builder.store(value, self._pointer(value.type, address, offset), align=4)

    def _pointer(self, kind: ir.Type, address: ir.Value, offset: int) -> ir.Value:
        whole = self.builder.add(address, I64(offset)) if offset else address
        return self.builder.inttoptr(whole, kind.as_pointer())

    def after(self, address: ir.Value, *steps: tuple[ir.Value, int]) -> ir.Value:
        """The address behind `address` by a sum of counts times sizes."""
        for count, size in steps:
            address = self.builder.add(address, self.builder.mul(count, I64(size)))
        return address

    def splat(self, value: ir.Value) -> ir.Value:
        """The number `value` in all lanes."""
        kind = ir.VectorType(value.type, LANES)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), self.ints(0))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, in one rounding where the CPU can."""
        return self.call("llvm.fmuladd.v16f32", FLOATS, a, b, c)

    def sum(self, vector: ir.Value) -> ir.Value:
        """All lanes added up, in whatever order is fastest."""
        kind = ir.FunctionType(F32, [F32, FLOATS])
        add = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return self.builder.call(add, [F32(0.0), vector], fastmath=("reassoc",))

    def call(self, name: str, returned: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(returned, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def from_half(self, bits: ir.Value) -> ir.Value:
        """Float16 values, given as 16-bit integers, as float32."""
        b = self.builder
        if not self.is_x86 or "+f16c" in self.features:
            return b.fpext(b.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
        wide = b.zext(bits, INTS)
        size = b.and_(wide, self.ints(0x7FFF))
        normal = b.add(b.shl(size, self.ints(13)), self.ints(112 << 23))
        infinite = b.icmp_unsigned(">=", size, self.ints(0x7C00))
        normal = b.select(infinite, b.add(normal, self.ints(112 << 23)), normal)
        tiny = b.fmul(b.sitofp(size, FLOATS), self.floats(2.0**-24))
        value = b.select(b.icmp_unsigned("<", size, self.ints(0x400)), b.bitcast(tiny, INTS), normal)
        return b.bitcast(b.or_(value, b.shl(b.and_(wide, self.ints(0x8000)), self.ints(16))), FLOATS)

    def halves(self, address: ir.Value, index: ir.Value, offset: int = 0) -> ir.Value:
        """The vector number `index` of an array of float16, as float32."""
        return self.from_half(self.load(ir.VectorType(I16, LANES), self.after(address, (index, 2 * LANES)), offset))

    def codes(self, address: ir.Value, index: ir.Value, bits: int) -> ir.Value:
        """The vector number `index` of a stream of b-bit codes, as float32. Sixteen of them are b half words."""
        b = self.builder
        halves = ir.VectorType(I16, bits)
        words = b.zext(self.load(halves, self.after(address, (index, 2 * bits))), ir.VectorType(I32, bits))
        starts = [divmod(lane * bits, 16) for lane in range(LANES)]

        def pick(step: int) -> ir.Value:
            return b.shuffle_vector(words, words, self.ints(*(min(word + step, bits - 1) for word, _ in starts)))

        code = pick(0) if 16 % bits == 0 else b.or_(pick(0), b.shl(pick(1), self.ints(16)))
        code = b.and_(b.lshr(code, self.ints(*(offset for _, offset in starts))), self.ints(2**bits - 1))
        return b.sitofp(code, FLOATS)

    def expanded(self, address: ir.Value, mask: ir.Value, table: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The bytes from an address on, one to each lane of a `mask` in turn, and the address behind the last one.
        `table` is that of EXPANSION."""
        b, zeros = self.builder, ir.Constant(BYTES, [0] * LANES)
        if "+avx512vbmi2" in self.features or "+ssse3" not in self.features:
            pointer = self._pointer(BYTES, address, 0)
            found = self.call("llvm.masked.expandload.v16i8", BYTES, pointer, mask, zeros)
            return found, b.add(address, b.zext(self.call("llvm.ctpop.i16", I16, b.bitcast(mask, I16)), I64))
        halves = []
        for start in (0, 8):
            lanes = ir.Constant(ir.VectorType(I32, 8), list(range(start, start + 8)))
            bits = b.bitcast(b.shuffle_vector(mask, mask, lanes), I8)
            order = self.load(BYTES, self.after(table, (b.zext(bits, I64), 8)))
            halves.append(self.call("llvm.x86.ssse3.pshuf.b.128", BYTES, self.load(BYTES, address), order))
            address = b.add(address, b.zext(self.call("llvm.ctpop.i8", I8, bits), I64))
        order = ir.Constant(INTS, [*range(8), *range(LANES, LANES + 8)])
        return b.shuffle_vector(*halves, order), address

    def look_up(self, table: ir.Value, indices: Callable[[int], ir.Value]) -> ir.Value:
        """The float32 of a `table` in memory at each lane's index."""
        vector: ir.Value = ir.Constant(FLOATS, ir.Undefined)
        for lane in range(LANES):
            number = self.load(F32, self.after(table, (indices(lane), 4)))
            vector = self.builder.insert_element(vector, number, I32(lane))
        return vector


def code_offsets(bits: int) -> list[tuple[int, int]]:
    """Word and bit in it at which each of a block's 32 codes begins."""
    return [divmod(j * bits, 32) for j in range(BLOCK)]


def stays_shifted(bits: int, offset: int) -> bool:
    """Whether a code is left where it lies in its word, as code * 2^offset, and its input divided by that instead."""
    return offset + bits < 32


class Group:
    """A group of columns in a tile: numbers that are known when running."""

    def __init__(
        self, builder: ir.IRBuilder, tile: ir.Value, tiles: ir.Value, groups: ir.Value, group: ir.Value
    ) -> None:
        self.tile, self.tiles, self.groups, self.group = tile, tiles, groups, group
        self.index = builder.add(builder.mul(tile, groups), group)
        """Among the groups of all tiles."""


class Integers:
    """scale * (code - zero). Side data: addresses of scales float16 and packed zeros."""

    ZEROS, MIDDLE, ROTATED, WHOLE = range(4)
    """Variants: packed zeros; all zeros 2^(b-1); all zeros (2^b - 1) / 2, with a single scale; all zeros 2^(b-1) and no
    scale, as int8."""
    more_planes: Sequence[ir.Value] = ()
    """Addresses of words beside the first ones."""
    shifts = True
    """Whether codes may be left where they lie in their words."""

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant
        self.scales, self.zeros = (e.load(I64, side, 8 * n) for n in range(2))

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        """The factor a and the constant c of a tile's group; `apart` as `weight` takes them."""
        e, b, index = self.e, self.e.builder, at.index
        middle = (2**self.bits - (self.variant == self.ROTATED)) / 2
        zero = e.codes(self.zeros, index, self.bits) if self.variant == self.ZEROS else e.floats(middle)
        if self.variant == self.ROTATED:
            scale = e.from_half(e.splat(e.load(I16, self.scales)))
        else:
            scale = e.floats(1) if self.variant == self.WHOLE else e.halves(self.scales, index)
        return scale, b.fneg(b.fmul(scale, zero))

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        """For each of a block's 32 columns, what its code stands for; `shifted` where that may be."""
        b = self.e.builder
        mask = 2**self.bits - 1
        for word, offset in code_offsets(self.bits):
            if shifted and stays_shifted(self.bits, offset):
                code = b.and_(words[0][word], self.e.ints(mask << offset))
            else:
                code = cut(self.e, words[0], word, offset, self.bits)
                code = code if offset + self.bits == 32 else b.and_(code, self.e.ints(mask))
            yield b.sitofp(code, FLOATS)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        """The weights of a column, rounded as the form's own `dequantize` rounds them."""
        b = self.e.builder
        # Both products are exact, and so is their difference: it is the scale times a small integer.
        weight = b.fadd(b.fmul(value, factor), constant)
        return b.fptosi(weight, ir.VectorType(ir.IntType(8), LANES)) if self.variant == self.WHOLE else weight


def cut(e: Emitter, words: list[ir.Value], word: int, offset: int, bits: int) -> ir.Value:
    """A code in the lowest bits of each lane; what lies above it in its word is still there."""
    b = e.builder
    code = b.lshr(words[word], e.ints(offset)) if offset else words[word]
    return b.or_(code, b.shl(words[word + 1], e.ints(32 - offset))) if offset + bits > 32 else code


class IntegerDots(Integers):
    """Integers in the middle of their range, one group a row, for inputs that are integers of 8 bits: summed as such.

    A word holds the codes of 32 / b columns. Those that lie at the same place in each of its four bytes are multiplied
    with four inputs at once, which are bytes.
    """

    WIDTHS = (1, 2, 4, 8)

    @staticmethod
    def is_fast(features: str) -> bool:
        """Whether a CPU with these features has an instruction for it."""
        return "+avx512vnni" in features.split(",")

    @staticmethod
    def columns(bits: int) -> list[int]:
        """A block's 32 columns in the order in which they are multiplied."""
        in_byte = 8 // bits
        words, fields = range(bits), range(in_byte)
        return [(4 * word + byte) * in_byte + field for word in words for field in fields for byte in range(4)]

    def dots(self, words: list[ir.Value], inputs: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Pairs of codes and inputs, four in each lane; `inputs` is the address of a block's bytes."""
        e, b = self.e, self.e.builder
        mask = (2**self.bits - 1) * 0x01010101
        fields = [(word, offset) for word in words for offset in range(0, 8, self.bits)]
        for number, (word, offset) in enumerate(fields):
            yield b.and_(b.lshr(word, e.ints(offset)), e.ints(_signed(mask))), e.splat(e.load(I32, inputs, 4 * number))


class Levels:
    """level[code] * scale + shift. Side data: addresses of scales, shifts, their steps, the mean scale and the dynamic
    map (float32, but doubly quantized scales and shifts uint8), and the last step's number."""

    DOUBLE, SHIFTED = 1, 2
    """Bits of a variant."""
    more_planes: Sequence[ir.Value] = ()
    shifts = False

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant
        names = ("scales", "shifts", "scale_steps", "shift_steps", "mean", "dynamic", "last")
        self.side = {name: e.load(I64, side, 8 * n) for n, name in enumerate(names)}
        self.levels = levels(bits).tolist()

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        scale = self._stored(at, "scales", "scale_steps")
        if self.variant & self.DOUBLE:
            scale = self.e.builder.fadd(scale, self.e.splat(self.e.load(F32, self.side["mean"])))
        shifted = self.variant & self.SHIFTED
        return scale, self._stored(at, "shifts", "shift_steps") if shifted else self.e.floats(0)

    def _stored(self, at: Group, name: str, steps: str) -> ir.Value:
        e, b = self.e, self.e.builder
        if not self.variant & self.DOUBLE:
            return e.load(FLOATS, e.after(self.side[name], (at.index, 4 * LANES)))
        codes = e.after(self.side[name], (at.index, LANES))

        def step(lane: int) -> ir.Value:
            row = b.add(b.mul(at.tile, I64(LANES)), I64(lane))
            number = b.udiv(b.add(b.mul(row, at.groups), at.group), I64(BLOCKS_PER_STEP))
            # Rows that only fill up a tile have none of their own.
            return b.select(b.icmp_unsigned("<", number, self.side["last"]), number, self.side["last"])

        values = e.look_up(self.side["dynamic"], lambda lane: b.zext(e.load(ir.IntType(8), codes, lane), I64))
        return b.fmul(values, e.look_up(self.side[steps], step))

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        for word, offset in code_offsets(self.bits):
            yield self._level(cut(self.e, words[0], word, offset, self.bits))

    def _level(self, code: ir.Value) -> ir.Value:
        """The level of each lane's code; what lies above the code is not looked at."""
        e, b = self.e, self.e.builder
        table = self.levels * (LANES // len(self.levels))
        if "+avx512f" in e.features:
            return e.call("llvm.x86.avx512.permvar.sf.512", FLOATS, ir.Constant(FLOATS, table), code)
        if "+avx2" in e.features:
            low, high = (self._eight_levels(code, table[start : start + 8]) for start in (0, 8))
            return low if self.bits < 4 else b.select(self._bit(code, 3), high, low)
        values: list[ir.Value] = [e.floats(level) for level in self.levels]
        for bit in range(self.bits):
            chosen = self._bit(code, bit)
            values = [b.select(chosen, odd, even) for even, odd in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    def _bit(self, code: ir.Value, bit: int) -> ir.Value:
        return self.e.builder.icmp_signed("<", self.e.builder.shl(code, self.e.ints(31 - bit)), self.e.ints(0))

    def _eight_levels(self, code: ir.Value, table: list[float]) -> ir.Value:
        """Of eight levels, those that the lowest three bits name, in two halves."""
        b = self.e.builder
        eight, halves = ir.VectorType(F32, 8), []
        for start in (0, 8):
            half = b.shuffle_vector(code, code, ir.Constant(ir.VectorType(I32, 8), list(range(start, start + 8))))
            halves.append(self.e.call("llvm.x86.avx2.permps", eight, ir.Constant(eight, table), half))
        return b.shuffle_vector(*halves, ir.Constant(INTS, list(range(LANES))))

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return self.e.builder.fadd(self.e.builder.fmul(value, factor), constant)


class Signs(Integers):
    """mean + spread, or mean - spread. Side data: address of means and spreads, float16 in turns."""

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        e, b = self.e, self.e.builder
        mean, spread = (e.halves(self.scales, b.add(at.index, at.index), 2 * LANES * n) for n in range(2))
        return b.fadd(mean if apart else spread, spread), b.fsub(mean, spread)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        b = self.e.builder
        positive = b.fcmp_ordered(">", value, self.e.floats(0))
        return b.select(positive, factor, constant)


class TwoPlanes:
    """One of four levels of a group, which two bits name: first * b1 + second * b2, or the four terms of residual
    binary weights, which has other levels in salient columns. Side data: addresses of scales float16
    [2][tiles, groups, 16] or [tiles, groups, 8, 16], of the second plane's words, and of salient columns' bits."""

    DUAL, RESIDUAL = range(2)
    shifts = False

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant
        self.scales, second, self.salient = (e.load(I64, side, 8 * n) for n in range(3))
        self.more_planes = [second]

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        e, b = self.e, self.e.builder
        if self.variant == self.DUAL:
            first, second = (
                e.halves(self.scales, index) for index in (at.index, b.add(at.index, b.mul(at.tiles, at.groups)))
            )
            levels = [e.floats(0), first, second, b.fadd(first, second)]
        else:
            index = b.mul(at.index, I64(2 * RESIDUAL_TERMS))
            numbers = [e.halves(self.scales, index, 2 * LANES * n) for n in range(2 * RESIDUAL_TERMS)]
            # Of each term mean - spread and mean + spread.
            terms = [
                [b.fsub(mean, spread), b.fadd(mean, spread)]
                for mean, spread in zip(numbers[::2], numbers[1::2], strict=True)
            ]
            levels = [*terms[0], *terms[1], *(b.fadd(sign, mark) for mark in terms[3] for sign in terms[2])]
        # In memory, where a column finds its own four by a number that is known when running.
        self.levels = b.ptrtoint(cgutils.alloca_once(b, FLOATS, len(levels)), I64)
        for number, level in enumerate(levels):
            e.store(level, self.levels, 4 * LANES * number)
        return e.floats(1), e.floats(0)

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        e, b = self.e, self.e.builder
        address = self.levels
        salient = e.load(I32, e.after(self.salient, (block, 4))) if self.variant == self.RESIDUAL else None
        for j in range(BLOCK):
            if salient is not None:
                bit = b.and_(b.lshr(salient, I32(j)), I32(1))
                address = e.after(self.levels, (b.zext(bit, I64), 4 * LANES * 4))
            first, second = (
                b.icmp_unsigned("!=", b.and_(plane[0], e.ints(_signed(1 << j))), e.ints(0)) for plane in words
            )
            off, on = (
                b.select(first, *(e.load(FLOATS, address, 4 * LANES * number) for number in (high, high - 1)))
                for high in (1, 3)
            )
            yield b.select(second, on, off)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return value


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)


class Halves:
    """The weight itself, in 16 bits. No side data."""

    FLOAT16, BFLOAT16 = range(2)
    more_planes: Sequence[ir.Value] = ()
    shifts = False

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits, self.variant = e, bits, variant

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        return self.e.floats(1), self.e.floats(0)

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        e, b = self.e, self.e.builder
        both = ir.VectorType(I16, 2 * LANES)
        for word in words[0]:  # the 16 rows of one column, and those of the next
            pair = b.bitcast(word, both)
            for start in (0, LANES):
                rows = ir.Constant(INTS, list(range(start, start + LANES)))
                bits = b.shuffle_vector(pair, pair, rows)
                if self.variant == self.FLOAT16:
                    yield e.from_half(bits)
                else:
                    yield b.bitcast(b.shl(b.zext(bits, INTS), e.ints(16)), FLOATS)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return value


class MarkedSigns:
    """mean + spread, or mean - spread, but scale * (code - zero) where the second plane has a mark.

    Side data: addresses of means and spreads, float16 in turns; of the marks; of the codes, and where those of each
    group begin; of the rows' scales float16 and zeros uint8; and of EXPANSION.
    """

    shifts = False

    def __init__(self, e: Emitter, bits: int, variant: int, side: ir.Value) -> None:
        self.e, self.bits = e, bits
        names = ("scales", "marks", "codes", "starts", "grid_scales", "grid_zeros", "expansion")
        self.side = {name: e.load(I64, side, 8 * n) for n, name in enumerate(names)}
        self.more_planes = [self.side["marks"]]
        self.next_code = cgutils.alloca_once(e.builder, I64)

    def coefficients(self, at: Group, apart: bool) -> tuple[ir.Value, ir.Value]:
        e, b = self.e, self.e.builder
        means, twice = self.side["scales"], b.add(at.index, at.index)
        mean, spread = (e.halves(means, twice, 2 * LANES * n) for n in range(2))
        self.negative, self.positive = b.fsub(mean, spread), b.fadd(mean, spread)
        self.scale = e.halves(self.side["grid_scales"], at.tile)
        zero = e.load(BYTES, e.after(self.side["grid_zeros"], (at.tile, LANES)))
        self.zero = b.fmul(b.uitofp(b.zext(zero, INTS), FLOATS), self.scale)
        start = e.load(I32, e.after(self.side["starts"], (at.index, 4)))
        b.store(b.add(self.side["codes"], b.zext(start, I64)), self.next_code)
        return e.floats(1), e.floats(0)

    def values(self, words: list[list[ir.Value]], shifted: bool, block: ir.Value) -> Iterator[ir.Value]:
        e, b = self.e, self.e.builder
        address = b.load(self.next_code)
        for j in range(BLOCK):
            sign, mark = (
                b.icmp_unsigned("!=", b.and_(plane[0], e.ints(_signed(1 << j))), e.ints(0)) for plane in words
            )
            codes, address = e.expanded(address, mark, self.side["expansion"])
            # Both products are exact, and so is their difference: it is the scale times a small integer.
            salient = b.fsub(b.fmul(b.sitofp(b.zext(codes, INTS), FLOATS), self.scale), self.zero)
            yield b.select(mark, salient, b.select(sign, self.positive, self.negative))
        b.store(address, self.next_code)

    def weight(self, value: ir.Value, factor: ir.Value, constant: ir.Value) -> ir.Value:
        return value


def product(e: Emitter, form: Any, rows: int, numbers: list[ir.Value]) -> None:
    """A tile's product with so many activation rows.

    The numbers are addresses of words [tiles, blocks * bits, 16], of x [rows, 32 * blocks] with each column
    times `input_factors`, of the `sums` [rows, groups] of its groups, and of y [rows, 16 * tiles]; then the tile, how
    many tiles and blocks there are, and how many blocks a group has.
    """
    words, x, sums, y, tile, tiles, blocks, per_group = numbers
    b = e.builder
    groups = b.sdiv(b.add(blocks, b.sub(per_group, I64(1))), per_group)
    # Sums that wait for each other: enough of them that a CPU's two multipliers never do, and that they fit registers.
    parts = 4 if rows == 1 else 2 if "+avx512f" in e.features else 1
    dots = [[cgutils.alloca_once(b, FLOATS) for _ in range(parts)] for _ in range(rows)]
    totals = [cgutils.alloca_once(b, FLOATS) for _ in range(rows)]
    for total in totals:
        b.store(e.floats(0), total)
    with cgutils.for_range(b, groups) as at:
        factor, constant = form.coefficients(Group(b, tile, tiles, groups, at.index), False)
        for part in (part for row in dots for part in row):
            b.store(e.floats(0), part)
        start, end = _blocks_of(b, at.index, per_group, blocks)
        with cgutils.for_range(b, end, start) as block:
            inputs = [e.after(x, (b.add(b.mul(blocks, I64(row)), block.index), 4 * BLOCK)) for row in range(rows)]
            running = [[b.load(part) for part in row] for row in dots]
            loaded = _load_block(e, form, words, tile, blocks, block.index)
            for j, value in enumerate(form.values(loaded, True, block.index)):
                for row, sums_of_row in enumerate(running):
                    x_j = e.splat(e.load(F32, inputs[row], 4 * j))
                    sums_of_row[j % parts] = e.fma(value, x_j, sums_of_row[j % parts])
            for row, sums_of_row in zip(dots, running, strict=True):
                for part, value in zip(row, sums_of_row, strict=True):
                    b.store(value, part)
        for row, total in enumerate(totals):
            group_sum = e.splat(e.load(F32, e.after(sums, (b.add(b.mul(groups, I64(row)), at.index), 4))))
            dot = reduce(b.fadd, [b.load(part) for part in dots[row]])
            b.store(e.fma(factor, dot, e.fma(constant, group_sum, b.load(total))), total)
    for row, total in enumerate(totals):
        e.store(b.load(total), e.after(y, (b.add(b.mul(tiles, I64(row)), tile), 4 * LANES)))


def integer_product(e: Emitter, form: IntegerDots, rows: int, numbers: list[ir.Value]) -> None:
    """As `product`, in integers until the sum is whole. In `x` a row's first bytes are its columns."""
    words, x, sums, y, tile, tiles, blocks, _ = numbers
    b, parts = e.builder, 4 if rows == 1 else 1
    dots = [[cgutils.alloca_once_value(b, e.ints(0)) for _ in range(parts)] for _ in range(rows)]
    for part in (part for row in dots for part in row):
        b.store(e.ints(0), part)
    with cgutils.for_range(b, blocks) as block:
        loaded = _load_block(e, form, words, tile, blocks, block.index)[0]
        for row, parts_of_row in enumerate(dots):
            inputs = e.after(x, (b.mul(blocks, I64(row)), 4 * BLOCK), (block.index, BLOCK))
            for number, (codes, fours) in enumerate(form.dots(loaded, inputs)):
                part = parts_of_row[number % parts]
                b.store(e.call("llvm.x86.avx512.vpdpbusd.512", INTS, b.load(part), codes, fours), part)
    for row, parts_of_row in enumerate(dots):
        sum_of_inputs = e.load(F32, e.after(sums, (I64(row), 4)))
        zeros = b.mul(e.call("llvm.fptosi.sat.i32.f32", I32, sum_of_inputs), I32(2 ** (form.bits - 1)))
        dot = b.sub(reduce(b.add, [b.load(part) for part in parts_of_row]), e.splat(zeros))
        # Inputs that are not numbers are none in bytes, but their sum is not a number either.
        lost = e.splat(b.fmul(sum_of_inputs, F32(0)))
        result = b.fadd(b.fmul(b.sitofp(dot, FLOATS), e.halves(form.scales, tile)), lost)
        e.store(result, e.after(y, (b.add(b.mul(tiles, I64(row)), tile), 4 * LANES)))


def weights(e: Emitter, form: Any, numbers: list[ir.Value]) -> None:
    """A tile's weights, as 16 columns of `out` [32 * blocks, 16 * tiles].

    The numbers are addresses of words, as above, and of the tile's part in `out`, whose rows are `stride` bytes apart.
    """
    words, out, stride, tile, tiles, blocks, per_group = numbers
    b = e.builder
    groups = b.sdiv(b.add(blocks, b.sub(per_group, I64(1))), per_group)
    with cgutils.for_range(b, groups) as at:
        factor, constant = form.coefficients(Group(b, tile, tiles, groups, at.index), True)
        start, end = _blocks_of(b, at.index, per_group, blocks)
        with cgutils.for_range(b, end, start) as block:
            column = b.add(out, b.mul(b.mul(block.index, I64(BLOCK)), stride))
            for value in form.values(_load_block(e, form, words, tile, blocks, block.index), False, block.index):
                e.store(form.weight(value, factor, constant), column)
                column = b.add(column, stride)


def _blocks_of(b: ir.IRBuilder, group: ir.Value, per_group: ir.Value, blocks: ir.Value) -> tuple[ir.Value, ir.Value]:
    """First and last block of a group; the last group may be shorter."""
    start = b.mul(group, per_group)
    end = b.add(start, per_group)
    return start, b.select(b.icmp_signed("<", end, blocks), end, blocks)


def _load_block(
    e: Emitter, form: Any, words: ir.Value, tile: ir.Value, blocks: ir.Value, block: ir.Value
) -> list[list[ir.Value]]:
    """The words of a block of 32 columns, for each plane."""
    index = e.builder.add(e.builder.mul(tile, blocks), block)
    planes = [e.after(plane, (index, 4 * LANES * form.bits)) for plane in (words, *form.more_planes)]
    return [[e.load(INTS, plane, 4 * LANES * word) for word in range(form.bits)] for plane in planes]
