"""Binary weights: a sign for each weight, and for each group of consecutive columns of a row a mean and a spread.

    Binary           w_hat = mean + s * spread                                        s = +1 or -1
    PartlyBinary     the same, but marked (salient) weights are codes of an 8-bit grid of their row         (PB-LLM)
    ResidualBinary   two binary levels chosen by a mark; in whole salient columns a sum of two binary terms (BiLLM)

Signs and marks are planes of one bit per weight. Where a mark makes a bit of another plane superfluous, that bit is
used: the sign of a salient weight of PartlyBinary is the highest bit of its code, and the mark in a salient column of
ResidualBinary is its second sign. Inputs that calibration never saw (`live` bit 0) have weight zero, which a sign
can't say.
"""

from __future__ import annotations

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.interleaving import ROWS, interleaved, restored
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import WORD, pack, unpack, unused_bits, words_per_row

HIGH_BITS = 8
"""Width of PartlyBinary's salient weights."""
LOW_BITS = HIGH_BITS - 1
"""Of those, the bits that lie in the list of codes; the highest is in the plane of signs."""
RESIDUAL_TERMS = 4
"""Of ResidualBinary: unmarked, marked, first and second term of salient columns; each has a mean and a spread."""


def fit(
    values: torch.Tensor, mask: torch.Tensor, stored: torch.dtype | None = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread [m] of each row of `values` [m, c] over `mask` (same shape, bool); 0 where a row has none.

    The spread, the mean of |w - mean|, is the least-squares factor of the signs of w - mean. Both are rounded to the
    type in which they are `stored` (None: not at all), the mean before the spread is taken.
    """
    count = mask.sum(-1).clamp(min=1)
    mean = _rounded((values * mask).sum(-1) / count, stored)
    spread = _rounded(((values - mean[:, None]).abs() * mask).sum(-1) / count, stored)
    return mean, spread


def signed(values: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (bool, True: +1, also for a tie) and binary values of `values`; mean and spread broadcast against it."""
    signs = values >= mean
    return signs, torch.where(signs, mean + spread, mean - spread)


def _rounded(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return values if dtype is None else values.to(dtype).to(values.dtype)


def _plane(bits: torch.Tensor) -> torch.Tensor:
    """A plane of bits, bool [m, n], as words [m, ceil(n / 32)]."""
    return pack(bits, 1)


class Binary(StoredWeight):
    """signs int32 words [m, ceil(n / 32)], scales float16 [m, groups, 2] (mean, spread), live int32 [ceil(n / 32)]."""

    form = "binary"
    by_rows = ("signs",)
    terms = 1

    def __init__(self, out_features: int, in_features: int, group: int) -> None:
        super().__init__(out_features, in_features)
        self.group = min(group, in_features)
        self.groups = -(-in_features // self.group)
        words = words_per_row(in_features, 1)
        self.register_buffer("signs", torch.empty((out_features, words), dtype=torch.int32))
        self.register_buffer("scales", torch.empty((out_features, self.groups, 2 * self.terms), dtype=torch.float16))
        self.register_buffer("live", torch.empty(words, dtype=torch.int32))

    @classmethod
    def pack(cls, signs: torch.Tensor, scales: torch.Tensor, live: torch.Tensor, group: int) -> Binary:
        """From `signs` bool [m, n], `scales` [m, groups, 2] and `live` bool [n]."""
        with torch.device("meta"):
            weight = cls(*signs.shape, group)
        weight._set(signs, scales, live)
        return weight

    def _set(self, signs: torch.Tensor, scales: torch.Tensor, live: torch.Tensor) -> None:
        self.signs = _plane(signs)
        self.scales = scales.to(torch.float16).contiguous()
        self.live = _plane(live[None])[0]

    def column_bits(self, plane: torch.Tensor) -> torch.Tensor:
        """A row of bits, one per column: bool [n]."""
        return unpack(plane[None], 1, self.in_features)[0].bool()

    def _bits(self, plane: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
        return unpack(plane[start:end], 1, self.in_features).bool()

    def _terms(self, start: int, end: int | None) -> list[torch.Tensor]:
        """Mean and spread of each term, repeated for every column: 2 * terms tensors [end - start, n]."""
        columns = self.scales[start:end].float().repeat_interleave(self.group, dim=1)[:, : self.in_features]
        return list(columns.unbind(-1))

    def interleave(self) -> None:
        super().interleave()
        self.scales = interleaved(self.scales.flatten(1))

    def restore(self) -> None:
        super().restore()
        self.scales = restored(self.scales, self.out_features).unflatten(1, (self.groups, -1))

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        if self.interleaved:
            return self.canonical().dequantize(start, end)
        mean, spread = self._terms(start, end)
        signs = self._bits(self.signs, start, end)
        return torch.where(signs, mean + spread, mean - spread) * self.column_bits(self.live)

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {"signs": rows * columns, "scales": 16 * self.scales.numel(), "column marks": columns}
        return self._ledger(bits, unused_bits(rows + 1, columns, 1))


class PartlyBinary(Binary):
    """Binary, and marks [m, ceil(n / 32)] of the salient weights; these lie in `codes`, row after row.

    `codes` is one stream of 7-bit codes, `starts` int32 [m] each row's first place in it. `grid_scales` float16 [m] and
    `grid_zeros` uint8 [m] are the rows' 8-bit grids: w_hat = scale * (code - zero).

    Interleaved, `codes` are whole bytes in the order of tiles, columns and rows, so that those of a column's 16 rows
    follow each other, and `starts` [tiles, groups] says where each group's begin.
    """

    form = "partly_binary"
    by_rows = ("signs", "marks")

    def __init__(self, out_features: int, in_features: int, group: int, salient: int) -> None:
        super().__init__(out_features, in_features, group)
        self.salient = salient
        self.register_buffer("marks", torch.empty_like(self.signs))
        self.register_buffer("codes", torch.empty(words_per_row(salient, LOW_BITS), dtype=torch.int32))
        self.register_buffer("starts", torch.empty(out_features, dtype=torch.int32))
        self.register_buffer("grid_scales", torch.empty(out_features, dtype=torch.float16))
        self.register_buffer("grid_zeros", torch.empty(out_features, dtype=torch.uint8))

    @classmethod
    def pack(
        cls,
        signs: torch.Tensor,
        scales: torch.Tensor,
        live: torch.Tensor,
        group: int,
        *,
        marks: torch.Tensor,
        codes: torch.Tensor,
        grid_scales: torch.Tensor,
        grid_zeros: torch.Tensor,
    ) -> PartlyBinary:
        """Also from `marks` bool [m, n] (salient), `codes` uint8 [m, n] (read there), and grids [m]."""
        with torch.device("meta"):
            weight = cls(*signs.shape, group, int(marks.sum()))
        weight._set(torch.where(marks, codes >> LOW_BITS > 0, signs), scales, live)
        weight.marks = _plane(marks)
        weight.codes = pack((codes[marks] & (2**LOW_BITS - 1))[None], LOW_BITS)[0]
        weight.starts = cls._starts(marks)
        weight.grid_scales = grid_scales.to(torch.float16)
        weight.grid_zeros = grid_zeros.to(torch.uint8)
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        if self.interleaved:
            return self.canonical().dequantize(start, end)
        end = self.out_features if end is None else end
        weight = super().dequantize(start, end)
        if start == end or not self.salient:
            return weight
        marks = self._bits(self.marks, start, end)
        first = int(self.starts[start])
        last = self.salient if end == self.out_features else int(self.starts[end])
        # 32 codes take whole words: unpacking begins at the block of 32 in which the first one lies.
        block = first // WORD
        words = self.codes[block * LOW_BITS : words_per_row(last, LOW_BITS)]
        low = unpack(words[None], LOW_BITS, last - block * WORD)[0, first - block * WORD :]
        codes = low.float() + 2**LOW_BITS * self._bits(self.signs, start, end)[marks]
        rows = marks.nonzero()[:, 0] + start
        weight[marks] = self.grid_scales[rows].float() * (codes - self.grid_zeros[rows].float())
        return weight * self.column_bits(self.live)

    @torch.inference_mode(False)
    @torch.no_grad()
    def interleave(self) -> None:
        signs, marks = (self._bits(plane, 0, None) for plane in (self.signs, self.marks))
        codes = torch.zeros_like(marks, dtype=torch.uint8)
        low = unpack(self.codes[None], LOW_BITS, self.salient)[0]
        codes[marks] = low | signs[marks].to(torch.uint8) << LOW_BITS
        super().interleave()
        marks = interleaved(marks)
        counts = marks.sum(-1, dtype=torch.int32)
        before = (counts.flatten().cumsum(0, dtype=torch.int32) - counts.flatten()).view_as(counts)
        self.codes = torch.nn.functional.pad(interleaved(codes)[marks], (0, ROWS))  # a column's are loaded as if all 16
        self.starts = before[:, :: self.group].contiguous()
        for name in ("grid_scales", "grid_zeros"):
            setattr(self, name, interleaved(getattr(self, name)[:, None]))

    def restore(self) -> None:
        super().restore()
        marks = self._bits(self.marks, 0, None)
        codes = torch.zeros((len(self.starts), self.in_features, ROWS), dtype=torch.uint8)
        codes[interleaved(marks)] = self.codes[: self.salient]
        low = restored(codes, self.out_features)[marks] & (2**LOW_BITS - 1)
        self.codes, self.starts = pack(low[None], LOW_BITS)[0], self._starts(marks)
        for name in ("grid_scales", "grid_zeros"):
            setattr(self, name, restored(getattr(self, name), self.out_features)[:, 0])

    @staticmethod
    def _starts(marks: torch.Tensor) -> torch.Tensor:
        """Where the codes of each row begin, by its `marks` bool [m, n]: int32 [m]."""
        in_row = marks.sum(1)
        return (in_row.cumsum(0) - in_row).to(torch.int32)

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {
            "signs": rows * columns - self.salient,
            "codes": HIGH_BITS * self.salient,
            "marks": rows * columns,
            "scales": 16 * self.scales.numel() + 16 * rows,
            "zeros": 8 * rows,
            "row starts": 32 * rows,
            "column marks": columns,
        }
        return self._ledger(bits, unused_bits(2 * rows + 1, columns, 1) + unused_bits(1, self.salient, LOW_BITS))


class ResidualBinary(Binary):
    """Binary with four terms: scales [m, groups, 8], marks [m, ceil(n / 32)], and salient columns int32 [ceil(n / 32)].

    Outside of salient columns the mark says which of the first two terms holds. In salient columns the weight is the
    third term with the sign, plus the fourth with the mark as its sign.
    """

    form = "residual_binary"
    by_rows = ("signs", "marks")
    terms = RESIDUAL_TERMS

    def __init__(self, out_features: int, in_features: int, group: int) -> None:
        super().__init__(out_features, in_features, group)
        self.register_buffer("marks", torch.empty_like(self.signs))
        self.register_buffer("salient", torch.empty_like(self.live))

    @classmethod
    def pack(
        cls,
        signs: torch.Tensor,
        scales: torch.Tensor,
        live: torch.Tensor,
        group: int,
        *,
        marks: torch.Tensor,
        salient: torch.Tensor,
    ) -> ResidualBinary:
        """Also from `marks` bool [m, n] and `salient` bool [n]; `scales` is [m, groups, 8]."""
        with torch.device("meta"):
            weight = cls(*signs.shape, group)
        weight._set(signs, scales, live)
        weight.marks = _plane(marks)
        weight.salient = _plane(salient[None])[0]
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        if self.interleaved:
            return self.canonical().dequantize(start, end)
        terms = self._terms(start, end)
        signs, marks = (self._bits(plane, start, end) for plane in (self.signs, self.marks))

        def term(number: int, positive: torch.Tensor) -> torch.Tensor:
            mean, spread = terms[2 * number : 2 * number + 2]
            return torch.where(positive, mean + spread, mean - spread)

        level = torch.where(marks, term(1, signs), term(0, signs))
        weight = torch.where(self.column_bits(self.salient), term(2, signs) + term(3, marks), level)
        return weight * self.column_bits(self.live)

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        twice = rows * int(self.column_bits(self.salient).sum())
        bits = {
            "signs": rows * columns + twice,
            "marks": rows * columns - twice,
            "scales": 16 * self.scales.numel(),
            "column marks": 2 * columns,
        }
        return self._ledger(bits, unused_bits(2 * rows + 2, columns, 1))
