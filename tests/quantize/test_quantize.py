"""The pipeline and its checkpoints, on models of a few thousand random weights in a folder."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from models import tiny_chat
from safetensors.torch import load_file, save_file

from quant_engine import folders
from quant_engine.checkpoints import Checkpoint, checkpoint_id, ledger_of, load_quantized
from quant_engine.data.texts import calibration_windows
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import Layer, Statistics
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks, Stopped
from quant_engine.quantize.record import histogram
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import checkpoint_folder, layer_records, quantize
from quant_engine.spec import Calibration, QuantSetting, UserError, WeightSpec


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """A tiny Llama and a tiny LLaVA-NeXT as folders on disk."""
    root = tmp_path_factory.mktemp("models")
    for name, made in (("llama", tiny_chat.llama(layers=3)), ("llava", tiny_chat.llava_next())):
        made.model.save_pretrained(root / name)
        (made.processor or made.tokenizer).save_pretrained(root / name)
    return root


TEXT = Calibration(samples=6, length=40)


def plan_for(folder, method="gptq", bits=3, group=16, **options):
    setting = QuantSetting(method=method, w_bits=bits, group_size=group, options=options)
    return resolve_weights(WeightSpec(model=str(folder), setting=setting, calibration=TEXT))


def plain_llama(folder, plan):
    """Quantizes with the whole dense model in memory: one forward per set of linears, hooks on the dense layers."""
    loaded = load_dense(model_card(str(folder)), None, "float32", "cpu")
    decoder = loaded.model.model.language_model if loaded.card.pictures else loaded.model.model
    method, setting, options = plan.method, plan.spec.setting, plan.options
    windows = calibration_windows(TEXT, loaded.tokenizer)
    for block in decoder.layers:
        for names in (LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:]):
            inputs = {}
            handles = [
                block.get_submodule(name).register_forward_pre_hook(
                    lambda module, args, name=name, inputs=inputs: inputs.setdefault(name, []).append(args[0])
                )
                for name in names
            ]
            with torch.no_grad():
                for window in windows:
                    decoder(input_ids=window[None])
            for handle in handles:
                handle.remove()
            for name in names:
                x = torch.cat(inputs[name]).reshape(-1, inputs[name][0].shape[-1])
                statistics = Statistics(2 / len(windows) * x.T @ x)
                layer = block.get_submodule(name)
                stored = method.quantize(Layer(layer.weight.data.clone(), statistics, setting, options, print))
                layer.weight.data = stored.dequantize()
    return loaded.model


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_streaming_equals_quantizing_the_whole_model_in_memory(lab, tiny_models, family, method):
    plan = plan_for(tiny_models / family, method)
    loaded = load_quantized(quantize(plan, "cpu", Hooks()), "float32", "cpu")
    expected = plain_llama(tiny_models / family, plan)
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model(input_ids=ids).logits, expected(input_ids=ids).logits, atol=2e-3)
    quantized = [name for name, module in loaded.model.named_modules() if isinstance(module, QuantLinear)]
    assert len(quantized) == len(LINEARS) * len(expected.get_decoder().layers)
    assert not any("vision" in name for name in quantized)


def test_dense_loading_equals_from_pretrained(tiny_models):
    for family, made in (("llama", tiny_chat.llama(layers=3)), ("llava", tiny_chat.llava_next())):
        loaded = load_dense(model_card(str(tiny_models / family)), None, "float32", "cpu")
        ids = torch.arange(4, 44)[None]
        with torch.no_grad():
            assert torch.equal(loaded.model(input_ids=ids).logits, made.model(input_ids=ids).logits)


def test_both_namings_of_llava_weights_are_understood(tiny_models, tmp_path):
    """The hub's files say language_model.model.layers…, transformers' modules model.language_model.layers…"""
    other = shutil.copytree(tiny_models / "llava", tmp_path / "other")
    tensors = tiny_chat.llava_next().model.state_dict()
    assert set(tensors) != set(load_file(tiny_models / "llava" / "model.safetensors"))
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        logits = [
            load_dense(model_card(str(folder)), None, "float32", "cpu").model(input_ids=ids).logits
            for folder in (other, tiny_models / "llava")
        ]
    assert torch.equal(*logits)


def test_the_same_setting_is_found_and_not_quantized_again(lab, tiny_models):
    plan = plan_for(tiny_models / "llama")
    path = quantize(plan, "cpu", Hooks())
    seen = []
    assert quantize(plan, "cpu", Hooks(progress=seen.append)) == path
    assert seen == []


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_stopped_quantization_goes_on_behind_its_last_finished_block(lab, tiny_models, method):
    plan = plan_for(tiny_models / "llama", method)
    reference = load_quantized(quantize(plan, "cpu", Hooks()), "float32", "cpu").model
    shutil.rmtree(folders.checkpoints())

    at = []
    with pytest.raises(Stopped):
        quantize(
            plan, "cpu", Hooks(progress=at.append, should_stop=lambda: at[-1].block == 2 and at[-1].linear is not None)
        )
    finished = Checkpoint(checkpoint_folder(plan.spec))
    assert finished.finished_blocks() == 1
    before = (finished.path / "000.safetensors").stat().st_mtime_ns

    at.clear()
    path = quantize(plan, "cpu", Hooks(progress=at.append))
    assert {progress.block for progress in at if progress.stage == "quantizing"} == {2, 3}
    assert (path / "000.safetensors").stat().st_mtime_ns == before
    again = load_quantized(path, "float32", "cpu").model
    for (name, ours), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_block_that_is_missing_is_made_again(lab, tiny_models):
    plan = plan_for(tiny_models / "llama", "rtn")
    path = quantize(plan, "cpu", Hooks())
    (path / "quantization.json").unlink()
    (path / "002.safetensors").rename(path / ".002.safetensors-half.part")
    load_quantized(quantize(plan, "cpu", Hooks()), "float32", "cpu")


def test_when_all_blocks_are_there_no_calibration_goes_through_them(lab, tiny_models):
    plan, stages = plan_for(tiny_models / "llama"), []
    path = quantize(plan, "cpu", Hooks())
    (path / "quantization.json").unlink()
    quantize(plan, "cpu", Hooks(progress=lambda progress: stages.append(progress.stage)))
    assert Checkpoint(path).is_complete()
    assert set(stages) == {"loading"}


def test_memory_and_files_agree_with_the_ledger(lab, tiny_models):
    plan = plan_for(tiny_models / "llama")
    path = quantize(plan, "cpu", Hooks())
    loaded = load_quantized(path, "float32", "cpu")
    ledger = ledger_of(loaded.model)
    held = sum(
        buffer.numel() * buffer.element_size()
        for module in loaded.model.modules()
        if isinstance(module, QuantLinear)
        for buffer in module.weight.buffers()
    )
    assert held * 8 == ledger.total_bits
    assert loaded.stored_bits == pytest.approx(ledger.bits_per_weight)


def test_records_say_what_each_linear_cost(lab, tiny_models):
    for method in ("gptq", "rtn"):
        plan = plan_for(tiny_models / "llama", method)
        quantize(plan, "cpu", Hooks())
        records = layer_records(plan, "cpu", Hooks())
        assert [(one.block, one.linear) for one in records] == [(b, name) for b in range(3) for name in LINEARS]
        assert all(0 < one.output_error < one.weight_error * 3 for one in records)
        assert all(one.weight_error < 0.1 for one in records)


def test_records_count_the_weights_before_and_after(lab, tiny_models):
    plan = plan_for(tiny_models / "llama", "rtn")
    path = quantize(plan, "cpu", Hooks())
    card = model_card(str(tiny_models / "llama"))
    dense = load_dense(card, None, "float32", "cpu").model.model.layers[1].self_attn.q_proj.weight
    stored = load_quantized(path, "float32", "cpu").model.model.layers[1].self_attn.q_proj.weight.dequantize()
    records = layer_records(plan, "cpu", Hooks())
    record = next(one for one in records if (one.block, one.linear) == (1, "self_attn.q_proj"))
    reach = record.weights_reach
    assert reach == pytest.approx(4.5 * dense.square().mean().sqrt().item())
    for counts, weight in ((record.weights_before, dense), (record.weights_after, stored)):
        edges = np.linspace(-reach, reach, len(counts) + 1)
        plain = np.histogram(weight.detach().numpy().clip(-reach, reach), edges)[0]
        assert sum(counts) == weight.numel()
        assert np.abs(np.array(counts) - plain).sum() <= 4  # of weights at the edge between two parts
    assert max(record.weights_after) > max(record.weights_before)


@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("gptq", 4), ("quip", 4), ("billm", 1.1)])
def test_a_linear_that_is_all_zero_loses_nothing(lab, tmp_path, method, bits):
    model = tiny_chat.llama()
    model.model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    model.model.save_pretrained(tmp_path / "zero")
    model.tokenizer.save_pretrained(tmp_path / "zero")
    group = 16 if method in ("rtn", "gptq") else None
    setting = QuantSetting(method=method, w_bits=bits, group_size=group)
    plan = resolve_weights(
        WeightSpec(model=str(tmp_path / "zero"), setting=setting, calibration=Calibration(samples=2, length=32))
    )
    quantize(plan, "cpu", Hooks(lambda progress: None))
    records = layer_records(plan, "cpu", Hooks())
    assert (records[3].linear, records[3].weight_error, records[3].output_error) == ("self_attn.o_proj", 0, 0)
    assert all(math.isfinite(record.weight_error) for record in records)


def test_weights_that_are_all_zero_or_no_number_have_a_histogram():
    assert sum(histogram(torch.zeros(3, 5), 1.0)) == 15
    assert sum(histogram(torch.tensor([0.1, float("nan"), float("inf"), -float("inf")]), 1.0)) == 3


def test_damaged_weights_are_one_sentence(lab, tiny_models, tmp_path):
    path = quantize(plan_for(tiny_models / "llama", "rtn"), "cpu", Hooks())
    (path / "001.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged: delete that folder"):
        load_quantized(path, "float32", "cpu")
    broken = shutil.copytree(tiny_models / "llama", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cut off or damaged"):
        load_dense(model_card(str(broken)), None, "float32", "cpu")


def test_calibration_text_too_short_is_one_sentence(lab, tiny_models, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    plan = plan_for(tiny_models / "llama")
    short = plan.spec.model_copy(update={"calibration": Calibration(source=str(text), length=40)})
    with pytest.raises(UserError, match="too few for windows of 40"):
        quantize(resolve_weights(short), "cpu", Hooks())


def test_other_weights_in_the_same_folder_make_another_checkpoint(lab, tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "llama", tmp_path / "model")
    first = plan_for(folder)
    (folder / "model.safetensors").write_bytes((tiny_models / "llama" / "model.safetensors").read_bytes())
    assert checkpoint_id(plan_for(folder).spec) != checkpoint_id(first.spec)


def test_a_folder_with_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no config.json"):
        model_card(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="only llama and llava_next"):
        model_card(str(tmp_path))
