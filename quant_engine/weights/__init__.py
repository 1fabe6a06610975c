"""How low-bit weights are stored: bit packing, one module per storage form, the ledger of stored bits.

To add a form: write its module, and name it in FORMS.
"""

from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary
from quant_engine.weights.codebook import Codebook
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.mixed_width import MixedWidth
from quant_engine.weights.rotated import RotatedInt

FORMS: dict[str, type[StoredWeight]] = {
    form.form: form
    for form in (
        GroupedInt,
        IntActivations,
        Codebook,
        LowRank,
        Binary,
        PartlyBinary,
        ResidualBinary,
        DualBinary,
        MixedWidth,
        RotatedInt,
    )
}

__all__ = [
    "FORMS",
    "Binary",
    "Codebook",
    "DualBinary",
    "GroupedInt",
    "IntActivations",
    "Ledger",
    "LowRank",
    "MixedWidth",
    "PartlyBinary",
    "ResidualBinary",
    "RotatedInt",
    "StoredWeight",
]
