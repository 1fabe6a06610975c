"""Weights as they are about to be made: a resolved spec with all that it names looked up once. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quant_engine.formats.published import Published
from quant_engine.methods.contract import Method, Options
from quant_engine.models.catalog import ModelCard
from quant_engine.models.context import context_length
from quant_engine.spec import UserError, WeightSpec, quoted

PARTS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""Linears of a block that have a name together."""
KINDS = tuple(kind for part in PARTS.values() for kind in part)
_BLOCK = re.compile(r"block-(\d{1,4})")


@dataclass(frozen=True)
class WeightPlan:
    """A resolved `spec`, the card of its model, and its method with validated options (None for FP16 and for weights
    that are read from a `published` checkpoint)."""

    spec: WeightSpec
    card: ModelCard
    method: Method | None
    options: Options | None
    published: Published | None = None

    def quantizes(self, block: int, linear: str) -> bool:
        """Whether a linear of a block ("self_attn.q_proj") is quantized: one of the kinds and of the blocks that the
        spec names, where it names any."""
        names = self.spec.only
        kinds = {kind for name in names for kind in PARTS.get(name, (name,)) if kind in KINDS}
        blocks = {int(match[1]) for name in names if (match := _BLOCK.fullmatch(name))}
        return (not kinds or linear.rpartition(".")[2] in kinds) and (not blocks or block in blocks)

    @property
    def fine_tunes(self) -> bool:
        return self.method is not None and self.method.fine_tunes

    def context_length(self) -> int | None:
        """The tokens of the longest text that the model reads. Raises UserError as `models.context` does."""
        return self.published.context_length() if self.published else context_length(self.card, self.spec.revision)


def check_only(only: Sequence[str], method: Method | None, blocks: int | None) -> None:
    """Raises UserError for a part that no model has or, where its number is known, this one; and for a method that
    changes a block or a model as a whole."""
    if only and method is None:
        raise UserError("fp16 quantizes nothing: leave out the parts, or choose a method.")
    if only and (method.prepare or method.train or method.fine_tunes):
        raise UserError(f"{method.card.title} changes blocks as a whole: to quantize a part alone choose RTN or GPTQ.")
    for name in only:
        match = _BLOCK.fullmatch(name)
        if not match and name not in PARTS and name not in KINDS:
            known = ", ".join([*PARTS, *KINDS])
            raise UserError(f"There is no part {quoted(name)} to quantize: choose from {known}, block-0, block-1, …")
        if match and blocks is not None and int(match[1]) >= blocks:
            raise UserError(f"There is no {name}: the last block of this model is block-{blocks - 1}.")
