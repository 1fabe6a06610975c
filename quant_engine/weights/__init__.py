"""How low-bit weights are stored: bit packing, one module per storage form, the ledger of stored bits.

To add a form: write its module, and name it in FORMS.
"""

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.ledger import Ledger

FORMS: dict[str, type[StoredWeight]] = {form.form: form for form in (GroupedInt,)}

__all__ = ["FORMS", "GroupedInt", "Ledger", "StoredWeight"]
