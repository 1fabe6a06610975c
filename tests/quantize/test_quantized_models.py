"""Methods on single linears through the whole pipeline: quantize a tiny model, keep it, load it, let it answer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from quant_engine.checkpoints import ledger_of, load_quantized
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS
from quant_engine.progress import Hooks
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import layer_records, quantize
from quant_engine.spec import Calibration, QuantSetting, WeightSpec
from quant_engine.weights.rotated import RotatedInt

SETTINGS = [
    QuantSetting(method="normal_float", w_bits=2),
    QuantSetting(method="normal_float", w_bits=4, options={"double_quantization": False}),
    QuantSetting(method="quip", w_bits=2, options={"rotation": "blocked", "rounding": "ldlq_rg", "passes": 2}),
    QuantSetting(method="quip", w_bits=4),
    QuantSetting(method="quip", w_bits=3, options={"incoherence": False}),
    QuantSetting(method="billm", w_bits=1.1, group_size=8),
    QuantSetting(method="pb_llm", w_bits=1.7, group_size=8),
    QuantSetting(method="slim_llm", w_bits=2, group_size=8),
]
HEADLINE_OFF = {"billm": 0.6, "pb_llm": 0.05, "slim_llm": 0.05}
"""How far headline bits may be from the setting's: these widths are shares of few columns in a tiny model."""


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_what_was_quantized_is_what_answers(lab, tiny_models, monkeypatch, family, setting):
    made = []
    method = setting.method
    before = METHODS[method]

    def keep(layer):
        stored = before.quantize(layer)
        # The pipeline drops a block's weights when it is saved.
        made.append(deepcopy(stored))
        return stored

    monkeypatch.setitem(METHODS, method, replace(before, quantize=keep))
    text = Calibration(samples=6, length=40)
    plan = resolve_weights(WeightSpec(model=str(tiny_models / family), setting=setting, calibration=text))
    path = quantize(plan, "cpu", Hooks())
    loaded = load_quantized(path, "float32", "cpu")
    layers = {name: module for name, module in loaded.model.named_modules() if isinstance(module, QuantLinear)}
    assert len(layers) == len(made) == 14
    assert not any("vision" in name for name in layers)

    # Blocks list their linears in the order in which they were quantized.
    for layer, stored in zip(layers.values(), made, strict=True):
        assert layer.weight.config() == stored.config()
        assert torch.equal(layer.weight.dequantize(), stored.dequantize())
        loaded_tensors = layer.weight.state_dict()
        for name, tensor in stored.state_dict().items():
            assert torch.equal(loaded_tensors[name], tensor)

    ledger = ledger_of(loaded.model)
    assert ledger.total_bits == 8 * sum(layer.weight.stored_bytes() for layer in layers.values())
    records = layer_records(plan, "cpu", Hooks())
    sizes = [record.out_features * record.in_features for record in records]
    headline = sum(record.headline_bits * size for record, size in zip(records, sizes, strict=True)) / sum(sizes)
    assert headline == pytest.approx(ledger.headline_bits)
    assert headline == pytest.approx(setting.w_bits, abs=HEADLINE_OFF.get(method))
    assert headline < ledger.bits_per_weight
    for record in records:
        assert 0 < record.output_error < 1.5

    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        with monkeypatch.context() as answering:
            answering.setattr(RotatedInt, "dequantize", lambda *given: pytest.fail("a dense weight was made"))
            many, one = loaded.model(input_ids=ids).logits, loaded.model(input_ids=ids[:, :1]).logits
        for name, layer in layers.items():
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.weight.data = layer.weight.dequantize()
            loaded.model.set_submodule(name, dense)
        assert torch.allclose(many, loaded.model(input_ids=ids).logits, atol=2e-3)
        assert torch.allclose(one, loaded.model(input_ids=ids[:, :1]).logits, atol=2e-3)
