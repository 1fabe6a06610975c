"""The storage forms by name. To add one: write its module, and name it in FORMS."""

from __future__ import annotations

from typing import Any

from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary
from quant_engine.weights.codebook import Codebook, Fp4Codebook
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.gguf_blocks import GgufBlocks
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.half import Half
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.mixed_width import MixedWidth
from quant_engine.weights.rotated import RotatedInt
from quant_engine.weights.rounded_inputs import RoundedInputs
from quant_engine.weights.scaled import Float8, ScaledInt

FORMS: dict[str, type[StoredWeight]] = {
    form.form: form for form in (
        GroupedInt, IntActivations, Codebook, LowRank, Binary, PartlyBinary, ResidualBinary, DualBinary, MixedWidth,
        RotatedInt, Half, GgufBlocks, ScaledInt, Float8, Fp4Codebook, RoundedInputs,
    )
}  # fmt: skip


def empty_weight(form: str, **config: Any) -> StoredWeight:
    """A weight with unset buffers, to be filled from a checkpoint that says this of it (`StoredWeight.config`).

    Raises ValueError for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"unknown storage form {form!r}; this version knows {', '.join(FORMS)}")
    if "base" in config:
        config["base"] = empty_weight(**config["base"])
    return FORMS[form].empty(**config)
