"""Blocks as GGUF files have them: bytes that hold the codes of 32 or 256 neighbouring columns with their scales.

    kind     columns  bytes  w_hat
    q4_1     32       20     scale * code + minimum                      code of 4 bits; scale, minimum float16
    q5_1     32       24     the same with 5 bits
    iq4_nl   32       18     scale * LEVELS[code]
    q2_k     256      84     d * s * code - m * t                        for 16 columns each, s and t of 4 bits
    q3_k     256      110    d * (s - 32) * (code - 4)                   for 16, s of 6 bits
    q4_k     256      144    d * s * code - m * t                        for 32, s and t of 6 bits
    q5_k     256      176    the same with codes of 5 bits
    q6_k     256      210    d * s * (code - 32)                         for 16, s a signed byte

d and m are float16, one for each block. Where the bits of a code lie is said where it is read. GGUF's other types of
integers (q4_0, q5_0, q8_0) are grouped integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import parts

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Of iq4_nl."""
Decoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes float32 [..., groups, columns of a group]; scales, and what is added or None, [..., groups, 1]."""


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of each block, as float32 [..., 1]."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).float()


def _fields(values: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Of each byte of [..., k] the field at each shift: [..., shifts, k]."""
    return torch.stack([values >> shift & mask for shift in shifts], -2)


def bits_of_words(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The 32 bits that begin at byte `start`, the lowest first: [..., 32]."""
    return _fields(blocks[..., start : start + 4], tuple(range(8)), 1).transpose(-1, -2).flatten(-2)


def _q4_1(blocks: torch.Tensor) -> Decoded:
    codes = _fields(blocks[..., 4:20], (0, 4), 15).flatten(-2)
    return codes.float()[..., None, :], _half(blocks, 0)[..., None], _half(blocks, 2)[..., None]


def _q5_1(blocks: torch.Tensor) -> Decoded:
    codes = _fields(blocks[..., 8:24], (0, 4), 15).flatten(-2) | bits_of_words(blocks, 4) << 4
    return codes.float()[..., None, :], _half(blocks, 0)[..., None], _half(blocks, 2)[..., None]


def _iq4_nl(blocks: torch.Tensor) -> Decoded:
    codes = _fields(blocks[..., 2:18], (0, 4), 15).flatten(-2)
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=blocks.device)
    return levels[codes.int()][..., None, :], _half(blocks, 0)[..., None], None


def _q2_k(blocks: torch.Tensor) -> Decoded:
    scales = blocks[..., :16]
    # 32 bytes hold the codes of 128 columns, the first 32 in their lowest two bits.
    codes = _fields(blocks[..., 16:80].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3).unflatten(-1, (16, 16))
    scale = _half(blocks, 80) * (scales & 15).float()
    minimum = _half(blocks, 82) * (scales >> 4).float()
    return codes.float(), scale[..., None], -minimum[..., None]


def _q3_k(blocks: torch.Tensor) -> Decoded:
    high = _fields(blocks[..., :32], tuple(range(8)), 1).flatten(-2)
    low = _fields(blocks[..., 32:96].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    codes = (low | high << 2).unflatten(-1, (16, 16)).float() - 4
    # Twelve bytes hold sixteen scales: their lower four bits, then their upper two.
    lower = _fields(blocks[..., 96:104], (0, 4), 15).flatten(-2)
    upper = _fields(blocks[..., 104:108], (0, 2, 4, 6), 3).flatten(-2)
    scale = _half(blocks, 108) * ((lower | upper << 4).float() - 32)
    return codes, scale[..., None], None


def _six_bits(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minimums of six bits each, from bytes 4 to 15 of q4_k and q5_k."""
    first, second, third = blocks[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat([first & 63, third & 15 | first >> 2 & 48], -1)
    minimums = torch.cat([second & 63, third >> 4 | second >> 2 & 48], -1)
    return scales.float(), minimums.float()


def _k_with_minimums(blocks: torch.Tensor, codes: torch.Tensor) -> Decoded:
    scales, minimums = _six_bits(blocks)
    scale, minimum = _half(blocks, 0) * scales, _half(blocks, 2) * minimums
    return codes.float(), scale[..., None], -minimum[..., None]


def _q4_k(blocks: torch.Tensor) -> Decoded:
    return _k_with_minimums(blocks, _fields(blocks[..., 16:144].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3, -2))


def _q5_k(blocks: torch.Tensor) -> Decoded:
    low = _fields(blocks[..., 48:176].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3, -2)
    high = _fields(blocks[..., 16:48], tuple(range(8)), 1)
    return _k_with_minimums(blocks, low | high << 4)


def _q6_k(blocks: torch.Tensor) -> Decoded:
    low = _fields(blocks[..., :128].unflatten(-1, (2, 64)), (0, 4), 15).flatten(-3)
    high = _fields(blocks[..., 128:192].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    codes = (low | high << 4).unflatten(-1, (16, 16)).float() - 32
    scale = _half(blocks, 208) * blocks[..., 192:208].contiguous().view(torch.int8).float()
    return codes, scale[..., None], None


class Kind(NamedTuple):
    """What a kind's blocks hold. The bits are those of a whole block."""

    columns: int
    bytes: int
    bits: int
    scale_bits: int
    minimum_bits: int
    decode: Callable[[torch.Tensor], Decoded]


KINDS = {
    "q4_1": Kind(32, 20, 4, 16, 16, _q4_1),
    "q5_1": Kind(32, 24, 5, 16, 16, _q5_1),
    "iq4_nl": Kind(32, 18, 4, 16, 0, _iq4_nl),
    "q2_k": Kind(256, 84, 2, 16 + 16 * 4, 16 + 16 * 4, _q2_k),
    "q3_k": Kind(256, 110, 3, 16 + 16 * 6, 0, _q3_k),
    "q4_k": Kind(256, 144, 4, 16 + 8 * 6, 16 + 8 * 6, _q4_k),
    "q5_k": Kind(256, 176, 5, 16 + 8 * 6, 16 + 8 * 6, _q5_k),
    "q6_k": Kind(256, 210, 6, 16 + 16 * 8, 0, _q6_k),
}


class GgufBlocks(StoredWeight):
    """blocks uint8 [m, n / columns of a block, bytes of a block]."""

    form = "gguf_blocks"

    def __init__(self, out_features: int, in_features: int, kind: str) -> None:
        super().__init__(out_features, in_features)
        self.kind = kind
        shape = out_features, in_features // KINDS[kind].columns, KINDS[kind].bytes
        self.register_buffer("blocks", torch.empty(shape, dtype=torch.uint8))

    @classmethod
    def pack(cls, blocks: torch.Tensor, kind: str) -> GgufBlocks:
        """From the bytes of a file, uint8 [m, blocks, bytes]."""
        with torch.device("meta"):
            weight = cls(len(blocks), blocks.shape[1] * KINDS[kind].columns, kind)
        weight.blocks = blocks
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        blocks = self.blocks[start:end]
        weight = torch.empty((len(blocks), self.in_features), device=blocks.device)
        for part in parts(*weight.shape):
            codes, scale, added = KINDS[self.kind].decode(blocks[part])
            values = codes.mul_(scale) if added is None else codes.mul_(scale).add_(added)
            weight[part] = values.flatten(1)
        return weight

    def ledger(self) -> Ledger:
        kind, blocks = KINDS[self.kind], self.blocks.shape[:2].numel()
        bits = {"codes": self.out_features * self.in_features * kind.bits, "scales": blocks * kind.scale_bits}
        return self._ledger(bits | ({"minimums": blocks * kind.minimum_bits} if kind.minimum_bits else {}), 0)
