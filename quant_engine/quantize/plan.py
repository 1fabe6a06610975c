"""Weights as they are about to be made: a resolved spec with all that it names looked up once. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.methods.contract import Method, Options
from quant_engine.models.catalog import ModelCard
from quant_engine.spec import WeightSpec


@dataclass(frozen=True)
class WeightPlan:
    """A resolved `spec`, the card of its model, and its method with validated options (None for FP16)."""

    spec: WeightSpec
    card: ModelCard
    method: Method | None
    options: Options | None

    @property
    def fine_tunes(self) -> bool:
        return self.method is not None and self.method.fine_tunes
