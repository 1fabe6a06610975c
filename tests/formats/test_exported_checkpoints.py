"""Our weights in other programs' formats: what is read back from there is what was written, or nothing is written."""

import pytest
import torch
from typer.testing import CliRunner

from quant_engine.checkpoints.folder import load_quantized
from quant_engine.cli import app
from quant_engine.formats import published
from quant_engine.formats.export import export
from quant_engine.formats.load import load_published
from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.catalog import model_card
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, PublishedCheckpoint, QuantSetting, UserError, WeightSpec


def quantized(model, method, bits, group=16, **options):
    setting = QuantSetting(method=method, w_bits=bits, group_size=group, options=options)
    calibration = Calibration(samples=4, length=64)
    return weights.quantize(
        resolve_weights(WeightSpec(model=str(model), setting=setting, calibration=calibration)), "cpu", Hooks()
    )


@pytest.mark.parametrize("base", ["llama", "llava"])
@pytest.mark.parametrize(
    ("method", "bits", "options", "layout"),
    [
        ("gptq", 4, {"act_order": True, "groups": "dynamic"}, "gptq"),
        ("gptq", 4, {}, "gptq_v2"),
        ("rtn", 8, {}, "gptq_v2"),
        ("rtn", 2, {}, "gptq_v2"),
        ("awq", 4, {}, "awq"),
        ("rtn", 4, {"symmetric": True}, "compressed-tensors"),
        ("rtn", 3, {}, "compressed-tensors"),
    ],
)
def test_an_export_is_read_back_bit_for_bit(base, method, bits, options, layout, tiny_models, tmp_path, lab):
    checkpoint, target = quantized(tiny_models / base, method, bits, **options), tmp_path / "exported"
    export(checkpoint, target, layout, "card")
    card = model_card(str(tiny_models / base))
    found = published.find(PublishedCheckpoint(location=str(target)))
    read, written = load_published(found, card, "float32", "cpu"), load_quantized(checkpoint, "float32", "cpu")
    for (name, layer), expected in zip(read.model.named_modules(), written.model.modules(), strict=True):
        if isinstance(layer, QuantLinear):
            assert torch.equal(layer.weight.dequantize(), expected.weight.dequantize()), name
    for (name, value), expected in zip(read.model.named_parameters(), written.model.parameters(), strict=True):
        assert torch.equal(value, expected), name
    titles = {"awq": "AWQ, by Low-Bit Lab", "compressed-tensors": f"compressed-tensors INT{bits} W{bits}"}
    assert found.setting.label.startswith(titles.get(layout, "GPTQ, by Low-Bit Lab"))


@pytest.mark.parametrize(
    ("method", "bits", "group", "options", "layout", "words"),
    [
        ("rtn", 3, 16, {}, "awq", "4 bits, not 3"),
        ("rtn", 5, 16, {}, "gptq", "not 5"),
        ("rtn", 3, 16, {}, "gptq", "whole words"),
        ("gptq", 4, 16, {"act_order": True, "groups": "dynamic"}, "awq", "order"),
        ("slim_llm", 3, 16, {}, "gptq", "mixed width"),
        ("normal_float", 4, None, {}, "awq", "codebook"),
        ("rtn", 4, 16, {}, "marlin", "gptq, gptq_v2, awq, compressed-tensors, gguf"),
    ],
)
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(
    method, bits, group, options, layout, words, tiny_models, tmp_path, lab
):
    checkpoint = quantized(tiny_models / "llama", method, bits, group, **options)
    with pytest.raises(UserError, match=words):
        export(checkpoint, tmp_path / "exported", layout, "card")
    assert not list(tmp_path.glob("*exported*"))


def test_the_command_writes_a_card_that_names_the_base_model_and_measuring_it_needs_no_more(tiny_models, tmp_path, lab):
    checkpoint, target = quantized(tiny_models / "llama", "rtn", 4), tmp_path / "exported"
    run = CliRunner().invoke
    words = ["export", str(checkpoint), str(target), "--to", "gptq_v2"]
    assert run(app, words).exit_code == 0
    card = (target / "README.md").read_text()
    assert f"base_model: {tiny_models / 'llama'}\n" in card
    assert "--method rtn --bits 4 --group-size 16" in card
    done = run(app, ["run", "--checkpoint", str(target), "-t", "perplexity", "--limit", "1", "--window", "64"])
    assert done.exit_code == 0, done.output
    assert "by Low-Bit Lab" in done.output
    again = run(app, words)
    assert again.exit_code == 2
    assert "there already" in again.output
