"""Codebook weights: b-bit codes into the NormalFloat levels, and for each block a scale and, if wanted, a shift.

    w_hat = level[code] * scale + shift

Blocks are `block` consecutive weights of the flattened matrix, as in bitsandbytes: they run along a row where
in_features is a multiple of the block, and across rows where not; the last one may be shorter. Codes are packed row by
row all the same.

Scales and shifts can be stored twice quantized (Dettmers et al., QLoRA, arXiv 2305.14314, section 3): each as one of
256 entries of a signed dynamic map, times a step for every 256 blocks; scales are measured from their mean.

    scale = map[code] * step + mean of all scales          shift = map[code] * step

The levels and the dynamic map are part of this form, not of the stored weight.
"""

from __future__ import annotations

from functools import cache

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.interleaving import interleaved, restored
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, parts, unpack, unused_bits, words_per_row

OUTERMOST = 0.9677083
"""The probability whose normal quantile becomes the level 1."""
BLOCKS_PER_STEP = 256
"""Blocks whose scales, or shifts, share a second-level step."""
FEW_LEVELS = 16
"""Up to so many levels, counting those below a value is faster than searching for it."""
SMALLEST = torch.finfo(torch.float32).tiny

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 4-bit levels as bitsandbytes prints them; the construction gives the same to 2e-7."""


def construct_levels(bits: int) -> torch.Tensor:
    """NormalFloat's levels by construction, float64 [2^bits]: quantiles of N(0, 1), over the outermost.

    2^(bits-1) positive ones, 2^(bits-1) - 1 negative ones and an exact zero. The QLoRA paper's formula (4) is only a
    description: it has no zero, and bitsandbytes, which this follows, does not use it.
    """
    half = 2 ** (bits - 1)
    positive = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, half, dtype=torch.float64)[:-1])
    levels = torch.cat([positive, negative, torch.zeros(1, dtype=torch.float64)]).sort().values
    return levels / levels.max()


@cache
def levels(bits: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The NormalFloat levels of `bits` bits, ascending, float32 [2^bits]."""
    return (torch.tensor(NF4) if bits == 4 else construct_levels(bits).float()).to(device)


@cache
def dynamic_map(device: torch.device | str = "cpu") -> torch.Tensor:
    """bitsandbytes' signed 8-bit dynamic map, float32 [256]: seven decades, the upper ones finer; 0; 1 but not -1."""
    values = [torch.zeros(1), torch.ones(1)]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * (bounds[:-1] + bounds[1:]) / 2
        values += [middles, -middles]
    return torch.cat(values).sort().values.to(device)


def nearest(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of the ascending levels `among`, uint8 in the shape of `values`; the lower one on ties."""
    among = among.to(values)
    borders = (among[:-1] + among[1:]) / 2
    if len(among) > FEW_LEVELS:
        return torch.bucketize(values, borders).to(torch.uint8)
    codes = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    above = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    for border in borders.tolist():
        codes.add_(torch.gt(values, border, out=above).view(torch.uint8))
    return codes


def in_blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    """`weight` [m, n], flattened, as [ceil(m n / block), block]. Zeros fill up the last block."""
    flat = weight.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def round_to_levels(
    weight: torch.Tensor, bits: int, block: int, shifts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [m, n] and scales float32 [blocks] of `weight` [m, n]: every block over its largest magnitude.

    `shifts` [blocks] are taken off each block first. A block of zeros gets the code of 0 everywhere.
    """
    blocks = in_blocks(weight.float(), block)
    if shifts is not None:
        blocks = blocks - shifts[:, None]
        # What fills up the last block must not become its largest magnitude.
        blocks.view(-1)[weight.numel() :] = 0
    scales = torch.empty(len(blocks), device=blocks.device)
    codes = torch.empty(blocks.shape, dtype=torch.uint8, device=blocks.device)
    for part in parts(*blocks.shape):
        scales[part] = blocks[part].abs().amax(1)
        codes[part] = nearest(blocks[part] / scales[part].clamp(min=SMALLEST)[:, None], levels(bits))
    return codes.view(-1)[: weight.numel()].view(weight.shape), scales


def quantize_again(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` [blocks] as codes uint8 [blocks] of the dynamic map and steps float32 [ceil(blocks / 256)]."""
    parts = in_blocks(values[None], BLOCKS_PER_STEP)
    steps = parts.abs().amax(1)
    codes = nearest(parts / steps.clamp(min=SMALLEST)[:, None], dynamic_map())
    return codes.view(-1)[: len(values)], steps


FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""The magnitudes of bitsandbytes' 4-bit floats by their lower three bits, over 12; the fourth is the sign."""


@cache
def fp4_levels(device: torch.device | str = "cpu") -> torch.Tensor:
    """What bitsandbytes' 4-bit floats stand for, by code, float32 [16]."""
    magnitudes = torch.tensor(FP4, device=device) / 12
    return torch.cat([magnitudes, -magnitudes])


class Codebook(StoredWeight):
    """Codes int32 words [m, ceil(n b / 32)], scales and shifts [ceil(m n / block)].

    Doubly quantized, these are uint8, with their steps float32 [ceil(blocks / 256)] and the mean scale float32 [1];
    otherwise float32.
    """

    form = "codebook"
    by_rows = ("codes",)

    def __init__(self, out_features: int, in_features: int, bits: int, block: int, double: bool, shifted: bool) -> None:
        super().__init__(out_features, in_features)
        self.bits, self.block, self.double, self.shifted = bits, block, double, shifted
        self.blocks = -(-out_features * in_features // block)
        dtype, steps = torch.uint8 if double else torch.float32, -(-self.blocks // BLOCKS_PER_STEP)
        words = words_per_row(in_features, bits)
        self.register_buffer("codes", torch.empty((out_features, words), dtype=torch.int32))
        self.register_buffer("scales", torch.empty(self.blocks, dtype=dtype))
        self.register_buffer("scale_steps", torch.empty(steps) if double else None)
        self.register_buffer("scale_mean", torch.empty(1) if double else None)
        self.register_buffer("shifts", torch.empty(self.blocks, dtype=dtype) if shifted else None)
        self.register_buffer("shift_steps", torch.empty(steps) if shifted and double else None)

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        bits: int,
        block: int,
        *,
        double: bool = True,
        shifts: torch.Tensor | None = None,
    ) -> Codebook:
        """From `codes` [m, n], `scales` [blocks] and `shifts` [blocks] (None: no shift) in float32."""
        rows, columns = codes.shape
        with torch.device("meta"):
            weight = cls(rows, columns, bits, block, double, shifted=shifts is not None)
        weight.codes = pack(codes, bits)
        if not double:
            weight.scales, weight.shifts = scales, shifts
            return weight
        weight.scale_mean = scales.mean().reshape(1)
        weight.scales, weight.scale_steps = quantize_again(scales - weight.scale_mean)
        if shifts is not None:
            weight.shifts, weight.shift_steps = quantize_again(shifts)
        return weight

    def levels(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """What each code stands for before it is scaled, float32 [2^bits]."""
        return levels(self.bits, device)

    def interleave(self) -> None:
        """Only for blocks that don't lie across rows."""
        super().interleave()
        for name, values in self._values_of_blocks().items():
            setattr(self, name, interleaved(values.view(self.out_features, -1)))

    def restore(self) -> None:
        super().restore()
        for name, values in self._values_of_blocks().items():
            setattr(self, name, restored(values, self.out_features).flatten())

    def _values_of_blocks(self) -> dict[str, torch.Tensor]:
        return {"scales": self.scales, **({"shifts": self.shifts} if self.shifted else {})}

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        if self.interleaved:
            return self.canonical().dequantize(start, end)
        end = self.out_features if end is None else end
        weight = torch.empty((end - start, self.in_features), device=self.codes.device)
        for part in parts(*weight.shape):
            weight[part] = self._rows(start + part.start, min(start + part.stop, end))
        return weight

    def _rows(self, start: int, end: int) -> torch.Tensor:
        codes = unpack(self.codes[start:end], self.bits, self.in_features)
        flat = self.levels(codes.device).index_select(0, codes.view(-1).int())
        # The blocks that hold these rows; the first may begin, and the last end, in other rows.
        first, last = start * self.in_features // self.block, -(-end * self.in_features // self.block)
        into, count = start * self.in_features - first * self.block, len(flat)
        if (last - first) * self.block > count:
            flat = torch.nn.functional.pad(flat, (into, (last - first) * self.block - into - count))
        blocks = flat.view(-1, self.block).mul_(self.scale(first, last)[:, None])
        if self.shifted:
            blocks.add_(self.shift(first, last)[:, None])
        return flat[into : into + count].view(codes.shape)

    def scale(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The scales of blocks `first` to `last` as float32."""
        if not self.double:
            return self.scales[first:last]
        return _again(self.scales, self.scale_steps, first, last) + self.scale_mean

    def shift(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The shifts of blocks `first` to `last` as float32. Only for a shifted weight."""
        return _again(self.shifts, self.shift_steps, first, last) if self.double else self.shifts[first:last]

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {"codes": rows * columns * self.bits, "scales": 8 * self.scales.nbytes}
        if self.double:
            bits["scales"] += 8 * (self.scale_steps.nbytes + self.scale_mean.nbytes)
        if self.shifted:
            bits["shifts"] = 8 * (self.shifts.nbytes + (self.shift_steps.nbytes if self.double else 0))
        return self._ledger(bits, unused_bits(rows, columns, self.bits))


class Fp4Codebook(Codebook):
    """The same with bitsandbytes' 4-bit floats for levels."""

    form = "fp4_codebook"

    def levels(self, device: torch.device | str = "cpu") -> torch.Tensor:
        return fp4_levels(device)


def _again(codes: torch.Tensor, steps: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
    """Doubly quantized values `first` to `last` without their mean."""
    last = len(codes) if last is None else min(last, len(codes))
    blocks = torch.arange(first, last, device=codes.device)
    return dynamic_map(codes.device)[codes[first:last].int()] * steps[blocks // BLOCKS_PER_STEP]
