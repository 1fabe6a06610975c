"""Instruction data, and one way to fine-tune a tiny Llama on them."""

import json

import pytest

from quant_engine.progress import Hooks
from quant_engine.quantize.stream import quantize
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

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
def spec_for(lab, tiny_models, data):
    """A resolved run of a method on the tiny model, with few steps."""

    def make(method="qlora", family="llama", bits=4, **options):
        options = {"data": str(data), **OPTIONS, **options}
        setting = QuantSetting(method=method, w_bits=bits, options=options)
        return resolve(
            RunSpec(
                weights=WeightSpec(model=str(tiny_models / family), setting=setting), tasks=("perplexity",), window=64
            )
        )

    return make


@pytest.fixture
def fine_tune():
    return lambda spec, **hooks: quantize(spec, Hooks(**hooks))
