"""How large models are, and how many bits a setting of the study stores for each weight.

A measured run knows its stored bits from the ledger. The study prints nominal widths only, so for its rows they are
counted here: each method says what it stores, over the shapes of the model's linears.
"""

from __future__ import annotations

from leaderboard.store import method_called
from quant_engine.models.shapes import shapes
from quant_engine.runs.needs import stored_bits
from quant_engine.spec import QuantSetting


def counted_bits(model: str, method: str, w_bits: float, group_size: float | None) -> float | None:
    """Bits per weight that a setting stores with all side data, as its method says; None if unknown.

    `group_size` None or NaN means one group per row. Options are the method's defaults, which are the study's.
    """
    if w_bits == 16:
        return 16.0
    shape, engine = shapes().get(model), method_called(method)
    if shape is None or engine is None:
        return None
    per_row = group_size is None or group_size != group_size
    setting = QuantSetting(method=engine.card.name, w_bits=w_bits, group_size=None if per_row else int(group_size))
    return stored_bits(shape, setting)


def weight_bytes(model: str, stored_bits: float) -> float | None:
    """Bytes of all weights when those that can be quantized take `stored_bits` each; None for an unknown model."""
    shape = shapes().get(model)
    return None if shape is None else shape.quantized * stored_bits / 8 + shape.unquantized * 2
