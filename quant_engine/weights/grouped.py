"""Grouped integers: b-bit codes, and for each group of consecutive columns of a row a scale and a zero point.

    w_hat = scale * (code - zero)

A row of n columns has ceil(n / g) groups; the last one may be shorter. Symmetric grids have their zero in the middle,
2^(b-1), which is not stored. With a column order (GPTQ's act-order with dynamic groups) the codes are stored in that
order, so that groups are consecutive there; the order is stored once for all rows.
"""

from __future__ import annotations

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.interleaving import ROWS, interleaved, restored
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, parts, unpack, unused_bits, words_per_row

CLIP_STEPS = 80
CLIP_STEP = 0.01
CLIP_NORM = 2.4
SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16, so that no stored scale is zero."""
SMALLEST_NORMAL = 2.0**-14
"""From here on float16 has 11 significant bits."""


def grids(
    weight: torch.Tensor,
    bits: int,
    group: int,
    *,
    symmetric: bool = False,
    mse_clip: bool = False,
    around_zero: bool = True,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each group of `weight` [m, n] (float32 or float64).

    Returns scales [m, ceil(n / g)] in `scale_dtype` and zeros uint8 of the same shape. The range always contains 0, so
    zeros lie in 0 .. 2^b - 1. No weight is off by more than half a step and what rounding the scale to float16 moves
    the ends of the grid, 2^-10 of the range (`_stored`). `mse_clip` tries ranges shrunk by 0 to 79% and keeps the one
    with the least sum of |w - w_hat|^2.4, as the GPTQ reference does. Without `around_zero` the range is that of the
    weights alone, at least 1e-5 wide, and zeros are clipped to 0 .. 2^b - 1, as in the AWQ reference: a group on one
    side of 0 is then shifted.
    """
    slices = in_groups(weight, group)
    low = in_groups(weight, group, fill=torch.inf).amin(-1)
    high = in_groups(weight, group, fill=-torch.inf).amax(-1)
    if around_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    else:
        high = torch.maximum(high, low + 1e-5)
    scales, zeros = _grid(low, high, bits, symmetric, scale_dtype)
    if not mse_clip:
        return scales, zeros.to(torch.uint8)
    best = torch.full_like(low, torch.inf)
    for step in range(CLIP_STEPS):
        keep = 1 - step * CLIP_STEP
        tried, tried_zeros = _grid(low * keep, high * keep, bits, symmetric, scale_dtype)
        scale, zero = tried.to(weight.dtype)[..., None], tried_zeros[..., None]
        codes = torch.round(slices / scale).add_(zero).clamp_(0, 2**bits - 1)
        error = (slices - scale * (codes - zero)).abs_().pow_(CLIP_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, tried, scales)
        zeros = torch.where(better, tried_zeros, zeros)
    return scales, zeros.to(torch.uint8)


def _grid(
    low: torch.Tensor, high: torch.Tensor, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    highest = 2**bits - 1
    exact = (2 * torch.maximum(-low, high) if symmetric else high - low) / highest
    if dtype == torch.float16:
        scales = _stored(exact, tied=torch.ones_like(exact, dtype=torch.bool) if symmetric else -low == high)
    else:
        scales = exact.to(dtype).clamp(min=SMALLEST_SCALE)
    if symmetric:
        return scales, torch.full_like(exact, 2 ** (bits - 1))
    return scales, torch.round(-low / scales.to(exact.dtype)).clamp(0, highest)


def _stored(exact: torch.Tensor, tied: torch.Tensor) -> torch.Tensor:
    """The scales as float16: the nearest.

    Where a range reaches equally far to both sides of 0, its ends lie halfway between two codes: with a scale a little
    too large both would round inwards and leave a code unused, so there (`tied`) it is rounded down. Below the normal
    numbers of float16, which are coarse, it is rounded up: the grid spans the range.
    """
    nearest = exact.to(torch.float16)
    down = torch.nextafter(nearest, torch.zeros_like(nearest))
    up = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    value = nearest.to(exact.dtype)
    scales = torch.where(tied & (value > exact), down, nearest)
    scales = torch.where((exact < SMALLEST_NORMAL) & (value < exact), up, scales)
    return scales.clamp(min=SMALLEST_SCALE)


def round_to_grid(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """The nearest codes, uint8 [m, n], for `weight` [m, n] on the grids [m, ceil(n / g)]. Ties go to even."""
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=weight.device)
    for part in parts(rows, columns):
        scale, zero = (values[part].to(weight.dtype)[..., None] for values in (scales, zeros))
        rounded = (in_groups(weight[part], group) / scale).round_().add_(zero).clamp_(0, 2**bits - 1)
        codes[part] = rounded.flatten(1)[:, :columns]
    return codes


def rounded(weight: torch.Tensor, bits: int, group: int, **fit: bool) -> torch.Tensor:
    """`weight` [m, n] at its nearest points of the grids that `grids(weight, bits, group, **fit)` gives."""
    scales, zeros = grids(weight, bits, group, **fit)
    scale, zero = scales.to(weight.dtype)[..., None], zeros.to(weight.dtype)[..., None]
    codes = torch.round(in_groups(weight, group) / scale).add_(zero).clamp_(0, 2**bits - 1)
    return codes.sub_(zero).mul_(scale).view(len(weight), -1)[:, : weight.shape[1]]


def in_groups(weight: torch.Tensor, group: int, *, fill: float = 0.0) -> torch.Tensor:
    """`weight` [m, n] as [m, ceil(n / g), g], the last group filled up."""
    rows, columns = weight.shape
    short = -columns % group
    if short:
        weight = torch.nn.functional.pad(weight, (0, short), value=fill)
    return weight.reshape(rows, -1, group)


class GroupedInt(StoredWeight):
    """Codes int32 words [m, ceil(n b / 32)], scales float16 [m, groups], zeros packed as one row of b-bit codes."""

    form = "grouped_int"
    by_rows = ("codes", "scales")

    def __init__(
        self, out_features: int, in_features: int, bits: int, group: int, symmetric: bool, ordered: bool
    ) -> None:
        super().__init__(out_features, in_features)
        self.bits, self.group = bits, min(group, in_features)
        self.symmetric, self.ordered = symmetric, ordered
        self.groups = -(-in_features // self.group)
        self.middle = 2 ** (bits - 1)
        words = words_per_row(in_features, bits)
        self.register_buffer("codes", torch.empty((out_features, words), dtype=torch.int32))
        self.register_buffer("scales", torch.empty((out_features, self.groups), dtype=torch.float16))
        zero_words = 0 if symmetric else words_per_row(out_features * self.groups, bits)
        self.register_buffer("zeros", torch.empty(zero_words, dtype=torch.int32) if zero_words else None)
        self.register_buffer("order", torch.empty(in_features, dtype=torch.int32) if ordered else None)

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bits: int,
        group: int,
        order: torch.Tensor | None = None,
    ) -> GroupedInt:
        """From `codes` [m, n], `scales` [m, groups], `zeros` [m, groups] (None: symmetric).

        `order` [n]: stored column j is original column order[j].
        """
        rows, columns = codes.shape
        with torch.device("meta"):
            weight = cls(rows, columns, bits, group, symmetric=zeros is None, ordered=order is not None)
        weight.codes = pack(codes, bits)
        weight.scales = scales.to(torch.float16).contiguous()
        if zeros is not None:
            weight.zeros = pack(zeros.reshape(1, -1), bits)[0]
        if order is not None:
            weight.order = order.to(torch.int32)
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        stored = self.stored_rows(start, self.out_features if end is None else end)
        if self.order is None:
            return stored
        weight = torch.empty_like(stored)
        weight[:, self.order.long()] = stored
        return weight

    def transform_input(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, self.order) if self.ordered else x

    def stored_rows(self, start: int, end: int) -> torch.Tensor:
        """Rows `start` to `end`, columns in stored order."""
        stored = self.canonical()
        words, scales = stored.codes[start:end], stored.scales[start:end, :, None]
        zeros = None if self.symmetric else stored.zero_points()[start:end, :, None]
        weight = torch.empty((len(words), self.in_features), device=words.device)
        for part in parts(*weight.shape):
            codes = in_groups(unpack(words[part], self.bits, self.in_features).float(), self.group)
            codes.sub_(self.middle if zeros is None else zeros[part].float()).mul_(scales[part].float())
            weight[part] = codes.flatten(1)[:, : self.in_features]
        return weight

    def zero_points(self) -> torch.Tensor:
        """The zero points uint8 [m, groups] of a weight whose rows lie as files have them."""
        if self.symmetric:
            shape = self.out_features, self.groups
            return torch.full(shape, self.middle, dtype=torch.uint8, device=self.device)
        zeros = unpack(self.zeros[None], self.bits, self.out_features * self.groups)
        return zeros.view(self.out_features, self.groups)

    def interleave(self) -> None:
        zeros = self.zero_points()
        super().interleave()
        if self.zeros is not None:
            zeros = interleaved(zeros)
            self.zeros = pack(zeros.view(1, -1), self.bits)[0]

    def restore(self) -> None:
        super().restore()
        if self.zeros is not None:
            tiles = -(-self.out_features // ROWS)
            zeros = unpack(self.zeros[None], self.bits, tiles * ROWS * self.groups)
            zeros = restored(zeros.view(tiles, self.groups, ROWS), self.out_features)
            self.zeros = pack(zeros.view(1, -1), self.bits)[0]

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {"codes": rows * columns * self.bits, "scales": rows * self.groups * 16}
        padding = unused_bits(rows, columns, self.bits)
        if not self.symmetric:
            bits["zeros"] = rows * self.groups * self.bits
            padding += unused_bits(1, rows * self.groups, self.bits)
        if self.ordered:
            bits["order"] = columns * 32
        return self._ledger(bits, padding)
