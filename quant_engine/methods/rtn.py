"""RTN, round to nearest: every weight goes to the nearest point of its group's uniform grid. No data is used.

    lo = min(0, min w)   hi = max(0, max w)   delta = (hi - lo) / (2^b - 1)   z = -round(lo / delta)
    code = clip(round(w / delta) + z, 0, 2^b - 1)                             w_hat = delta * (code - z)

Equation 1 of arXiv 2404.14047, with the range rule of the GPTQ reference (zero is always inside the range, so z fits
in b bits). Scales are rounded to float16 before codes are computed: what is stored is what was rounded to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.spec import QuantSetting
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    from quant_engine.weights.grouped import GroupedInt

grouped = deferred("quant_engine.weights.grouped")


class RtnOptions(Options):
    symmetric: bool = Field(False, description="Grid centred on zero, so that no zero point is stored.")
    mse_clip: bool = Field(False, description="Shrink each group's range to the one with the least rounding error.")


def quantize(layer: Layer) -> GroupedInt:
    """The weight rounded to its grid; group by group, or a row at a time."""
    weight, bits, options = layer.weight, layer.bits, layer.options
    group = layer.setting.group_size or weight.shape[1]
    scales, zeros = grouped.grids(weight, bits, group, symmetric=options.symmetric, mse_clip=options.mse_clip)
    codes = grouped.round_to_grid(weight, scales, zeros, bits, group)
    return grouped.GroupedInt.pack(codes, scales, None if options.symmetric else zeros, bits, group)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: RtnOptions) -> float:
    """Bits per weight: codes, scales and zero points."""
    return grouped_bits(
        out_features, in_features, int(setting.w_bits), setting.group_size, zero_points=not options.symmetric
    )


def grouped_bits(
    out_features: int, in_features: int, bits: int, group: int | None, *, zero_points: bool = True
) -> float:
    """Bits per weight of codes in groups (None: one a row), with a 16-bit scale and a `bits`-bit zero point each."""
    groups = out_features * -(-in_features // (group or in_features))
    total = packed_bits(out_features, in_features, bits) + 16 * groups
    if zero_points:
        total += packed_bits(1, groups, bits)
    return total / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="rtn",
        title="RTN",
        idea="Divide each group of weights by a scale and round to the nearest integer. "
        "The baseline that every other method has to beat: instant, and blind to what the weights are used for.",
        formula=r"\hat w = \Delta\,\big(\mathrm{clip}(\lfloor w/\Delta\rceil + z,\ 0,\ 2^b-1) - z\big),\quad "
        r"\Delta = \frac{\max(w,0)-\min(w,0)}{2^b-1}",
        stored="b-bit codes; per group a 16-bit scale and a b-bit zero point",
        bits=(1, 2, 3, 4, 5, 6, 7, 8),
        grouped=True,
        calibrated=False,
        reference="Equation 1 of An empirical study of LLaMA3 quantization (2024)",
        url="https://arxiv.org/abs/2404.14047",
    ),
    Options=RtnOptions,
    quantize=quantize,
    stored_bits=stored_bits,
)
