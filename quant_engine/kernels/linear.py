"""Layers that keep their weights stored, and compute from them: linears, and an embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quant_engine.kernels.matmul import matmul, matmul_back, stored_rows
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.half import Half
from quant_engine.weights.registry import empty_weight


class _FrozenProduct(torch.autograd.Function):
    """x W^T whose gradient goes to x alone. Neither pass keeps a dense weight: each makes its tiles anew."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
        ctx.weight = weight
        return matmul(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return matmul_back(gradient, ctx.weight), None


class StoredLinear(nn.Module):
    """y = x W^T + bias, with W [out_features, in_features] in a storage form and never dense as a whole."""

    def __init__(self, weight: StoredWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = weight.in_features, weight.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] to [..., out_features], in the type of `x`."""
        rows = x.reshape(-1, self.in_features)
        y = _FrozenProduct.apply(rows, self.weight) if rows.requires_grad else matmul(rows, self.weight)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return self.weight.finish(y).view(*x.shape[:-1], self.out_features)


class QuantLinear(StoredLinear):
    """A linear whose weights were quantized."""

    def config(self) -> dict[str, Any]:
        """What a checkpoint's JSON says of this layer; `from_config` makes an empty one of it."""
        return {"form": self.weight.form, "bias": self.bias is not None, **self.weight.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantLinear:
        """An unset layer whose buffers a checkpoint fills. Raises ValueError for an unknown form."""
        config = dict(config)
        bias = config.pop("bias")
        weight = empty_weight(**config)
        return cls(weight, torch.empty(weight.out_features) if bias else None)


class HalfLinear(StoredLinear):
    """A linear that was not quantized and whose files have 16 bits: they are held as they are, and computed with in
    float32."""

    weight: Half


class HalfEmbedding(nn.Module):
    """An embedding [num_embeddings, embedding_dim] held in the 16 bits that its files have, whose rows are float32."""

    def __init__(self, weight: Half) -> None:
        super().__init__()
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.out_features, weight.in_features

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows of `tokens` [...]: float32 [..., embedding_dim]."""
        return self.weight.rows(tokens)


class QuantEmbedding(nn.Module):
    """Rows of a stored weight [num_embeddings, embedding_dim] by their numbers, dequantized as they are asked for."""

    def __init__(self, weight: StoredWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = weight, dtype
        self.num_embeddings, self.embedding_dim = weight.out_features, weight.in_features

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` [...] to [..., embedding_dim] in `dtype`."""
        rows, index = ids.unique(return_inverse=True)
        found = torch.empty((len(rows), self.embedding_dim), dtype=self.dtype, device=ids.device)
        for number, row in enumerate(rows.tolist()):
            found[number] = stored_rows(self.weight, row, row + 1)[0]
        return found[index]
