"""Which loaded models the answering process keeps: the ones used last, within its memory."""

import itertools
import weakref
from types import SimpleNamespace

import pytest

from quant_engine import memory
from quant_engine.answers import worker
from quant_engine.answers.model_cache import ModelCache
from quant_engine.answers.worker import memory_budget
from quant_engine.spec import QuantSetting, UserError, WeightSpec

FP16 = QuantSetting()
RTN4, RTN3, RTN2 = (QuantSetting(method="rtn", w_bits=bits) for bits in (4, 3, 2))
SIZES = {16: 100, 4: 30, 3: 25, 2: 20}


NUMBERS = itertools.count()


class Model:
    """A model of so many bytes, some of which others hold as well."""

    revision = None

    def __init__(self, size, **shared):
        self.storages = {next(NUMBERS): size, **shared}
        self.weight_bytes = sum(self.storages.values())


@pytest.fixture
def loads():
    return []


@pytest.fixture
def models(loads):
    def load(spec, sibling, on_progress):
        if spec.model == "missing":
            raise UserError("There is no such model.")
        loads.append((spec.model, spec.setting.w_bits))
        return Model(SIZES[spec.setting.w_bits])

    return ModelCache(load, budget=150)


def get(models, model, setting, *needed):
    specs = [WeightSpec(model=model, setting=other) for other in (setting, *needed)]
    return models.get(specs[0], {ModelCache.key(spec) for spec in specs[1:]}, print)


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
    alive, alive_at_load = weakref.WeakSet(), []

    def load(spec, sibling, on_progress):
        alive_at_load.append(len(alive))
        loaded = Model(100)
        alive.add(loaded)
        return loaded

    models = ModelCache(load, budget=150)
    get(models, "a", FP16)
    get(models, "a", RTN4)  # as large as a in FP16, for all that is known
    assert alive_at_load == [0, 0]


def test_weights_that_settings_have_in_common_are_counted_once_and_handed_on():
    siblings = []

    def load(spec, sibling, on_progress):
        siblings.append(sibling)
        return Model(20, embedding=60)

    models = ModelCache(load, budget=150)
    first = get(models, "a", FP16)
    get(models, "a", RTN4, FP16)
    get(models, "a", RTN3, FP16, RTN4)
    assert siblings == [None, first, first]
    get(models, "b", RTN2, FP16)
    assert siblings[3] is None
    assert get(models, "a", RTN3) is get(models, "a", RTN3)


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
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=16_000_000_000))
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    assert memory_budget() == budget


@pytest.mark.parametrize(("free_on_gpu", "budget"), [(20_000_000_000, 16e9), (None, 8e9)])
def test_where_models_lie_on_a_gpu_most_of_its_memory_is_for_weights(tmp_path, monkeypatch, free_on_gpu, budget):
    monkeypatch.setattr(worker, "default_device", lambda: "cuda")
    monkeypatch.setattr(worker, "gpu_memory", lambda: free_on_gpu)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=16_000_000_000))
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory_budget() == budget


def test_what_a_container_only_remembers_of_files_is_free(tmp_path, monkeypatch):
    machine = SimpleNamespace(total=16_000_000_000, available=7_000_000_000)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory.free() == 7_000_000_000
    (tmp_path / "memory.max").write_text("6000000000\n")
    (tmp_path / "memory.current").write_text("5500000000\n")
    (tmp_path / "memory.stat").write_text("anon 3\ninactive_file 400000000\n")
    assert memory.free() == 900_000_000
