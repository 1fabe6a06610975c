"""What a run takes of memory and disk, before it is started."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.methods import METHODS
from quant_engine.models.catalog import model_card
from quant_engine.models.shapes import Shape, shape_of
from quant_engine.spec import QuantSetting, RunSpec


@dataclass(frozen=True)
class Needs:
    """Bytes; None for what is not known. `memory` is the peak of the process that does a run, `disk` what it stores."""

    memory: float | None
    disk: float | None


def needs(spec: RunSpec) -> Needs:
    shape = shape_of(model_card(spec.weights.model))
    if shape is None:
        return Needs(None, None)
    return Needs(shape.quantized * 4.0, weight_bytes(shape, spec.weights.setting))


def stored_bits(shape: Shape, setting: QuantSetting) -> float:
    """Bits that a setting stores for each quantized weight of a model, with all side data, as its method says."""
    if setting.method not in METHODS:
        return 16.0
    method = METHODS[setting.method]
    options = method.options(setting)
    total = sum(rows * columns * method.stored_bits(rows, columns, setting, options) for rows, columns in shape.linears)
    return total * shape.layers / shape.quantized


def weight_bytes(shape: Shape, setting: QuantSetting) -> float:
    """Bytes of all weights, those that no method quantizes in 16 bits."""
    return shape.quantized * stored_bits(shape, setting) / 8 + shape.unquantized * 2
