"""Integer weights for integer activations: a product of two small integers, scaled by row and by token.

    w_hat = scale * code                 code from -(2^(b-1) - 1) to 2^(b-1) - 1, one scale for each row
    x_hat = delta_t * round(x / delta_t)       delta_t = max |x_t| / (2^(a-1) - 1) for each token, found as it comes

The codes are stored as grouped integers in the middle of their range. Nothing is stored of the activations but their
width; `quantized_output` says that the layer's outputs are rounded in the same way, a token at a time.
"""

from __future__ import annotations

import torch

from quant_engine.weights.grouped import SMALLEST_SCALE, GroupedInt
from quant_engine.weights.packing import pack, unpack

SMALLEST_MAXIMUM = 1e-5


def highest_code(bits: int) -> int:
    """The largest code of a symmetric grid of `bits` bits; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def quantize_tokens(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (whole numbers in float32) of `x` [..., n], and the scale of each token, float32 [..., 1]."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_MAXIMUM) / highest_code(bits)
    return torch.round(x / scale), scale


def quantize_rows(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (whole numbers in the type of `weight`) of `weight` [m, n], and a float16 scale for each row, [m, 1].

    Scales are rounded up to float16, so that no code leaves its range.
    """
    exact = weight.abs().amax(1, keepdim=True).clamp(min=SMALLEST_MAXIMUM) / highest_code(bits)
    scales = exact.to(torch.float16)
    up = torch.nextafter(scales, torch.full_like(scales, torch.inf))
    scales = torch.where(scales.to(exact.dtype) < exact, up, scales).clamp(min=SMALLEST_SCALE)
    return torch.round(weight / scales.to(weight.dtype)), scales


class IntActivations(GroupedInt):
    """Symmetric grouped integers with one group a row, whose layer also rounds its inputs to `a_bits`."""

    form = "int_activations"

    def __init__(self, out_features: int, in_features: int, bits: int, a_bits: int, quantized_output: bool) -> None:
        super().__init__(out_features, in_features, bits, in_features, symmetric=True, ordered=False)
        self.a_bits, self.quantized_output = a_bits, quantized_output

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scales: torch.Tensor, bits: int, a_bits: int, quantized_output: bool
    ) -> IntActivations:
        """From signed `codes` [m, n] and `scales` [m, 1]."""
        with torch.device("meta"):
            weight = cls(*codes.shape, bits, a_bits, quantized_output)
        weight.codes = pack(codes + 2 ** (bits - 1), bits)
        weight.scales = scales.to(torch.float16).contiguous()
        return weight

    @property
    def row_scales(self) -> torch.Tensor:
        """The scale of each row, float16 [m]."""
        return self.scales.flatten()[: self.out_features]

    def integers(self, start: int, end: int) -> torch.Tensor:
        """Rows `start` to `end` of the signed codes, int8 [end - start, in_features]."""
        codes = unpack(self.canonical().codes[start:end], self.bits, self.in_features)
        return (codes.to(torch.int16) - 2 ** (self.bits - 1)).to(torch.int8)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        if not self.quantized_output:
            return y
        codes, scale = quantize_tokens(y, self.a_bits)
        return (codes * scale).to(y.dtype)
