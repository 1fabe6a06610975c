"""Linears of a block, or blocks of a model, quantized alone: what is not named stays as it is, and is counted so."""

import json

import pytest
import torch
from typer.testing import CliRunner

from quant_engine.checkpoints import Checkpoint, load_quantized
from quant_engine.cli import app
from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.sweep import Sweep, plan
from quant_engine.runs.weights import layer_records, quantize
from quant_engine.spec import Calibration, QuantSetting, UserError, WeightSpec

TEXT = Calibration(samples=4, length=32)


def plan_of(folder, *only, method="gptq"):
    setting = QuantSetting(method=method, w_bits=3, group_size=16)
    return resolve_weights(WeightSpec(model=str(folder), setting=setting, calibration=TEXT, only=only))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (("attention",), {(b, n) for b in (0, 1) for n in LINEARS[:4]}),
        (("up_proj", "q_proj"), {(b, n) for b in (0, 1) for n in (LINEARS[0], LINEARS[5])}),
        (("block-1",), {(1, n) for n in LINEARS}),
        (("block-1", "mlp"), {(1, n) for n in LINEARS[4:]}),
    ],
    ids=["attention", "up and q", "block 1", "mlp of block 1"],
)
def test_what_is_named_is_quantized_and_the_rest_is_as_it_was(tiny_models, lab, method, only, chosen):
    folder = tiny_models / "llama"
    made = plan_of(folder, *only, method=method)
    path = quantize(made, "cpu", Hooks())
    records = layer_records(made, "cpu", Hooks())
    assert {(r.block, r.linear) for r in records if r.stored_bits < 16} == chosen
    assert {(r.block, r.linear) for r in records if r.weight_error > 1e-5} == chosen
    loaded, dense = load_quantized(path, "float32", "cpu"), load_dense(model_card(str(folder)), None, "float32", "cpu")
    for index, (block, whole) in enumerate(zip(loaded.model.model.layers, dense.model.model.layers, strict=True)):
        for name in LINEARS:
            stored, weight = block.get_submodule(name), whole.get_submodule(name).weight
            assert isinstance(stored, QuantLinear)
            same = torch.equal(stored.weight.dequantize(), weight.half().float())
            assert same == ((index, name) not in chosen)
    sizes = {name: dense.model.model.layers[0].get_submodule(name).weight.numel() for name in LINEARS}
    bits = sum(record.stored_bits * sizes[record.linear] for record in records) / (2 * sum(sizes.values()))
    assert loaded.stored_bits == pytest.approx(bits)
    assert Checkpoint(path).spec().only == tuple(sorted(only))


def test_the_first_named_linears_are_quantized_as_in_the_whole_model(tiny_models, lab):
    """Up to there both have seen the same."""
    weights = []
    for only in ((), ("q_proj", "block-0")):
        loaded = load_quantized(quantize(plan_of(tiny_models / "llama", *only), "cpu", Hooks()), "float32", "cpu")
        weights.append(loaded.model.model.layers[0].self_attn.q_proj.weight.dequantize())
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("only", "method", "words"),
    [
        (("atention",), "rtn", "no part 'atention'"),
        (("block-2",), "rtn", "last block of this model is block-1"),
        (("mlp",), "awq", "AWQ changes blocks as a whole"),
        (("mlp",), "fp16", "fp16 quantizes nothing"),
    ],
)
def test_what_is_no_part_is_refused(tiny_models, only, method, words):
    setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=3, group_size=16)
    with pytest.raises(UserError, match=words):
        resolve_weights(WeightSpec(model=str(tiny_models / "llama"), setting=setting, only=only))


def test_a_run_says_which_part_it_is_of_and_how_it_is_made_again(tiny_models, lab, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a model of few bits. " * 20)
    words = f"run --model {tiny_models / 'llama'} --method rtn --bits 2 --group-size 16 --only attention,block-0"
    task = f"--tasks perplexity:{tmp_path / 'text.txt'} --limit 1 --window 32 --json"
    done = CliRunner().invoke(app, [*words.split(), *task.split()])
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)
    assert json.loads(result["options"])["only"] == "attention, block-0"
    assert "--only attention,block-0" in result["command"]
    assert 8 < result["stored_bits"] < 16


def test_a_sweep_quantizes_each_part_alone(tiny_models, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a model of few bits. " * 20)
    sweep = Sweep(
        models=str(tiny_models / "llama"),
        settings="fp16,rtn-3-g16",
        only="all,attention,mlp",
        tasks=f"perplexity:{tmp_path / 'text.txt'}",
    )
    assert [spec.weights.only for spec in plan(sweep).specs] == [(), (), ("attention",), ("mlp",)]
