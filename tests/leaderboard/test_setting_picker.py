"""The controls that name a setting: what a method allows, and a setting put into them."""

import pytest

from leaderboard.requests import FP16, setting
from leaderboard.ui import setting_picker
from quant_engine.methods import METHODS
from quant_engine.spec import QuantSetting


def test_a_choice_that_the_method_allows_stays_and_another_becomes_one_that_it_allows():
    bits, a_bits, group = setting_picker.fit_method("smoothquant", "1.1", "6")
    assert (bits["choices"], bits["value"]) == (["2", "3", "4", "5", "6", "7", "8"], "8")
    assert "value" not in setting_picker.fit_method("smoothquant", "4", "6")[0]
    assert a_bits["choices"] == ["4", "5", "6", "7", "8"]
    assert "value" not in a_bits
    assert (a_bits["visible"], group["visible"]) == (True, False)
    assert setting_picker.fit_method("smoothquant", "8", None)[1]["value"] == "8"


@pytest.mark.parametrize("method", ["fp16", *METHODS])
def test_hidden_activation_bits_keep_their_choices(method):
    """The page may still send the value that it holds, which Gradio refuses unless it is one of them."""
    a_bits = setting_picker.fit_method(method, "4", "8")[1]
    assert a_bits["visible"] == (method == "smoothquant")
    assert a_bits.get("choices") != []
    assert (
        setting_picker.fill(QuantSetting(method=method) if method == "fp16" else first_of(method))[2].get("choices")
        != []
    )


def first_of(method: str) -> QuantSetting:
    card = METHODS[method].card
    return setting(method, f"{card.bits[0]:g}", "128", a_bits=card.a_bits[0])


@pytest.mark.parametrize("wanted", [FP16, *map(first_of, METHODS)], ids=lambda spec: spec.method)
def test_a_setting_put_into_the_controls_is_read_as_itself(wanted):
    updates = setting_picker.fill(wanted)
    method, bits, a_bits, group = (update.get("value") if isinstance(update, dict) else update for update in updates)
    assert setting(method, bits, group, wanted.options, a_bits=a_bits) == wanted
