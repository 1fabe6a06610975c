"""A stored weight whose layer rounds its inputs first: how other programs' W8A8 checkpoints compute.

    int8        x_hat = s * clip(round(x / s), -128, 127)         s = max |x_t| / 127.5
    float8      x_hat = s * e4m3(clip(x / s, -448, 448))          s = max |x_t| / 448
    llm_int8    x_hat = s * round(float16(x) / s)    s = max |x_t| / 127; what is 6 or larger stays, outside of the max

The scale s is found for each token t as it comes, or is stored, one for all (`static`). The first two are those of
compressed-tensors, the third is LLM.int8() (Dettmers et al., arXiv 2208.07339), which keeps a whole column for all
tokens where bitsandbytes reads several at once; here a token's inputs do not depend on the tokens beside it.
"""

from __future__ import annotations

from typing import Any

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.ledger import Ledger

HIGHEST_FLOAT8 = 448.0
HALF_RANGE = 127.5
OUTLIER = 6.0
SMALLEST = torch.finfo(torch.float32).tiny


def round_int8(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """`x` [rows, n] float32 on its int8 grid; the scale of each row is found where none is given."""
    scale = _largest(x) / HALF_RANGE if scale is None else scale
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def round_float8(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    scale = _largest(x) / HIGHEST_FLOAT8 if scale is None else scale
    return (x / scale).clamp_(-HIGHEST_FLOAT8, HIGHEST_FLOAT8).to(torch.float8_e4m3fn).float().mul_(scale)


def round_llm_int8(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    half = x.half().float()  # what bitsandbytes rounds
    outliers = half.abs() >= OUTLIER
    largest = _largest(half.masked_fill(outliers, 0))
    return torch.where(outliers, x, (half * (127 / largest)).round_().mul_(largest / 127))


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)


GRIDS = {"int8": round_int8, "float8": round_float8, "llm_int8": round_llm_int8}


class RoundedInputs(StoredWeight):
    """`base` with the grid of its inputs, and the scale of that, float32 [1], where it is stored."""

    form = "rounded_inputs"

    def __init__(self, base: StoredWeight, grid: str, scale: torch.Tensor | None = None) -> None:
        super().__init__(base.out_features, base.in_features)
        self.base, self.grid = base, grid
        self.register_buffer("scale", None if scale is None else scale.float().reshape(1))

    def config(self) -> dict[str, Any]:
        base = {"form": self.base.form, **self.base.config()}
        return {"base": base, "grid": self.grid, "static": self.scale is not None}

    @classmethod
    def empty(cls, base: StoredWeight, grid: str, static: bool) -> RoundedInputs:
        return cls(base, grid, torch.empty(1) if static else None)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, in_features] on the grid, in its type."""
        return GRIDS[self.grid](x.float(), self.scale).to(x.dtype)

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        return self.base.dequantize(start, end)

    def ledger(self) -> Ledger:
        base = self.base.ledger()
        return base if self.scale is None else Ledger(base.weights, {**base.bits, "input scale": 32})
