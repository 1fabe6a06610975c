"""BiLLM, PB-LLM and SliM-LLM through the whole pipeline: quantize a tiny model, keep it, load it, let it answer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from generate import tiny_chat
from torch import nn

from quant_engine.checkpoints import Checkpoint, ledger_of, load_quantized
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS
from quant_engine.quantize import Hooks, quantize
from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec

SETTINGS = [("billm", 1.1), ("pb_llm", 1.7), ("slim_llm", 2)]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, made in (("llama", tiny_chat.llama()), ("llava", tiny_chat.llava_next())):
        made.model.save_pretrained(root / name)
        (made.processor or made.tokenizer).save_pretrained(root / name)
    return root


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize(("method", "bits"), SETTINGS)
def test_what_was_quantized_is_what_answers(lab, tiny_models, monkeypatch, family, method, bits):
    made = []
    before = METHODS[method]

    def keep(*given):
        stored = before.quantize(*given)
        # The pipeline drops a block's weights when it is saved.
        made.append(deepcopy(stored))
        return stored

    monkeypatch.setitem(METHODS, method, replace(before, quantize=keep))
    spec = resolve(
        RunSpec(
            model=str(tiny_models / family),
            setting=QuantSetting(method=method, w_bits=bits, group_size=8),
            calibration=Calibration(samples=6, length=40),
            tasks=("perplexity",),
            window=64,
        )
    )
    path = quantize(spec, Hooks())
    loaded = load_quantized(path, "float32", "cpu")
    layers = {name: module for name, module in loaded.model.named_modules() if isinstance(module, QuantLinear)}
    assert len(layers) == len(made) == 14
    assert not any("vision" in name for name in layers)

    # Blocks list their linears in the order in which they were quantized.
    for layer, stored in zip(layers.values(), made, strict=True):
        assert layer.weight.config() == stored.config()
        assert torch.equal(layer.weight.dequantize(), stored.dequantize())
        for name, buffer in stored.named_buffers():
            assert torch.equal(layer.weight.get_buffer(name), buffer)

    ledger = ledger_of(loaded.model)
    assert ledger.total_bits == 8 * sum(layer.weight.stored_bytes() for layer in layers.values())
    records = Checkpoint(path).records()
    sizes = [record.out_features * record.in_features for record in records]
    headline = sum(record.headline_bits * size for record, size in zip(records, sizes, strict=True)) / sum(sizes)
    assert headline == pytest.approx(ledger.headline_bits)
    assert headline == pytest.approx(bits, abs=0.6 if method == "billm" else 0.05)
    assert headline < ledger.bits_per_weight
    assert all(0 < record.output_error < 1.5 for record in records)

    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        many, one = loaded.model(input_ids=ids).logits, loaded.model(input_ids=ids[:, :1]).logits
        for name, layer in layers.items():
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.weight.data = layer.weight.dequantize()
            loaded.model.set_submodule(name, dense)
        assert torch.allclose(many, loaded.model(input_ids=ids).logits, atol=2e-3)
        assert torch.allclose(one, loaded.model(input_ids=ids[:, :1]).logits, atol=2e-3)
