"""NormalFloat: every weight goes to the nearest of 2^b fixed levels that suit normally distributed weights.

For each block B of 64 consecutive weights, with levels q_i (quantiles of N(0, 1) scaled to [-1, 1], with an exact 0):

    scale = max |w| over B      code = argmin_i |w / scale - q_i|      w_hat = q_code * scale

Dettmers et al., QLoRA: efficient finetuning of quantized LLMs, arXiv 2305.14314, section 3, as the bitsandbytes
library does it. With double quantization (the default, as in QLoRA) the scales take 8 bits each. Paper and code differ
in the levels: the paper's formula (4) has no exact zero, and no code uses it, so neither do we
(weights/codebook.py has the construction). Levels for 2 and 3 bits follow the same construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.spec import QuantSetting
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    from quant_engine.weights.codebook import Codebook

codebook = deferred("quant_engine.weights.codebook")

BLOCKS_PER_STEP = 256
"""Blocks whose doubly quantized scales share a 32-bit step."""


class NormalFloatOptions(Options):
    block_size: int = Field(64, ge=8, le=4096, description="Consecutive weights that share a scale.")
    double_quantization: bool = Field(True, description="Store the scales in 8 bits instead of 32.")


def quantize(layer: Layer) -> Codebook:
    """The weight rounded to NormalFloat levels, block by block of the flattened matrix.

    Codes are chosen with the exact scales, before these are quantized in turn, as bitsandbytes does.
    """
    bits, options = layer.bits, layer.options
    codes, scales = codebook.round_to_levels(layer.weight, bits, options.block_size)
    return codebook.Codebook.pack(codes, scales, bits, options.block_size, double=options.double_quantization)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: NormalFloatOptions) -> float:
    """Bits per weight: codes, and a scale per block."""
    weights = out_features * in_features
    codes = packed_bits(out_features, in_features, int(setting.w_bits))
    return (codes + block_bits(weights, options, mean=True)) / weights


def block_bits(weights: int, options: NormalFloatOptions, *, mean: bool) -> int:
    """The bits of one number for each block of so many weights; twice quantized, perhaps from their 32-bit mean."""
    blocks = -(-weights // options.block_size)
    if not options.double_quantization:
        return 32 * blocks
    return 8 * blocks + 32 * -(-blocks // BLOCKS_PER_STEP) + (32 if mean else 0)


METHOD = Method(
    card=MethodCard(
        name="normal_float",
        title="NormalFloat",
        idea="Round to levels that lie dense near zero and sparse outside, as normally distributed weights do. "
        "Uses no data and is the base that QLoRA trains on.",
        formula=r"\hat w = s\,q_{i^*},\quad s = \max_{B}|w|,\quad i^* = \arg\min_i \big|w/s - q_i\big|,\quad "
        r"q_i \propto \Phi^{-1}(p_i)",
        stored="b-bit codes; per block of 64 an 8-bit scale, with a 32-bit step for every 256 of them",
        bits=(2, 3, 4),
        grouped=False,
        calibrated=False,
        reference="Dettmers et al., QLoRA: efficient finetuning of quantized LLMs",
        url="https://arxiv.org/abs/2305.14314",
    ),
    Options=NormalFloatOptions,
    quantize=quantize,
    stored_bits=stored_bits,
)
