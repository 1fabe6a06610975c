"""Which loaded models the answering process keeps: the ones used last, within its memory."""

from types import SimpleNamespace

import pytest

from quant_engine.answers.worker import Models, memory_budget
from quant_engine.spec import QuantSetting, UserError

FP16 = QuantSetting()
RTN4, RTN2 = (QuantSetting(method="rtn", w_bits=bits) for bits in (4, 2))
SIZES = {16: 100, 4: 30, 2: 20}


@pytest.fixture
def loads():
    return []


@pytest.fixture
def models(loads):
    def load(model, setting, on_progress):
        if model == "missing":
            raise UserError("There is no such model.")
        loads.append((model, setting.w_bits))
        return SimpleNamespace(weight_bytes=SIZES[setting.w_bits])

    return Models(load, budget=150)


def get(models, model, setting, *needed):
    return models.get(model, setting, {Models.key(model, one) for one in needed}, print)


def test_a_model_in_the_same_setting_is_loaded_once(models, loads):
    assert get(models, "a", FP16) is get(models, "a", FP16)
    assert get(models, "a", RTN4, FP16) is get(models, "a", RTN4)
    assert get(models, "a", RTN4) is not get(models, "a", FP16)
    assert loads == [("a", 16), ("a", 4)]


def test_the_model_unused_for_longest_makes_room(models, loads):
    for name in ("a", "b", "c", "d", "e"):
        get(models, name, RTN4)  # 150 bytes: full
    get(models, "a", RTN4)
    get(models, "f", RTN2)
    loads.clear()
    for name in ("a", "c", "d", "e"):
        get(models, name, RTN4)
    assert loads == []
    get(models, "b", RTN4)
    assert loads == [("b", 4)]


def test_the_models_of_one_request_stay_together_even_beyond_the_memory(models, loads):
    get(models, "a", FP16)
    get(models, "b", FP16, FP16)
    models.get("b", RTN4, {Models.key("b", FP16), Models.key("a", FP16)}, print)
    loads.clear()
    get(models, "b", FP16, FP16)
    assert loads == []


def test_a_model_that_cannot_be_loaded_leaves_the_others(models, loads):
    get(models, "a", FP16)
    with pytest.raises(UserError):
        get(models, "missing", FP16)
    get(models, "a", FP16)
    assert loads == [("a", 16)]


def test_the_budget_is_a_part_of_the_memory_that_there_is():
    assert 100e6 < memory_budget() < 10e12
