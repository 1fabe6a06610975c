"""What quantizing a linear cost: errors, stored bits, and the weights' distribution before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods.contract import Statistics
from quant_engine.results import LayerRecord
from quant_engine.weights.packing import AT_ONCE, parts

HISTOGRAM_PARTS = 81
HISTOGRAM_REACH = 4.5
"""How far histograms of weights reach, in root mean squares of the weights."""


def layer_record(
    block: int, name: str, quantized: QuantLinear, seconds: float, losses: Mapping[str, Any]
) -> LayerRecord:
    """The record of linear `name` of block `block`, stored as `quantized`, with its `losses` as far as they are
    measured."""
    ledger = quantized.weight.ledger()
    return LayerRecord(
        block=block,
        linear=name,
        out_features=quantized.out_features,
        in_features=quantized.in_features,
        stored_bits=ledger.bits_per_weight,
        headline_bits=ledger.headline_bits,
        seconds=seconds,
        **losses,
    )


def losses_of(layer: nn.Linear, quantized: QuantLinear, statistics: Statistics) -> dict[str, Any]:
    """What a linear, dense as `layer`, lost as `quantized`: those fields of its LayerRecord. The output error is by the
    Hessian, where there is one; else on single inputs."""
    weight, change = layer.weight, quantized.weight.dequantize().float()
    norm = _squares(weight)
    reach = HISTOGRAM_REACH * (norm / weight.numel()).sqrt().item() or 1.0
    counts = histogram(weight, reach), histogram(change, reach)
    for part in parts(*weight.shape):
        torch.sub(weight[part].float(), change[part], out=change[part])
    weight_error = _share(_squares(change), norm)
    if statistics.hessian is None:
        error = sampled_output_error(layer, quantized, statistics.inputs)
    else:
        error = output_error(weight.float(), change, statistics.hessian)
    return {
        "weight_error": weight_error,
        "output_error": error,
        "weights_reach": reach,
        "weights_before": counts[0],
        "weights_after": counts[1],
    }


def histogram(weight: torch.Tensor, reach: float) -> list[int]:
    """How many weights lie in each of HISTOGRAM_PARTS equal parts of [-reach, reach]; those beyond in the outermost."""
    counts = torch.zeros(HISTOGRAM_PARTS, dtype=torch.int64, device=weight.device)
    end = torch.tensor(reach, dtype=torch.float32).item()
    for some in weight.flatten().split(AT_ONCE):
        # The number of the part, in the order of torch.histc's own operations, which takes four times the work.
        numbers = some.float().clamp(-end, end).add_(end).mul_(HISTOGRAM_PARTS).div_(2 * end)
        numbers.clamp_(max=HISTOGRAM_PARTS - 1).nan_to_num_(nan=HISTOGRAM_PARTS)  # what is no number is not counted
        counts += torch.bincount(numbers.to(torch.uint8), minlength=HISTOGRAM_PARTS + 1)[:-1]
    return counts.tolist()


def _squares(matrix: torch.Tensor) -> torch.Tensor:
    """The sum of squares."""
    return sum(matrix[part].float().square().sum() for part in parts(*matrix.shape))


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
