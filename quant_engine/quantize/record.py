"""What quantizing a linear cost: errors, stored bits, and the weights' distribution before and after."""

from __future__ import annotations

import torch
from torch import nn

from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods.contract import Statistics
from quant_engine.results import LayerRecord

HISTOGRAM_PARTS = 81
HISTOGRAM_REACH = 4.5
"""How far histograms of weights reach, in root mean squares of the weights."""


def layer_record(
    block: int, layer: nn.Linear, quantized: QuantLinear, statistics: Statistics, *, a_bits: int, seconds: float
) -> LayerRecord:
    """The record of linear `statistics.linear` of block `block`, dense as `layer` and stored as `quantized`.

    The output error is by the Hessian, or on single inputs where activations are rounded too (`a_bits` below 16).
    """
    weight, after = layer.weight.float(), quantized.weight.dequantize().float()
    change = weight - after
    reach = HISTOGRAM_REACH * weight.square().mean().sqrt().item() or 1.0
    ledger = quantized.weight.ledger()
    return LayerRecord(
        block=block,
        linear=statistics.linear,
        out_features=quantized.out_features,
        in_features=quantized.in_features,
        stored_bits=ledger.bits_per_weight,
        headline_bits=ledger.headline_bits,
        weight_error=_share(change.square().sum(), weight.square().sum()),
        output_error=sampled_output_error(layer, quantized, statistics.inputs)
        if a_bits < 16
        else output_error(weight, change, statistics.hessian),
        seconds=seconds,
        weights_reach=reach,
        weights_before=histogram(weight, reach),
        weights_after=histogram(after, reach),
    )


def histogram(weight: torch.Tensor, reach: float) -> list[int]:
    """How many weights lie in each of HISTOGRAM_PARTS equal parts of [-reach, reach]; those beyond in the outermost."""
    counts = torch.zeros(HISTOGRAM_PARTS, dtype=torch.int64, device=weight.device)
    for part in weight.flatten().split(1 << 24):  # counts in float32, which holds no more exactly
        counts += torch.histc(part.clamp(-reach, reach), HISTOGRAM_PARTS, -reach, reach).long()
    return counts.tolist()


def sampled_output_error(layer: nn.Module, quantized: QuantLinear, inputs: torch.Tensor) -> float:
    """||f(X) - f_q(X)||^2 / ||f(X)||^2 on single inputs X [tokens, in_features], for layers that round activations."""
    inputs = inputs.to(layer.weight.dtype)
    expected = layer(inputs).float()
    change = quantized(inputs).float() - expected
    before = expected.square().sum()
    return _share(change.square().sum(), before)


def output_error(weight: torch.Tensor, change: torch.Tensor, hessian: torch.Tensor) -> float:
    """||X (W - Q)^T||^2 / ||X W^T||^2, by the Hessian of X [in_features, in_features]."""
    before = ((weight @ hessian) * weight).sum()
    return _share(((change @ hessian) * change).sum(), before)


def _share(error: torch.Tensor, whole: torch.Tensor) -> float:
    """A relative error; 0 where there is nothing to lose, as of a linear that is all zero."""
    return (error / whole).item() if whole > 0 else 0.0
