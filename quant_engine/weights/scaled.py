"""Weights of a few bits with scales of any floating type, as other programs store them.

    scaled_int    w_hat = scale * (code - zero)        grouped integers whose scales float16 can't hold
    float8        w_hat = scale * value(code)          values of torch.float8_e4m3fn: 1 + 4 + 3 bits, up to 448

A scale belongs to a group of columns of a row; what is stored once for several rows is repeated for each.
"""

from __future__ import annotations

import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt, in_groups
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, parts, unpack, unused_bits, words_per_row

FLOAT8_BITS = 8


class ScaledInt(GroupedInt):
    """Grouped integers with scales [m, groups] of the type that `scale_dtype` names."""

    form = "scaled_int"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        bits: int,
        group: int,
        symmetric: bool,
        ordered: bool,
        scale_dtype: str,
    ) -> None:
        super().__init__(out_features, in_features, bits, group, symmetric, ordered)
        self.scale_dtype = scale_dtype
        self.register_buffer("scales", self.scales.to(getattr(torch, scale_dtype)))

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bits: int,
        group: int,
        order: torch.Tensor | None = None,
    ) -> ScaledInt:
        """From `codes` [m, n], `scales` [m, groups] of any type and `zeros` [m, groups] (None: symmetric)."""
        rows, columns = codes.shape
        dtype = str(scales.dtype).removeprefix("torch.")
        with torch.device("meta"):
            weight = cls(rows, columns, bits, group, zeros is None, order is not None, dtype)
        weight.codes, weight.scales = pack(codes, bits), scales.contiguous()
        weight.zeros = None if zeros is None else pack(zeros.reshape(1, -1), bits)[0]
        weight.order = None if order is None else order.to(torch.int32)
        return weight

    def ledger(self) -> Ledger:
        ledger = super().ledger()
        scales = 8 * self.scales.element_size() * self.out_features * self.groups
        return Ledger(ledger.weights, ledger.bits | {"scales": scales})


class Float8(StoredWeight):
    """Codes int32 words [m, ceil(n / 4)], four to a word, and scales [m, groups] of the type `scale_dtype`."""

    form = "float8"
    by_rows = ("codes", "scales")
    bits = FLOAT8_BITS

    def __init__(self, out_features: int, in_features: int, group: int, scale_dtype: str) -> None:
        super().__init__(out_features, in_features)
        self.group, self.scale_dtype = min(group, in_features), scale_dtype
        self.groups = -(-in_features // self.group)
        words = words_per_row(in_features, FLOAT8_BITS)
        self.register_buffer("codes", torch.empty((out_features, words), dtype=torch.int32))
        self.register_buffer("scales", torch.empty((out_features, self.groups), dtype=getattr(torch, scale_dtype)))

    @classmethod
    def pack(cls, values: torch.Tensor, scales: torch.Tensor, group: int) -> Float8:
        """From `values` [m, n] float8_e4m3fn and `scales` [m, groups]."""
        rows, columns = values.shape
        with torch.device("meta"):
            weight = cls(rows, columns, group, str(scales.dtype).removeprefix("torch."))
        weight.codes, weight.scales = pack(values.view(torch.uint8), FLOAT8_BITS), scales.contiguous()
        return weight

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        stored = self.canonical()
        words, scales = stored.codes[start:end], stored.scales[start:end, :, None]
        weight = torch.empty((len(words), self.in_features), device=words.device)
        for part in parts(*weight.shape):
            values = unpack(words[part], FLOAT8_BITS, self.in_features).view(torch.float8_e4m3fn).float()
            weight[part] = in_groups(values, self.group).mul_(scales[part].float()).flatten(1)[:, : self.in_features]
        return weight

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        scales = 8 * self.scales.element_size() * rows * self.groups
        return self._ledger(
            {"codes": rows * columns * FLOAT8_BITS, "scales": scales}, unused_bits(rows, columns, FLOAT8_BITS)
        )
