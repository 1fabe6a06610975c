"""Half precision: weights as they are, in 16 bits, float16 or bfloat16."""

from __future__ import annotations

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.interleaving import ROWS
from quant_engine.weights.ledger import Ledger


class Half(StoredWeight):
    """Values [m, n] of the type that `dtype` names, "float16" or "bfloat16"."""

    form = "half"
    by_rows = ("values",)
    bits = 16

    def __init__(self, out_features: int, in_features: int, dtype: str) -> None:
        super().__init__(out_features, in_features)
        self.dtype = dtype
        self.group, self.groups = in_features, 1
        self.register_buffer("values", torch.empty((out_features, in_features), dtype=getattr(torch, dtype)))

    @classmethod
    def pack(cls, values: torch.Tensor) -> Half:
        """From `values` [m, n] in 16 bits, which are not copied."""
        with torch.device("meta"):
            weight = cls(*values.shape, dtype=str(values.dtype).removeprefix("torch."))
        weight.values = values
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        return self.canonical().values[start:end].float()

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers [...], float32 [..., in_features]."""
        if not self.interleaved:
            return self.values[indices].float()
        tile, row = indices // ROWS, indices % ROWS
        return self.values[tile, :, row].float()

    def ledger(self) -> Ledger:
        return self._ledger({"values": self.out_features * self.in_features * self.bits}, 0)
