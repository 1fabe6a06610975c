"""Quantized weights are made once, found by whoever needs the same ones, and taken over from elsewhere."""

import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from models import tiny_chat
from PIL import Image

from quant_engine import memory
from quant_engine.answers import worker
from quant_engine.checkpoints import Checkpoint
from quant_engine.models.catalog import model_card
from quant_engine.models.decode import answer_text
from quant_engine.models.load import Skeleton, load_dense
from quant_engine.progress import Hooks, Stopped
from quant_engine.runs import weights
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve, resolve_weights
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

RTN = QuantSetting(method="rtn", w_bits=3, group_size=16)


@pytest.fixture
def plan(lab, tiny_models):
    return resolve_weights(WeightSpec(model=str(tiny_models / "llama"), setting=RTN))


@pytest.fixture
def moved(plan, tmp_path):
    """A finished checkpoint that lies elsewhere, and nothing where it was made."""
    return shutil.move(weights.quantize(plan, "cpu", Hooks()), tmp_path / "moved")


def stages_of(function):
    stages = []
    function(Hooks(lambda progress: stages.append(progress.stage)))
    return stages


def test_runs_and_answers_in_any_type_and_on_any_device_share_their_weights(plan, monkeypatch):
    """On a GPU runs and answers compute in bfloat16; what was quantized for the one serves the other."""
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        spec = RunSpec(
            weights=WeightSpec(model=plan.spec.model, setting=RTN), tasks=("piqa",), dtype=dtype, device=device
        )
        assert resolve(spec).weights == plan
    weights.quantize(plan, "cpu", Hooks())
    monkeypatch.setattr(worker, "default_dtype", lambda device: "bfloat16")
    stages = []
    assert worker.resolve(plan.spec.model, RTN) == (plan.spec, False)
    loaded = worker.load_weights(plan.spec, None, lambda progress: stages.append(progress.stage))
    assert loaded.model.dtype == torch.bfloat16
    assert set(stages) == {"loading"}


def test_settings_of_a_model_hold_once_what_they_have_in_common_and_answer_as_alone(lab, tiny_models):
    plans = [resolve_weights(WeightSpec(model=str(tiny_models / "llava"), setting=s)) for s in (QuantSetting(), RTN)]
    alone = [weights.load(plan, "float32", "cpu", Hooks()) for plan in plans]
    sibling = weights.load(plans[0], "float32", "cpu", Hooks())
    shared = weights.load(plans[1], "float32", "cpu", Hooks(), sibling)
    for name in ("vision_tower", "multi_modal_projector", "language_model.embed_tokens", "language_model.norm"):
        ours, theirs = (loaded.model.model.get_submodule(name).parameters() for loaded in (shared, sibling))
        assert all(mine is other for mine, other in zip(ours, theirs, strict=True))
    blocks = [loaded.model.model.language_model.layers.state_dict().values() for loaded in (shared, sibling)]
    assert not {t.data_ptr() for t in blocks[0]} & {t.data_ptr() for t in blocks[1]}
    assert shared.weight_bytes == alone[1].weight_bytes
    assert len({**shared.storages, **sibling.storages}) < len(shared.storages) + len(sibling.storages)
    picture = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    texts = [answer_text(loaded, picture, "What?", 12) for loaded in (*alone, sibling, shared)]
    assert texts[:2] == texts[2:]
    other_type = weights.load(plans[1], "bfloat16", "cpu", Hooks(), sibling)
    assert not other_type.storages.keys() & sibling.storages.keys()


def test_unquantized_weights_are_the_model_itself(lab, tiny_models):
    plan = resolve_weights(WeightSpec(model=str(tiny_models / "llama")))
    loaded = weights.load(plan, "float32", "cpu", Hooks())
    dense = load_dense(plan.card, None, "float32", "cpu")
    assert loaded.stored_bits == 16
    assert torch.equal(loaded.model.lm_head.weight, dense.model.lm_head.weight)


def test_a_moved_checkpoint_is_measured_and_not_quantized_again(plan, moved):
    before = (moved / "000.safetensors").read_bytes()
    weights.adopt(moved, Hooks())
    run = RunSpec(weights=plan.spec, tasks=("perplexity",), window=64, limit=2)
    assert "quantizing" not in stages_of(lambda hooks: execute(run, hooks))
    home = weights.checkpoint_folder(plan.spec)
    assert (home / "000.safetensors").read_bytes() == before
    weights.adopt(home, Hooks())
    weights.adopt(moved, Hooks())


def test_the_same_weights_made_twice_are_the_same_although_they_took_other_times(plan, moved):
    home = weights.quantize(plan, "cpu", Hooks())
    assert (home / "000.safetensors").read_bytes() != (moved / "000.safetensors").read_bytes()
    weights.adopt(moved, Hooks())


def test_a_checkpoint_is_not_taken_over_others_of_the_same_setting(plan, moved):
    home = weights.quantize(plan, "cpu", Hooks())
    shutil.copyfile(home / "000.safetensors", moved / "001.safetensors")
    before = (home / "001.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds other weights than .* delete one of them"):
        weights.adopt(moved, Hooks())
    assert (home / "001.safetensors").read_bytes() == before


def test_what_can_not_be_taken_over_is_said(plan, moved, tmp_path, monkeypatch):
    (moved / "001.safetensors").rename(tmp_path / "001.safetensors")
    with pytest.raises(UserError, match="damaged"):
        weights.adopt(moved, Hooks())
    (moved / "quantization.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="made by another version"):
        weights.adopt(moved, Hooks())
    (moved / "quantization.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        weights.adopt(moved, Hooks())
    assert not weights.checkpoint_folder(plan.spec).exists()


def test_weights_of_another_version_of_the_model_are_refused(lab, tiny_models, tmp_path):
    model = shutil.copytree(tiny_models / "llama", tmp_path / "model")
    path = weights.quantize(resolve_weights(WeightSpec(model=str(model), setting=RTN)), "cpu", Hooks())
    shutil.copyfile(tiny_models / "llama" / "model.safetensors", model / "model.safetensors")
    with pytest.raises(UserError, match="were made from another version of model"):
        weights.adopt(path, Hooks())


def test_a_process_waits_while_another_makes_the_same_weights_and_can_be_stopped(plan, monkeypatch):
    monkeypatch.setattr(weights, "LOCK_S", 0.01)
    entered, leave = threading.Event(), threading.Event()
    make = weights._make

    def slow(*arguments):
        entered.set()
        leave.wait(10)
        make(*arguments)

    monkeypatch.setattr(weights, "_make", slow)
    first = threading.Thread(target=weights.quantize, args=(plan, "cpu", Hooks()))
    first.start()
    assert entered.wait(10)
    stages = []
    with pytest.raises(Stopped):
        weights.quantize(plan, "cpu", Hooks(lambda p: stages.append(p.stage), lambda: len(stages) == 3))
    assert stages == ["waiting"] * 3
    leave.set()
    assert Checkpoint(weights.quantize(plan, "cpu", Hooks())).is_complete()
    first.join()


def test_a_folder_that_can_not_be_written_is_said(plan, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"can't be written .* set LOWBIT_HOME"):
        weights.quantize(plan, "cpu", Hooks())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_a_model_takes_in_memory_is_known_before_it_is_loaded(tmp_path, dtype, monkeypatch):
    tiny = tiny_chat.llava_next()
    tiny.model.to(dtype).save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = worker.load_weights(worker.resolve(str(tmp_path), QuantSetting())[0], None, lambda progress: None)
    skeleton = Skeleton(loaded.card, tmp_path, torch.float32, "cpu", in_halves=True)
    assert skeleton.weight_bytes == pytest.approx(loaded.weight_bytes, rel=0.01)  # rows that fill up tiles
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    most = min(skeleton.weight_bytes, 2 * on_disk)  # it would be as many in 32 bits
    for available, enough in ((2 * skeleton.weight_bytes + 2, True), (2 * most, False)):
        machine = SimpleNamespace(total=2**40, available=available)
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda machine=machine: machine)
        assert worker.has_room(str(tmp_path)) == enough


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_that_the_files_have_in_float32_are_held_as_halves(tmp_path, dtype):
    tiny = tiny_chat.llama()
    for name, stored in (("half", dtype), ("whole", torch.float32)):
        tiny.model.to(dtype).to(stored).save_pretrained(tmp_path / name)
        tiny.tokenizer.save_pretrained(tmp_path / name)
    half, whole = (
        load_dense(model_card(str(tmp_path / name)), None, "float32", "cpu", in_halves=True)
        for name in ("half", "whole")
    )
    assert whole.weight_bytes == half.weight_bytes < sum(4 * p.numel() for p in tiny.model.parameters())
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        assert torch.equal(whole.model(input_ids=ids).logits, half.model(input_ids=ids).logits)
