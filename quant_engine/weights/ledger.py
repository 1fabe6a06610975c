"""The ledger of stored bits: what a low-bit weight really takes, all side data counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

PAYLOAD = ("codes", "signs", "planes")
"""The purposes that papers count when they name a width."""


@dataclass(frozen=True)
class Ledger:
    """Bits stored for `weights` weights, by what they are for (codes, scales, zeros, order, padding …)."""

    weights: int
    bits: dict[str, int] = field(default_factory=dict)

    @property
    def total_bits(self) -> int:
        return sum(self.bits.values())

    @property
    def bits_per_weight(self) -> float:
        return self.total_bits / self.weights

    @property
    def headline_bits(self) -> float:
        """Bits per weight as papers count them: codes and signs, no side data. To be named so wherever it is shown."""
        return sum(self.bits.get(purpose, 0) for purpose in PAYLOAD) / self.weights

    @property
    def bytes(self) -> int:
        return self.total_bits // 8

    @staticmethod
    def sum(ledgers: Iterable[Ledger]) -> Ledger:
        """The ledger of several weights together."""
        weights, bits = 0, {}
        for ledger in ledgers:
            weights += ledger.weights
            for name, count in ledger.bits.items():
                bits[name] = bits.get(name, 0) + count
        return Ledger(weights, bits)
