"""Instruction data, and one way to fine-tune a tiny Llama on them."""

import json

import pytest

from quant_engine.progress import Hooks
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import quantize
from quant_engine.spec import QuantSetting, WeightSpec

ROWS = [
    {
        "instruction": f"Say {word} {count} times.",
        "input": "Slowly." if count % 2 else "",
        "output": " ".join([word] * count),
    }
    for count in (1, 2, 3, 4)
    for word in ("red", "green", "blue", "one", "two", "three")
]
OPTIONS = {"rank": 4, "steps": 8, "batch": 4, "source_length": 24, "target_length": 24, "learning_rate": 5e-3}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "says.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture
def plan_for(lab, tiny_models, data):
    """The plan of a method's weights on the tiny model, with few steps."""

    def make(method="qlora", family="llama", bits=4, **options):
        options = {"data": str(data), **OPTIONS, **options}
        setting = QuantSetting(method=method, w_bits=bits, options=options)
        return resolve_weights(WeightSpec(model=str(tiny_models / family), setting=setting))

    return make


@pytest.fixture
def fine_tune():
    return lambda plan, **hooks: quantize(plan, "cpu", Hooks(**hooks))
