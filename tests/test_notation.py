import math

import pytest

from quant_engine import notation
from quant_engine.spec import QuantSetting, UserError, read_code


@pytest.mark.parametrize(
    ("value", "measured", "text"),
    [
        (6.1, False, "6.1"),
        (22.8813, True, "22.88"),
        (110, False, "110"),
        (910.4, True, "910"),
        (999.6, True, "1.0×10³"),
        (1900, False, "1.9×10³"),
        (2_700_000, False, "2.7×10⁶"),
        (99_900, False, "1.0×10⁵"),
        (-0.3, False, "−0.3"),
        (-0.001, False, "0.0"),
        (math.inf, True, "∞"),
    ],
)
def test_perplexity(value, measured, text):
    assert notation.perplexity(value, measured=measured) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (22.88134, "22.88"),
        (0.000123456, "0.0001235"),
        (99_999, "1e+05"),
        (-2_712_345.6, "-2.71e+06"),
    ],
)
def test_any_number(value, text):
    assert notation.number(value) == text


def test_small_words():
    assert notation.difference("0.4") == "+0.4"
    assert notation.difference("0.0") == "0.0"
    assert notation.difference("−0.3") == "−0.3"
    assert notation.standard_error(2.5429) == "2.5"
    assert notation.percent(0.01) == "<0.1%"
    assert notation.cost(29.45) == "29.45"
    assert notation.cost(19.0) == "19"
    assert notation.cost(100.0) == "100"
    assert notation.seconds(0.42) == "0.42 s"
    assert notation.seconds(185) == "3 min 05 s"
    assert notation.seconds(7800) == "2 h 10 min"
    assert notation.size(94_700_000) == "95 MB"
    assert notation.size(16_060_000_000) == "16.1 GB"


@pytest.mark.parametrize(
    ("code", "setting"),
    [
        ("fp16", QuantSetting()),
        ("gptq-4-g64", QuantSetting(method="gptq", w_bits=4, group_size=64)),
        ("smoothquant-8-a8", QuantSetting(method="smoothquant", w_bits=8, a_bits=8)),
        ("pb_llm-1.7-g128", QuantSetting(method="pb_llm", w_bits=1.7, group_size=128)),
    ],
)
def test_a_setting_is_read_as_it_is_written(code, setting):
    assert setting.code == code
    assert read_code(f" {code.upper()} ") == setting


@pytest.mark.parametrize("code", ["", "gptq", "gptq-", "gptq-4-", "gptq-4-64", "gptq--4", "rtn-nan", "4-gptq", "rtn 4"])
def test_what_is_no_setting_is_a_sentence_with_examples(code):
    with pytest.raises(UserError, match=r"such as gptq-4, rtn-3-g64 or fp16, not "):
        read_code(code)


@pytest.mark.parametrize(("code", "words"), [("rtn-9", "from 1 to 8"), ("rtn-4-g0", "1 or more"), ("x-4-a2", "4 to 8")])
def test_a_setting_that_cannot_be_is_refused(code, words):
    with pytest.raises(UserError, match=words):
        read_code(code)
