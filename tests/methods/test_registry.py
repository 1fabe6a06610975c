import subprocess
import sys

import pytest

from quant_engine.methods import METHODS, resolve_setting
from quant_engine.spec import QuantSetting, UserError


def test_describing_methods_tasks_and_models_loads_no_torch():
    code = (
        "import sys; import quant_engine.methods, quant_engine.evaluate, quant_engine.models.catalog, "
        "quant_engine.runs.resolve, quant_engine.runs.folder; "
        "print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_card_is_filled_in(method):
    card = method.card
    assert all([card.title, card.idea, card.formula, card.stored, card.reference, card.url.startswith("https://")])
    assert card.bits
    assert all(field.description for field in method.Options.model_fields.values())


def test_a_resolved_setting_spells_out_all_options_and_stays_the_same():
    resolved = resolve_setting(QuantSetting(method="GPTQ", w_bits=3, options={"act_order": True}))
    assert resolved.options["act_order"] is True
    assert resolved.options["groups"] == "dynamic"
    assert resolve_setting(resolved) == resolved


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"method": "quantum", "w_bits": 4}, "There is no method 'quantum'"),
        ({"method": "gptq", "w_bits": 3.5}, "GPTQ is defined for 1, 2"),
        ({"method": "gptq", "w_bits": 4, "a_bits": 8}, "leaves activations at 16 bits"),
        ({"method": "rtn", "w_bits": 4, "options": {"act_order": 1}}, "RTN has no option 'act_order'"),
        ({"method": "gptq", "w_bits": 4, "options": {"groups": 7}}, "GPTQ option groups"),
        ({"group_size": 64}, "FP16 is the unquantized model"),
    ],
)
def test_what_is_not_defined_is_refused_in_a_sentence(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_setting(QuantSetting(**setting))
