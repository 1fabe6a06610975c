"""A low-rank adapter beside a frozen low-bit base: what LoRA fine-tuning leaves.

    w_hat = base + scale * B A          A [rank, in_features], B [out_features, rank], both float16

The base is any other storage form, with its own buffers; its weights stay in few bits, and the product with the
adapter is added to the product with the base. Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.ledger import Ledger

ADAPTER_BITS = 16


class LowRank(StoredWeight):
    """`base` with the factors `a` [rank, in_features] and `b` [out_features, rank] of its change."""

    form = "low_rank"

    def __init__(self, base: StoredWeight, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__(base.out_features, base.in_features)
        if a.shape != (len(a), base.in_features) or b.shape != (base.out_features, len(a)):
            raise ValueError(
                f"factors {tuple(a.shape)} and {tuple(b.shape)} don't fit a weight "
                f"[{base.out_features}, {base.in_features}]"
            )
        self.base, self.scale, self.rank = base, scale, len(a)
        self.register_buffer("a", a.to(torch.float16).contiguous())
        self.register_buffer("b", b.to(torch.float16).contiguous())

    def config(self) -> dict[str, Any]:
        base = {"form": self.base.form, **self.base.config()}
        return {"base": base, "rank": self.rank, "scale": self.scale}

    @classmethod
    def empty(cls, base: StoredWeight, rank: int, scale: float) -> LowRank:
        return cls(base, torch.empty(rank, base.in_features), torch.empty(base.out_features, rank), scale)

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        return self.base.dequantize(start, end) + self.scale * (self.b[start:end].float() @ self.a.float())

    def ledger(self) -> Ledger:
        base = self.base.ledger()
        adapter = ADAPTER_BITS * (self.a.numel() + self.b.numel())
        return Ledger(base.weights, {**base.bits, "adapter": adapter})
