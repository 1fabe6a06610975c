"""What linears lose where the method looks at no data: measured when it is wanted, and saved with the weights."""

import json

import pytest
import torch

from quant_engine.checkpoints import Checkpoint, load_quantized
from quant_engine.data.texts import calibration_windows
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks, Stopped
from quant_engine.quantize import losses, stream
from quant_engine.runs import folder, weights
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec

RTN = QuantSetting(method="rtn", w_bits=3, group_size=16)
TEXT = Calibration(samples=2, length=40)


@pytest.fixture
def plan(lab, tiny_models, monkeypatch):
    monkeypatch.setattr(losses, "MEASURED_ON", TEXT)
    return plan_for(tiny_models / "deep", RTN)


def plan_for(model, setting):
    return resolve_weights(WeightSpec(model=str(model), setting=setting))


def errors_of(plan):
    weights.quantize(plan, "cpu", Hooks())
    return [record.output_error for record in weights.layer_records(plan, "cpu", Hooks())]


def run_of(plan, **fields):
    return RunSpec(weights=plan.spec, tasks=("perplexity",), window=64, **{"limit": 2, **fields})


@pytest.mark.parametrize("method", ["rtn", "normal_float"])
def test_a_method_that_looks_at_no_data_is_given_none(lab, tiny_models, monkeypatch, method):
    plan = plan_for(tiny_models / "llama", QuantSetting(method=method, w_bits=4))
    monkeypatch.setattr(stream, "calibration_inputs", lambda *given: pytest.fail("data were read"))
    path = weights.quantize(plan, "cpu", Hooks())
    records = Checkpoint(path).records()
    assert {(record.output_error, record.weight_error, record.weights_after) for record in records} == {(None,) * 3}


@pytest.mark.parametrize("family", ["deep", "llava"])
def test_equal_those_of_the_whole_model_in_memory(plan, tiny_models, family):
    """Each linear gets what its dense block makes of what the quantized blocks before it put out."""
    plan = plan_for(tiny_models / family, RTN)
    errors = errors_of(plan)
    quantized = load_quantized(weights.checkpoint_folder(plan.spec), "float32", "cpu").model.get_decoder()
    dense = load_dense(model_card(plan.spec.model), None, "float32", "cpu")
    windows, expected = calibration_windows(TEXT, dense.tokenizer), []
    model = dense.model.get_decoder()
    for index, block in enumerate(list(model.layers)):
        inputs = {}
        for name in LINEARS:
            block.get_submodule(name).register_forward_pre_hook(
                lambda module, given, name=name, inputs=inputs: inputs.setdefault(name, given[0])
            )
        with torch.no_grad():
            model(input_ids=windows)
        for name in LINEARS:
            before = block.get_submodule(name).weight
            after = quantized.layers[index].get_submodule(name).weight.dequantize()
            x = inputs[name]
            expected.append(((x @ (after - before).T).square().sum() / (x @ before.T).square().sum()).item())
        model.layers[index] = quantized.layers[index]
    assert errors == pytest.approx(expected, rel=1e-3)


def test_are_of_the_frozen_weights_where_adapters_were_trained(plan, tmp_path):
    (tmp_path / "says.json").write_text(json.dumps([{"instruction": "Say a.", "input": "", "output": "a"}] * 4))
    options = {"data": str(tmp_path / "says.json"), "steps": 2, "batch": 1, "held_out": 0, "learning_rate": 0.1}
    options |= {"rank": 4, "source_length": 16, "target_length": 16}
    plain = plan_for(plan.spec.model, QuantSetting(method="normal_float", w_bits=3))
    tuned = plan_for(plan.spec.model, QuantSetting(method="qlora", w_bits=3, options=options))
    assert errors_of(tuned) == errors_of(plain)


def test_a_run_measures_them_without_quantizing_again_and_the_next_one_finds_them(plan, monkeypatch):
    before = (weights.quantize(plan, "cpu", Hooks()) / "000.safetensors").read_bytes()
    stages = []
    path = execute(run_of(plan), Hooks(lambda progress: stages.append(progress.stage)))
    assert "quantizing" not in stages
    assert (weights.checkpoint_folder(plan.spec) / "000.safetensors").read_bytes() == before
    layers = folder.read_layers(path)
    assert len(layers) == 3 * len(LINEARS)
    assert all(0 < layer.output_error < 1 for layer in layers)
    monkeypatch.setattr(weights, "measure_losses", lambda *given: pytest.fail("measured again"))
    assert folder.read_layers(execute(run_of(plan, limit=1), Hooks())) == layers


def test_are_measured_anew_where_measuring_was_stopped(plan):
    path, at = weights.quantize(plan, "cpu", Hooks()), []
    with pytest.raises(Stopped):
        weights.layer_records(plan, "cpu", Hooks(at.append, lambda: len(at) == 2))
    assert {record.output_error for record in Checkpoint(path).records()} == {None}
    assert all(record.output_error for record in weights.layer_records(plan, "cpu", Hooks()))


def test_go_along_when_a_checkpoint_is_taken_over(plan, tmp_path):
    errors = errors_of(plan)
    moved = weights.checkpoint_folder(plan.spec).rename(tmp_path / "moved")
    weights.adopt(moved, Hooks())
    records = Checkpoint(weights.checkpoint_folder(plan.spec)).records()
    assert [record.output_error for record in records] == errors


@pytest.mark.parametrize("content", ["nonsense", "{}", json.dumps([1])])
def test_a_damaged_file_of_them_is_said(plan, content):
    path = weights.quantize(plan, "cpu", Hooks())
    (path / "losses.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        weights.layer_records(plan, "cpu", Hooks())
