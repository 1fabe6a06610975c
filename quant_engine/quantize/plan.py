"""Weights as they are about to be made: a resolved spec with all that it names looked up once. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.formats.published import Published
from quant_engine.methods.contract import Method, Options
from quant_engine.models.catalog import ModelCard
from quant_engine.models.context import context_length
from quant_engine.spec import WeightSpec


@dataclass(frozen=True)
class WeightPlan:
    """A resolved `spec`, the card of its model, and its method with validated options (None for FP16 and for weights
    that are read from a `published` checkpoint)."""

    spec: WeightSpec
    card: ModelCard
    method: Method | None
    options: Options | None
    published: Published | None = None

    @property
    def fine_tunes(self) -> bool:
        return self.method is not None and self.method.fine_tunes

    def context_length(self) -> int | None:
        """The tokens of the longest text that the model reads. Raises UserError as `models.context` does."""
        return self.published.context_length() if self.published else context_length(self.card, self.spec.revision)
