"""Methods that work across linears, through the whole pipeline on models of a few thousand random weights."""

import shutil
from dataclasses import replace

import pytest
import torch
from models import tiny_chat

from quant_engine import folders, terminal
from quant_engine.checkpoints import Checkpoint, ledger_of, load_quantized
from quant_engine.data.texts import calibration_windows
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.block import CalibratedBlock, first_inputs
from quant_engine.models import decode
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks, Stopped
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import checkpoint_folder, layer_records, quantize
from quant_engine.spec import Calibration, QuantSetting, WeightSpec

TEXT = Calibration(samples=6, length=40)
SETTINGS = {
    "awq": QuantSetting(method="awq", w_bits=3, group_size=16),
    "smoothquant": QuantSetting(method="smoothquant", w_bits=8, a_bits=8),
    "db_llm": QuantSetting(
        method="db_llm",
        w_bits=2,
        group_size=16,
        options={"steps": 4, "batch": 2, "generated": 2, "learning_rate": 0.01},
    ),
}
FOLDED = ["awq", "smoothquant"]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, made in (("llama", tiny_chat.llama(layers=3)), ("llava", tiny_chat.llava_next())):
        for block in made.model.get_decoder().layers:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.data.uniform_(0.3, 3)
        made.model.save_pretrained(root / name)
        (made.processor or made.tokenizer).save_pretrained(root / name)
    return root


def plan_for(folder, method, dtype="float32"):
    return resolve_weights(WeightSpec(model=str(folder), setting=SETTINGS[method], calibration=TEXT, dtype=dtype))


def in_memory(folder, plan):
    """The model quantized whole: blocks one after the other, each on the outputs of the original one before it."""
    loaded = load_dense(model_card(str(folder)), None, "float32", "cpu")
    model, method, setting, options = loaded.model, plan.method, plan.spec.setting, plan.options
    with torch.no_grad():
        hidden, kwargs = first_inputs(model.get_decoder(), calibration_windows(TEXT, loaded.tokenizer))
        for module in model.get_decoder().layers:
            block = CalibratedBlock(module, hidden, kwargs)
            following = torch.empty_like(hidden)
            block.advance(following)
            method.prepare(block, setting, options, print)
            inputs = {}
            block.watch(LINEARS, lambda name, x, inputs=inputs: inputs.setdefault(name, []).append(x.clone()))
            for name in LINEARS:
                x = torch.cat(inputs[name]).flatten(0, -2)
                statistics = Statistics(2 / 6 * x.T @ x, linear=name, inputs=x)
                weight = module.get_submodule(name).weight
                stored = method.quantize(Layer(weight.clone(), statistics, setting, options, print))
                parent, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(parent), leaf, QuantLinear(stored))
            hidden = following
    return model


@pytest.mark.parametrize("method", FOLDED)
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_loaded_checkpoint_answers_as_the_model_quantized_in_memory(lab, tiny_models, method, family):
    plan = plan_for(tiny_models / family, method)
    loaded = load_quantized(quantize(plan, "cpu", Hooks()), "float32", "cpu")
    expected = in_memory(tiny_models / family, plan)
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        found, wanted = loaded.model(input_ids=ids).logits, expected(input_ids=ids).logits
    assert torch.allclose(found, wanted, atol=1e-3)
    original = load_dense(model_card(str(tiny_models / family)), None, "float32", "cpu").model
    norms = [model.get_decoder().layers[0].input_layernorm.weight for model in (loaded.model, expected, original)]
    assert torch.equal(norms[0], norms[1])
    assert not torch.equal(norms[0], norms[2]), "the scales are in the norms of the checkpoint"


def test_single_inputs_are_evenly_spaced_over_all_tokens_however_they_go_through_a_block(lab, tiny_models, monkeypatch):
    """240 tokens, of which every third is wanted, in parts of 40."""
    seen = {}

    def spy(layer):
        seen.setdefault(layer.statistics.linear, layer.statistics.inputs)
        return awq.quantize(layer)

    awq = METHODS["awq"]
    given = replace(awq, quantize=spy, prepare=None, input_tokens=80)
    monkeypatch.setitem(METHODS, "awq", given)
    monkeypatch.setattr("quant_engine.methods.block.TOKENS_AT_ONCE", 40)
    quantize(plan_for(tiny_models / "llama", "awq"), "cpu", Hooks())
    loaded = load_dense(model_card(str(tiny_models / "llama")), None, "float32", "cpu")
    decoder = loaded.model.get_decoder()
    with torch.no_grad():
        block = CalibratedBlock(decoder.layers[0], *first_inputs(decoder, calibration_windows(TEXT, loaded.tokenizer)))
        for name in LINEARS:
            whole = []
            block.watch([name], lambda _, x, whole=whole: whole.append(x.flatten(0, -2)))
            assert torch.equal(seen[name], torch.cat(whole)[::3]), name


@pytest.mark.parametrize("method", FOLDED)
def test_folding_scales_into_all_blocks_leaves_the_logits_as_they_are(tiny_models, method):
    loaded = load_dense(model_card(str(tiny_models / "llama")), None, "float32", "cpu")
    model, plan = loaded.model, plan_for(tiny_models / "llama", method)
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        hidden, kwargs = first_inputs(model.get_decoder(), calibration_windows(TEXT, loaded.tokenizer))
        norm = model.get_decoder().layers[0].post_attention_layernorm.weight.clone()
        for module in model.get_decoder().layers:
            block = CalibratedBlock(module, hidden, kwargs)
            plan.method.prepare(block, plan.spec.setting, plan.options, print)
            block.advance(hidden)
        after = model(input_ids=ids).logits
    assert not torch.equal(model.get_decoder().layers[0].post_attention_layernorm.weight, norm)
    assert (after - before).norm() < 1e-5 * before.norm()


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_dual_planes_of_a_checkpoint_are_those_that_were_trained(lab, tiny_models, family, monkeypatch):
    method, kept = METHODS["db_llm"], {}
    watched = replace(method, train=lambda training: kept.update(method.train(training)) or kept)
    monkeypatch.setitem(METHODS, "db_llm", watched)
    loaded = load_quantized(quantize(plan_for(tiny_models / family, "db_llm"), "cpu", Hooks()), "float32", "cpu")
    assert kept
    for name, buffer in kept.items():
        linear, _, key = name.rpartition(".")
        stored = loaded.model.get_decoder().layers.get_submodule(linear).weight
        assert torch.equal(getattr(stored, key), buffer), name


@pytest.mark.parametrize("method", SETTINGS)
def test_answers_are_the_same_after_loading_again_and_nothing_is_dense(lab, tiny_models, method):
    path = quantize(plan_for(tiny_models / "llama", method), "cpu", Hooks())
    answers = []
    for _ in range(2):
        loaded = load_quantized(path, "float32", "cpu")
        answers.append(decode.answer_text(loaded, None, "What is it?", max_new_tokens=12))
        held = sum(
            buffer.numel() * buffer.element_size()
            for module in loaded.model.modules()
            if isinstance(module, QuantLinear)
            for buffer in [*module.buffers(), *module.parameters()]
        )
        assert held * 8 == ledger_of(loaded.model).total_bits
        linears = [module for module in loaded.model.modules() if isinstance(module, torch.nn.Linear)]
        assert [module.out_features for module in linears] == [loaded.vocabulary], "only the output head is dense"
    assert answers[0] == answers[1]


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_records_say_what_each_linear_cost(lab, tiny_models, method, dtype):
    path = quantize(plan_for(tiny_models / "llama", method, dtype), "cpu", Hooks())
    records = Checkpoint(path).records()
    assert [(one.block, one.linear) for one in records] == [(block, name) for block in range(3) for name in LINEARS]
    assert all(0 < one.output_error < 0.5 for one in records)
    assert all(one.seconds > 0 for one in records)
    assert load_quantized(path, dtype, "cpu").stored_bits == pytest.approx(
        sum(one.stored_bits * one.out_features * one.in_features for one in records)
        / sum(one.out_features * one.in_features for one in records)
    )
    assert not (path / "training").exists()


@pytest.mark.parametrize("method", SETTINGS)
def test_a_stopped_quantization_goes_on_to_the_same_weights(lab, tiny_models, method):
    plan = plan_for(tiny_models / "llama", method)
    reference = load_quantized(quantize(plan, "cpu", Hooks()), "float32", "cpu").model
    shutil.rmtree(folders.checkpoints())
    at = []
    with pytest.raises(Stopped):
        quantize(
            plan, "cpu", Hooks(progress=at.append, should_stop=lambda: at[-1].block == 2 and at[-1].linear is not None)
        )
    assert Checkpoint(checkpoint_folder(plan.spec)).finished_blocks() == 1
    at.clear()
    again = load_quantized(quantize(plan, "cpu", Hooks(progress=at.append)), "float32", "cpu").model
    assert {progress.block for progress in at if progress.stage == "quantizing"} == {2, 3}
    assert not [progress for progress in at if progress.stage == "training"], "what was trained is kept"
    for (name, ours), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_list_of_methods_shows_them():
    columns, rows = terminal.LISTS["methods"]()
    shown = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert set(SETTINGS) <= set(shown)
    assert shown["db_llm"]["bits"] == "2"
    assert "alpha=0.85" in shown["smoothquant"]["options"]
    assert all(shown[name]["calibrated"] == "yes" for name in SETTINGS)


def test_the_halves_of_a_block_one_after_the_other_are_the_block(tiny_models):
    loaded = load_dense(model_card(str(tiny_models / "llama")), None, "float32", "cpu")
    decoder = loaded.model.get_decoder()
    with torch.no_grad():
        block = CalibratedBlock(decoder.layers[0], *first_inputs(decoder, calibration_windows(TEXT, loaded.tokenizer)))
        expected = torch.empty_like(block.hidden)
        block.advance(expected)
        for half in block.halves():
            half.advance(block.hidden)
    assert torch.equal(block.hidden, expected)


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_windows_go_through_a_block_together_changes_no_more_than_roundings(tiny_models, lab, at_once):
    errors = []
    for text in (TEXT, TEXT.model_copy(update={"at_once": at_once})):
        setting = QuantSetting(method="gptq", w_bits=4, group_size=16)
        plan = resolve_weights(WeightSpec(model=str(tiny_models / "llama"), setting=setting, calibration=text))
        quantize(plan, "cpu", Hooks())
        errors.append([record.output_error for record in layer_records(plan, "cpu", Hooks())])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
