"""A whole fine-tuning on tiny models: what it learns, killed and resumed, merged and unmerged."""

import json
import os
import shutil
import signal
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file

from quant_engine import folders
from quant_engine.checkpoints import Checkpoint, ledger_of, load_quantized
from quant_engine.finetune import adapters, examples, training
from quant_engine.finetune.merge import merge
from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense, load_tokenizer
from quant_engine.progress import Hooks, Stopped
from quant_engine.runs import execute, folder
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import checkpoint_folder
from quant_engine.spec import RunSpec, UserError
from quant_engine.weights.low_rank import LowRank

IDS = torch.arange(4, 60)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_prompts_begin_and_answers_end_as_the_model_s_texts_do_and_long_ones_are_cut(plan_for, tiny_models):
    plan = plan_for(source_length=12, target_length=5, held_out=0)
    tokenizer = load_tokenizer(tiny_models / "llama")
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    made = examples.load(plan.options, plan.card, tokenizer, None, torch.float32, 512).train
    assert all(one.source[0] == tokenizer.bos_token_id and len(one.source) == 12 for one in made)
    whole = {len(one.target) for one in made if one.target[-1] == tokenizer.eos_token_id}
    cut = [one for one in made if one.target[-1] != tokenizer.eos_token_id]
    assert whole
    assert max(whole) <= 5
    assert cut
    assert all(len(one.target) == 5 for one in cut)


@pytest.mark.parametrize("method", ["qlora", "ir_qlora"])
def test_training_lowers_the_loss_of_data_it_has_not_seen(plan_for, fine_tune, method):
    seen = []
    path = fine_tune(plan_for(method, steps=30), progress=seen.append)
    about = Checkpoint(path).about()["fine_tuning"]
    assert about["held_out_loss_after"] < 0.9 * about["held_out_loss_before"]
    assert (about["train_examples"], about["held_out_examples"], about["steps"]) == (22, 2, 30)
    assert (about["shortcuts"] is not None) == (method == "ir_qlora")
    fractions = [progress.fraction for progress in seen if progress.stage != "loading"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert any(progress.stage == "training" and progress.eta_s for progress in seen)


def test_the_base_stays_frozen_and_the_adapters_lie_beside_it_in_the_ledger(plan_for, fine_tune):
    tuned = load_quantized(fine_tune(plan_for("qlora")), "float32", "cpu")
    spec = plan_for("qlora").spec
    setting = spec.setting.model_copy(update={"method": "normal_float", "options": {}})
    base = load_quantized(fine_tune(resolve_weights(spec.model_copy(update={"setting": setting}))), "float32", "cpu")
    frozen = dict(base.model.named_modules())
    count = 0
    for name, module in tuned.model.named_modules():
        if isinstance(module, QuantLinear):
            count += 1
            assert isinstance(module.weight, LowRank)
            for buffer, value in frozen[name].weight.named_buffers():
                assert torch.equal(value, module.weight.base.get_buffer(buffer)), name
    assert count == 2 * len(LINEARS)
    ledger = ledger_of(tuned.model)
    held = [b for m in tuned.model.modules() if isinstance(m, QuantLinear) for b in m.weight.buffers()]
    assert ledger.total_bits == 8 * sum(buffer.nbytes for buffer in held)
    features = sum(m.in_features + m.out_features for m in tuned.model.modules() if isinstance(m, QuantLinear))
    assert ledger.bits["adapter"] == 16 * 4 * features
    assert tuned.stored_bits == pytest.approx(base.stored_bits + 16 * 4 * features / ledger.weights)


def test_records_and_files_count_the_adapters(plan_for, fine_tune):
    path = fine_tune(plan_for("ir_qlora"))
    checkpoint = Checkpoint(path)
    tuned = load_quantized(path, "float32", "cpu")
    records = checkpoint.records()
    assert [(one.block, one.linear) for one in records] == [(b, name) for b in range(2) for name in LINEARS]
    weights = [one.out_features * one.in_features for one in records]
    stored = sum(one.stored_bits * count for one, count in zip(records, weights, strict=True))
    assert stored / sum(weights) == pytest.approx(tuned.stored_bits)
    assert not (path / "training").exists()
    in_files = sum(t.nbytes for f in path.glob("*.safetensors") for n, t in load_file(f).items() if "norm" not in n)
    assert in_files * 8 == ledger_of(tuned.model).total_bits


TRAIN = """
import sys
import numba, torch
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import checkpoint_folder
from quant_engine.finetune import training
from quant_engine.finetune import training
from quant_engine.progress import Hooks
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import quantize
from quant_engine.spec import WeightSpec
torch.set_num_threads(1)
numba.set_num_threads(1)
training.SAVE_SECONDS = 0.0
plan = resolve_weights(WeightSpec.model_validate_json(sys.argv[1]))
quantize(plan, "cpu", Hooks(log=lambda line: print(line, flush=True)))
"""


def in_a_process(spec):
    """A training in a process of its own. One thread, so that sums are added up in the same order every time."""
    return forked.Python(["-c", TRAIN, spec.model_dump_json()])


def printed(process):
    """What a process that ends well prints."""
    text = process.stdout.read().decode()
    assert process.wait() == 0
    return text


@pytest.mark.parametrize("method", ["qlora", "ir_qlora"])
def test_a_killed_training_goes_on_and_ends_with_the_same_adapters(plan_for, method):
    """Killed in the middle of a step, with dropout, so that the random numbers have to be the same too."""
    spec = plan_for(method, dropout=0.1, steps=24).spec
    printed(in_a_process(spec))
    path = checkpoint_folder(spec)
    reference = load_quantized(path, "float32", "cpu").model.state_dict()
    shutil.rmtree(folders.checkpoints())

    killed = in_a_process(spec)
    for line in killed.stdout:
        if line.startswith(b"step 5 of"):
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    assert not Checkpoint(path).is_complete()
    assert (path / "training" / "state.safetensors").exists()

    said = printed(in_a_process(spec))
    (resumed,) = [line for line in said.splitlines() if "were done before" in line]
    done = int(resumed.split()[0])
    assert done >= 4
    assert f"step {done} of 24" not in said
    again = load_quantized(path, "float32", "cpu").model.state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in again.items())


def test_a_stopped_training_keeps_its_last_step(plan_for, fine_tune):
    seen = []
    with pytest.raises(Stopped):
        fine_tune(plan_for(), progress=seen.append, should_stop=lambda: "step 3 of" in seen[-1].message)
    lines = []
    fine_tune(plan_for(), log=lines.append)
    assert any(line.startswith("3 of 8 training steps were done before") for line in lines)


def test_adapters_written_halfway_into_the_blocks_do_no_harm(plan_for, fine_tune, monkeypatch):
    """Killed between two blocks when the adapters are written: the base is still there, and training's state too."""
    plan = plan_for("ir_qlora")
    reference = load_quantized(fine_tune(plan), "float32", "cpu").model.state_dict()
    shutil.rmtree(folders.checkpoints())
    save = Checkpoint.save_block

    def once(self, index, block, records):
        if index == 1 and isinstance(block.get_submodule(LINEARS[0]).weight, LowRank):
            raise KeyboardInterrupt
        save(self, index, block, records)

    monkeypatch.setattr(Checkpoint, "save_block", once)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(plan)
    monkeypatch.setattr(Checkpoint, "save_block", save)
    lines = []
    again = load_quantized(fine_tune(plan, log=lines.append), "float32", "cpu").model.state_dict()
    assert any("8 of 8 training steps were done before" in line for line in lines)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in again.items())


def test_no_moment_while_adapters_are_written_loses_them(plan_for, fine_tune, monkeypatch):
    """Killed before each rename after training, one after the other, until the checkpoint is finished."""
    plan = plan_for("qlora", steps=2)
    reference = load_quantized(fine_tune(plan), "float32", "cpu").model.state_dict()
    shutil.rmtree(folders.checkpoints())
    replace, settle, kills = Path.replace, training.adapters.settle, 0

    def killed(path, target):
        if not alive:
            raise KeyboardInterrupt
        alive.pop()
        return replace(path, target)

    def settled(model):
        settle(model)
        monkeypatch.setattr(Path, "replace", killed)

    monkeypatch.setattr(training.adapters, "settle", settled)
    finished = False
    while not finished:
        alive = [None] * kills
        try:
            path = fine_tune(plan)
            finished = True
        except KeyboardInterrupt:
            kills += 1
        monkeypatch.setattr(Path, "replace", replace)
    assert kills == len(load_dense(plan.card, None, "float32", "cpu").model.model.layers) + 1
    again = load_quantized(path, "float32", "cpu").model.state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in again.items())


@pytest.mark.parametrize("method", ["qlora", "ir_qlora"])
def test_merged_and_unmerged_models_answer_alike(plan_for, fine_tune, tmp_path, method):
    """In float32 both compute base + adapter, added up in another order: they agree to 1e-4 of the largest logit."""
    path = fine_tune(plan_for(method, steps=20))
    tuned = load_quantized(path, "float32", "cpu")
    merge(path, tmp_path / "merged")
    merged = load_dense(model_card(str(tmp_path / "merged")), None, "float32", "cpu")
    expected = logits(tuned.model)
    assert (logits(merged.model) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert load_tokenizer(tmp_path / "merged").get_vocab() == tuned.tokenizer.get_vocab()
    with pytest.raises(UserError, match="is there already"):
        merge(path, tmp_path / "merged")

    # The adapters matter: the model without them answers otherwise.
    adapters.unsettle(tuned.model)
    assert (logits(tuned.model) - expected).abs().max() > 0.01 * expected.abs().max()


def test_shortcuts_merged_into_the_factors_measure_the_same_as_while_training(plan_for, fine_tune, monkeypatch):
    """The stored factors are rounded to float16, 11 bits: the loss moves in the fourth digit at most."""
    losses = {}
    settle = adapters.settle

    def watched(model):
        batch = examples.batches([examples.Example([1, 5, 9], [30, 31, 32, 2])], 64, "cpu")[0]
        losses["unmerged"] = measured(model, batch)
        settle(model)
        losses["merged"] = measured(model, batch)

    def measured(model, batch):
        from quant_engine.finetune.training import summed_loss

        with torch.no_grad():
            return summed_loss(model, batch).item()

    monkeypatch.setattr(adapters, "settle", watched)
    fine_tune(plan_for("ir_qlora", steps=20))
    assert losses["merged"] == pytest.approx(losses["unmerged"], rel=5e-4)


def test_an_adapter_that_gets_no_gradient_fails_the_run_at_once(plan_for, fine_tune, monkeypatch):
    forward = adapters.LoraQuantLinear.forward

    def cut(self, x):
        return forward(self, x).detach() if self.out_features == 64 else forward(self, x)

    monkeypatch.setattr(adapters.LoraQuantLinear, "forward", cut)
    lines = []
    with pytest.raises(UserError, match="has no gradient: it would not learn"):
        fine_tune(plan_for(gradient_checkpointing=False), log=lines.append)
    assert not any(line.startswith("step") for line in lines)


def test_training_that_diverges_is_said(plan_for, fine_tune, monkeypatch):
    monkeypatch.setattr(
        "quant_engine.finetune.training.summed_loss",
        lambda model, part: sum(p.square().sum() for p in adapters.trained(model).values()) * float("nan"),
    )
    monkeypatch.setattr("quant_engine.finetune.adapters.check_gradients", lambda model: None)
    with pytest.raises(UserError, match="diverged in step 1; try a smaller learning_rate"):
        fine_tune(plan_for(held_out=0))


def test_checkpointed_gradients_train_the_same_adapters(plan_for, fine_tune):
    models = [
        load_quantized(fine_tune(plan_for(gradient_checkpointing=on)), "float32", "cpu").model for on in (True, False)
    ]
    assert torch.allclose(logits(models[0]), logits(models[1]), atol=1e-4)


def test_a_multimodal_model_learns_from_the_demo_items_and_from_text(plan_for, fine_tune):
    before, after = (
        Checkpoint(
            fine_tune(plan_for("ir_qlora", "llava", data="demo", steps=12, batch=2, held_out=4, target_length=8))
        ).about()["fine_tuning"][f"held_out_loss_{when}"]
        for when in ("before", "after")
    )
    assert after < before
    path = fine_tune(plan_for("qlora", "llava"))
    tuned = load_quantized(path, "float32", "cpu")
    packed = [name for name, module in tuned.model.named_modules() if isinstance(module, QuantLinear)]
    assert len(packed) == 2 * len(LINEARS)
    assert not any("vision" in name for name in packed)


def test_data_that_can_not_be_used_are_said_before_any_work(plan_for, fine_tune, data):
    seen = []
    with pytest.raises(UserError, match="The demo items have pictures, and llama is a text model"):
        fine_tune(plan_for(data="demo"), progress=seen.append)
    assert {progress.stage for progress in seen} <= {"loading"}
    plan = plan_for()
    text = data.read_text()
    data.write_text(json.dumps(json.loads(text)[:-1]))
    try:
        with pytest.raises(UserError, match="have changed since this run was made"):
            fine_tune(resolve_weights(plan.spec))
    finally:
        data.write_text(text)


def test_a_run_is_on_the_fine_tuning_track_with_all_its_bits(plan_for):
    spec = RunSpec(weights=plan_for("ir_qlora").spec, tasks=("perplexity",), window=64, limit=2)
    path = execute.execute(spec, Hooks())
    result = folder.read(path).results[0]
    assert result.track == "lora_ft"
    # The base alone takes 4.3.
    assert result.stored_bits == pytest.approx(4.32 + 16 * 4 * 928 / 18432, abs=0.4)
    assert "held-out loss" in (path / "log.txt").read_text()
    about = json.loads((path / "run.json").read_text())["fine_tuning"]
    assert about["held_out_loss_after"] < about["held_out_loss_before"]


def test_examples_are_each_taken_once_an_epoch_and_answers_alone_are_learned():
    made = [examples.Example([1] * length, [2, 3]) for length in range(1, 24)]
    several = examples.Examples(made, [], "")
    first = [one for step in range(5) for one in several.step(step, 4, run_seed=0)]
    second = several.step(5, 4, run_seed=0)
    assert sorted(len(one) for one in [*first, *second[:3]]) == sorted(map(len, made))
    assert several.step(2, 4, 0) == several.step(2, 4, 0)
    assert several.step(2, 4, 0) != several.step(2, 4, 1)
    parts = examples.batches(made, most_tokens=64, device="cpu")
    assert sum(len(part["input_ids"]) for part in parts) == 23
    assert all(part["input_ids"].numel() <= 64 for part in parts)
    assert sum(int((part["labels"] != -100).sum()) for part in parts) == 2 * 23


def test_the_order_puts_examples_of_similar_length_together():
    made = [examples.Example([1] * (1 + 7 * i % 100), [2]) for i in range(100)]
    several = examples.Examples(made, [], "")
    spread = lambda ones: max(map(len, ones)) - min(map(len, ones))  # noqa: E731
    assert max(spread(several.step(step, 10, 0)) for step in range(10)) < 12


def test_saving_takes_no_more_than_one_state_file(plan_for, fine_tune, monkeypatch):
    monkeypatch.setattr("quant_engine.finetune.training.SAVE_SECONDS", 0.0)
    seen = []
    with pytest.raises(Stopped):
        fine_tune(plan_for(), progress=seen.append, should_stop=lambda: "step 4 of" in seen[-1].message)
    (path,) = (path for path in folders.checkpoints().iterdir() if path.is_dir())
    assert [one.name for one in (path / "training").iterdir()] == ["state.safetensors"]
    (path / "training" / "state.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="state of training is damaged"):
        fine_tune(plan_for())
