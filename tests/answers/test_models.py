"""Which loaded models the answering process keeps: the ones used last, within its memory."""

import weakref
from types import SimpleNamespace

import pytest

from quant_engine.answers import worker
from quant_engine.answers.model_cache import ModelCache
from quant_engine.answers.worker import memory_budget
from quant_engine.spec import QuantSetting, UserError

FP16 = QuantSetting()
RTN4, RTN3, RTN2 = (QuantSetting(method="rtn", w_bits=bits) for bits in (4, 3, 2))
SIZES = {16: 100, 4: 30, 3: 25, 2: 20}


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

    return ModelCache(load, budget=150)


def get(models, model, setting, *needed):
    return models.get(model, setting, {ModelCache.key(model, other) for other in needed}, print)


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
    get(models, "a", RTN4)
    get(models, "b", FP16)
    get(models, "b", RTN4, FP16)
    get(models, "b", RTN2, FP16, RTN4)  # 150 bytes of 150, without a
    get(models, "b", RTN3, FP16, RTN4, RTN2)
    loads.clear()
    for setting in (FP16, RTN4, RTN3, RTN2):
        get(models, "b", setting, FP16, RTN4, RTN3, RTN2)
    assert loads == []
    get(models, "a", RTN4)
    assert loads == [("a", 4)]


def test_room_is_made_before_a_model_is_loaded_and_not_after():
    class Model:
        weight_bytes = 100

    alive, alive_at_load = weakref.WeakSet(), []

    def load(model, setting, on_progress):
        alive_at_load.append(len(alive))
        loaded = Model()
        alive.add(loaded)
        return loaded

    models = ModelCache(load, budget=150)
    get(models, "a", FP16)
    get(models, "a", RTN4)  # as large as a in FP16, for all that is known
    assert alive_at_load == [0, 0]


def test_a_model_that_cannot_be_loaded_leaves_the_others(models, loads):
    get(models, "a", FP16)
    with pytest.raises(UserError):
        get(models, "missing", FP16)
    get(models, "a", FP16)
    assert loads == [("a", 16)]


@pytest.mark.parametrize(
    ("limit", "budget"),
    [(None, 8e9), ("max\n", 8e9), ("6000000000\n", 3e9), ("9223372036854771712\n", 8e9)],
)
def test_half_of_the_memory_of_the_machine_or_of_the_container_is_for_weights(tmp_path, monkeypatch, limit, budget):
    monkeypatch.setattr(worker.psutil, "virtual_memory", lambda: SimpleNamespace(total=16_000_000_000))
    monkeypatch.setattr(worker, "_MEMORY_LIMIT", tmp_path / "memory.max")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    assert memory_budget() == budget
