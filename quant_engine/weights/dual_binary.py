"""Dual binarization: a weight in two planes of bits, each with its own scale per group of consecutive columns of a row.

    w_hat = a1 * b1 + a2 * b2          b1, b2 = 0 or 1          |a1| >= |a2|, of opposite sign

Four levels, 0, a1, a2 and a1 + a2, of which a weight takes the nearest. With a1 = 2s and a2 = -s they are the 2-bit
grid {-s, 0, s, 2s}; a1 < 0 is its mirror image. Bits that are 0 cost no addition.
"""

from __future__ import annotations

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import in_groups
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, unpack, unused_bits, words_per_row


def planes(
    weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bits b1 and b2 of `weight` [m, n], bool [m, groups, group], for scales a1 and a2 [m, groups].

    b1 = [w >= (a1 + a2) / 2], b2 = [a1 b1 + a2 / 2 >= w], both for w and scales times the sign of a1. A short last
    group is filled up with zeros.
    """
    sign = torch.where(first < 0, -1.0, 1.0)[..., None]
    first, second = first[..., None] * sign, second[..., None] * sign
    values = in_groups(weight, group).to(first.dtype) * sign
    b1 = values >= (first + second) / 2
    b2 = first * b1 + second / 2 >= values
    return b1, b2


def compose(b1: torch.Tensor, b2: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """a1 b1 + a2 b2 as [m, groups * group]; differentiable in the scales, with the bits as they are."""
    return (first[..., None] * b1 + second[..., None] * b2).flatten(1)


class DualBinary(StoredWeight):
    """planes int32 words [2, m, ceil(n / 32)], scales float16 [2, m, groups]."""

    form = "dual_binary"
    by_rows = ("planes", "scales")

    def __init__(self, out_features: int, in_features: int, group: int) -> None:
        super().__init__(out_features, in_features)
        self.group = min(group, in_features)
        self.groups = -(-in_features // self.group)
        words = words_per_row(in_features, 1)
        self.register_buffer("planes", torch.empty((2, out_features, words), dtype=torch.int32))
        self.register_buffer("scales", torch.empty((2, out_features, self.groups), dtype=torch.float16))

    @classmethod
    def pack(cls, weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor, group: int) -> DualBinary:
        """`weight` [m, n] at its nearest levels, for scales [m, groups], which are rounded to 16 bits before."""
        with torch.device("meta"):
            stored = cls(*weight.shape, group)
        stored.scales = torch.stack([first, second]).to(torch.float16)
        bits = planes(weight, *stored.scales.float(), stored.group)
        stored.planes = torch.stack([pack(plane.flatten(1)[:, : weight.shape[1]], 1) for plane in bits])
        return stored

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        if self.interleaved:
            return self.canonical().dequantize(start, end)
        b1, b2 = (in_groups(unpack(plane[start:end], 1, self.in_features).float(), self.group) for plane in self.planes)
        first, second = self.scales[:, start:end].float()
        return compose(b1, b2, first, second)[:, : self.in_features]

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {"planes": 2 * rows * columns, "scales": 16 * self.scales.numel()}
        return self._ledger(bits, unused_bits(2 * rows, columns, 1))
