"""Blocks of GGUF files: codes of 32 or 256 neighbouring columns with their scales.

    kind     columns  bits  w_hat
    q4_1     32       4     d * code + m                             d and m float16, one for each block
    q5_1     32       5     d * code + m
    iq4_nl   32       4     d * LEVELS[code]
    q2_k     256      2     d * s * code - m * t                     s and t of 4 bits, for 16 columns each
    q3_k     256      3     d * (s - 32) * (code - 4)                s of 6 bits, for 16
    q4_k     256      4     d * s * code - m * t                     s and t of 6 bits, for 32
    q5_k     256      5     d * s * code - m * t                     s and t of 6 bits, for 32
    q6_k     256      6     d * (s - 128) * (code - 32)              s of 8 bits, for 16

A block's bytes are taken apart when a file is read: codes lie in packed words as those of any other form, and so do s
and t. These are the same bits, sorted by purpose. GGUF's other types of integers (q4_0, q5_0, q8_0) are grouped
integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.interleaving import ROWS, interleaved, restored
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, parts, unpack, unused_bits, words_per_row

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Of iq4_nl."""


class Parts(NamedTuple):
    """What the bytes of blocks hold: codes uint8 [..., columns], d and m float16 [..., 1], s and t uint8 [..., groups];
    None for what a kind has not."""

    codes: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor | None = None
    scale_codes: torch.Tensor | None = None
    minimum_codes: torch.Tensor | None = None


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of each block, [..., 1]."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16)


def _fields(values: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Of each byte of [..., k] the field at each shift: [..., shifts, k]."""
    return torch.stack([values >> shift & mask for shift in shifts], -2)


def bits_of_words(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The 32 bits that begin at byte `start`, the lowest first: [..., 32]."""
    return _fields(blocks[..., start : start + 4], tuple(range(8)), 1).transpose(-1, -2).flatten(-2)


def _q4_1(blocks: torch.Tensor) -> Parts:
    return Parts(_fields(blocks[..., 4:20], (0, 4), 15).flatten(-2), _half(blocks, 0), _half(blocks, 2))


def _q5_1(blocks: torch.Tensor) -> Parts:
    codes = _fields(blocks[..., 8:24], (0, 4), 15).flatten(-2) | bits_of_words(blocks, 4) << 4
    return Parts(codes, _half(blocks, 0), _half(blocks, 2))


def _iq4_nl(blocks: torch.Tensor) -> Parts:
    return Parts(_fields(blocks[..., 2:18], (0, 4), 15).flatten(-2), _half(blocks, 0))


def _q2_k(blocks: torch.Tensor) -> Parts:
    # 32 bytes hold the codes of 128 columns, the first 32 in their lowest two bits.
    codes = _fields(blocks[..., 16:80].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    return Parts(codes, _half(blocks, 80), _half(blocks, 82), blocks[..., :16] & 15, blocks[..., :16] >> 4)


def _q3_k(blocks: torch.Tensor) -> Parts:
    high = _fields(blocks[..., :32], tuple(range(8)), 1).flatten(-2)
    low = _fields(blocks[..., 32:96].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    # Twelve bytes hold sixteen scales: their lower four bits, then their upper two.
    lower = _fields(blocks[..., 96:104], (0, 4), 15).flatten(-2)
    upper = _fields(blocks[..., 104:108], (0, 2, 4, 6), 3).flatten(-2)
    return Parts(low | high << 2, _half(blocks, 108), None, lower | upper << 4)


def _six_bits(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minimums of six bits each, from bytes 4 to 15 of q4_k and q5_k."""
    first, second, third = blocks[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat([first & 63, third & 15 | first >> 2 & 48], -1)
    return scales, torch.cat([second & 63, third >> 4 | second >> 2 & 48], -1)


def _q4_k(blocks: torch.Tensor) -> Parts:
    codes = _fields(blocks[..., 16:144].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3)
    return Parts(codes, _half(blocks, 0), _half(blocks, 2), *_six_bits(blocks))


def _q5_k(blocks: torch.Tensor) -> Parts:
    low = _fields(blocks[..., 48:176].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3)
    high = _fields(blocks[..., 16:48], tuple(range(8)), 1).flatten(-2)
    return Parts(low | high << 4, _half(blocks, 0), _half(blocks, 2), *_six_bits(blocks))


def _q6_k(blocks: torch.Tensor) -> Parts:
    low = _fields(blocks[..., :128].unflatten(-1, (2, 64)), (0, 4), 15).flatten(-3)
    high = _fields(blocks[..., 128:192].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    return Parts(low | high << 4, _half(blocks, 208), None, blocks[..., 192:208] ^ 128)


class Kind(NamedTuple):
    """What a kind's blocks hold: their columns and bytes, the bits of a code, the columns of a group, the bits of its
    s and t (0: it has none), the code and the s that stand for 0, and whether there is something to add."""

    columns: int
    bytes: int
    bits: int
    group: int
    scale_bits: int
    middle: int
    scale_middle: int
    minimums: bool
    take_apart: Callable[[torch.Tensor], Parts]


KINDS = {
    "q4_1": Kind(32, 20, 4, 32, 0, 0, 0, True, _q4_1),
    "q5_1": Kind(32, 24, 5, 32, 0, 0, 0, True, _q5_1),
    "iq4_nl": Kind(32, 18, 4, 32, 0, 0, 0, False, _iq4_nl),
    "q2_k": Kind(256, 84, 2, 16, 4, 0, 0, True, _q2_k),
    "q3_k": Kind(256, 110, 3, 16, 6, 4, 32, False, _q3_k),
    "q4_k": Kind(256, 144, 4, 32, 6, 0, 0, True, _q4_k),
    "q5_k": Kind(256, 176, 5, 32, 6, 0, 0, True, _q5_k),
    "q6_k": Kind(256, 210, 6, 16, 8, 32, 128, False, _q6_k),
}


class GgufBlocks(StoredWeight):
    """Codes int32 words [m, n b / 32], scales and minimums float16 [m, blocks]; s and t packed as one row of codes."""

    form = "gguf_blocks"

    def __init__(self, out_features: int, in_features: int, kind: str) -> None:
        super().__init__(out_features, in_features)
        self.kind, self.about = kind, KINDS[kind]
        self.bits, self.group = self.about.bits, self.about.group
        self.blocks, self.groups = in_features // self.about.columns, in_features // self.group
        self.by_rows = ("codes", "scales", "minimums") if self.about.minimums else ("codes", "scales")
        words = words_per_row(out_features * self.groups, self.about.scale_bits) if self.about.scale_bits else 0
        halves = {"size": (out_features, self.blocks), "dtype": torch.float16}
        minimum_words = words if self.about.minimums else 0
        codes = torch.empty((out_features, words_per_row(in_features, self.bits)), dtype=torch.int32)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.empty(**halves))
        self.register_buffer("minimums", torch.empty(**halves) if self.about.minimums else None)
        self.register_buffer("scale_codes", torch.empty(words, dtype=torch.int32) if words else None)
        self.register_buffer("minimum_codes", torch.empty(words, dtype=torch.int32) if minimum_words else None)

    @classmethod
    def pack(cls, blocks: torch.Tensor, kind: str) -> GgufBlocks:
        """From the bytes of a file, uint8 [m, blocks, bytes]."""
        rows, about = len(blocks), KINDS[kind]
        with torch.device("meta"):
            weight = cls(rows, blocks.shape[1] * about.columns, kind)
        found = about.take_apart(blocks)
        weight.codes = pack(found.codes.flatten(1), about.bits)
        weight.scales = found.scales.flatten(1)
        weight.minimums = None if found.minimums is None else found.minimums.flatten(1)
        for name in ("scale_codes", "minimum_codes"):
            codes = getattr(found, name)
            setattr(weight, name, None if codes is None else pack(codes.reshape(1, -1), about.scale_bits)[0])
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        stored, about = self.canonical(), self.about
        words, rows = stored.codes[start:end], slice(start, self.out_features if end is None else end)
        scales = stored._of_groups(stored.scales, stored.scale_codes, about.scale_middle, rows)
        added = None
        if about.minimums:
            added = stored._of_groups(stored.minimums, stored.minimum_codes, 0, rows)
            added = -added if about.scale_bits else added
        levels = torch.tensor(LEVELS, dtype=torch.float32, device=words.device) if self.kind == "iq4_nl" else None
        weight = torch.empty((len(words), self.in_features), device=words.device)
        for part in parts(*weight.shape):
            codes = unpack(words[part], self.bits, self.in_features)
            values = codes.float().sub_(about.middle) if levels is None else levels[codes.int()]
            values = values.view(-1, self.groups, self.group).mul_(scales[part, :, None])
            weight[part] = (values if added is None else values.add_(added[part, :, None])).flatten(1)
        return weight

    def _of_groups(self, halves: torch.Tensor, codes: torch.Tensor | None, middle: int, rows: slice) -> torch.Tensor:
        """The scales or minimums of the groups of some rows, float32 [rows, groups]."""
        values = halves[rows].float()
        if codes is None:
            return values
        factors = self._unpacked(codes, rows).float().sub_(middle)
        return (factors.view(len(values), self.blocks, -1) * values[..., None]).flatten(1)

    def _unpacked(self, codes: torch.Tensor, rows: slice) -> torch.Tensor:
        """s or t of some rows, uint8 [rows, groups]. Those of a row are whole bytes."""
        size = self.groups * self.about.scale_bits // 8
        row_bytes = codes.view(torch.uint8)[rows.start * size : rows.stop * size]
        words = torch.nn.functional.pad(row_bytes, (0, -len(row_bytes) % 4)).view(1, -1).view(torch.int32)
        count = rows.stop - rows.start
        return unpack(words, self.about.scale_bits, count * self.groups).view(count, self.groups)

    def interleave(self) -> None:
        streams = {name: self._unpacked(codes, slice(0, self.out_features)) for name, codes in self._streams()}
        super().interleave()
        for name, codes in streams.items():
            setattr(self, name, pack(interleaved(codes).view(1, -1), self.about.scale_bits)[0])

    def restore(self) -> None:
        super().restore()
        tiles = -(-self.out_features // ROWS)
        for name, words in self._streams():
            codes = self._unpacked(words, slice(0, tiles * ROWS)).view(tiles, self.groups, ROWS)
            codes = restored(codes, self.out_features)
            setattr(self, name, pack(codes.view(1, -1), self.about.scale_bits)[0])

    def _streams(self) -> list[tuple[str, torch.Tensor]]:
        names = ("scale_codes", "minimum_codes")
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]

    def ledger(self) -> Ledger:
        about, rows = self.about, self.out_features
        side = rows * (self.blocks * 16 + self.groups * about.scale_bits)
        streams = len(self._streams())
        padding = streams * unused_bits(1, rows * self.groups, about.scale_bits) if streams else 0
        bits = {"codes": rows * self.in_features * about.bits, "scales": side}
        return self._ledger(bits | ({"minimums": side} if about.minimums else {}), padding)
