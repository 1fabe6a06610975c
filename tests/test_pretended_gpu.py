"""The whole pipeline on a pretended GPU: no tensor lies on the wrong device, and what a GPU does slowly is known."""

import os

import pytest
import torch
from evaluate import local_sets
from models import tiny_chat
from PIL import Image
from pretended_gpu import pretended_gpu
from test_gpu import WHOLE, label, says

from quant_engine.kernels import matmul
from quant_engine.methods import METHODS
from quant_engine.models import decode
from quant_engine.models.batch import Asked, answers
from quant_engine.models.open_answers import OpenAnswers
from quant_engine.progress import Hooks
from quant_engine.runs import folder, weights
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, RunSpec, WeightSpec

PICTURE = Image.new("RGB", (60, 40), "teal")
IN_FLOAT64 = {
    "methods/quip.py": "as its reference computes",
    "methods/gptq.py": "where a Hessian can't be factored in float32",
    "methods/billm.py": "a few break points",
    "methods/slim_llm.py": "sums that must not depend on their order",
    "weights/rotated.py": "the rotations that QuIP quantizes with",
    "quantize/whole_model.py": "the seconds that training took",
}
"""The files that may compute in float64 on a GPU, and why."""


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU without Triton, whose interpreter takes too long for whole models."""
    monkeypatch.setattr(matmul, "_triton", lambda: None)
    with pretended_gpu(monkeypatch) as seen:
        yield seen


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """A few questions with choices."""
    local_sets.jsonl(tmp_path / "data" / "arc_easy_test.jsonl", local_sets.ARC)
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path / "data"))


def test_what_a_gpu_refuses_is_refused(gpu):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here.add_(there),
        lambda: torch.mm(there[None], here[:, None]),
        lambda: here[there.long()],
        lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match=r"two devices|of the CPU"):
            mixed()
    with pytest.raises(TypeError):
        there.numpy()
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 2])].device.type == "cuda"


def run_on_gpu(model, setting, tasks):
    """The tasks that were measured; the plan of the weights."""
    spec = WeightSpec(model=str(model), setting=setting, calibration=Calibration(samples=2, length=40))
    run = RunSpec(weights=spec, tasks=tasks, window=40, limit=1, device="cuda", dtype="bfloat16")
    results = folder.read(execute(run, Hooks())).results
    return {result.task for result in results}, resolve_weights(spec)


@pytest.mark.parametrize("setting", WHOLE if "LOWBIT_LARGE_TESTS" in os.environ else WHOLE[::3], ids=label)
def test_every_method_quantizes_a_model_that_is_measured_and_asked(gpu, lab, questions, tiny_models, tmp_path, setting):
    if METHODS[setting.method].fine_tunes:
        options = {**setting.options, "data": says(tmp_path), "steps": 2, "held_out": 1}
        options |= {"search_steps": 5} if setting.method == "ir_qlora" else {}
        setting = setting.model_copy(update={"options": options})
    measured, plan = run_on_gpu(tiny_models / "llava", setting, ("arc_easy", "perplexity"))
    assert measured >= {"arc_easy", "perplexity"}
    loaded = weights.load(plan, "float32", "cuda", Hooks())
    *_, last = decode.answer(loaded, PICTURE, "What is it?", max_new_tokens=2)
    assert len(last.tokens) == 2
    in_float64 = {line.partition(":")[0] for line in gpu.float64}
    assert in_float64 <= IN_FLOAT64.keys(), gpu.float64


def test_every_kind_of_task_is_measured(gpu, lab, questions, tiny_models):
    tasks = {"arc_easy", "demo-chartqa", "demo-mme", "divergence", "divergence:demo-docvqa", "perplexity"}
    measured, _ = run_on_gpu(tiny_models / "llava", QuantSetting(), tuple(tasks))
    assert measured >= tasks


def test_answers_are_decoded_together(gpu):
    made = tiny_chat.llava_next()
    alone = [decode.answer_text(made, PICTURE, question, max_new_tokens=3) for question in ("A?", "What?")]
    made.model.to("cuda")
    asked = Asked(lambda: PICTURE, ["A?", "What?"], [0, 1], [3, 3])
    assert [answered.text for answered in sorted(answers(made, [asked]), key=lambda one: one.index)] == alone
    open_answers = OpenAnswers(made, decode.PictureCache())
    joined = [open_answers.join(PICTURE, question, 3) for question in ("A?", "What?")]
    while open_answers.answers:
        for group in open_answers.groups():
            open_answers.advance(group)
    assert [one.last.text.strip() for one in joined] == alone


def test_what_the_processor_waits_for_in_a_token_is_the_token(gpu):
    made = tiny_chat.llama()
    made.model.to("cuda")
    steps = decode.answer(made, None, "What is it?", max_new_tokens=4)
    next(steps)
    gpu.waits.clear()
    next(steps)
    assert {line.partition(":")[0]: count for line, count in gpu.waits.items()} == {"models/decode.py": 1}


def test_the_kernels_are_used_where_triton_is(monkeypatch, tmp_path, lab, tiny_models):
    pytest.importorskip("triton")
    setting = QuantSetting(method="rtn", w_bits=3, group_size=16)
    with pretended_gpu(monkeypatch):
        spec = WeightSpec(model=str(tiny_models / "llama"), setting=setting)
        there = weights.load(resolve_weights(spec), "float32", "cuda", Hooks())
        ids = torch.arange(4, 7, device="cuda")[None]
        linear = there.model.model.layers[0].mlp.up_proj
        assert matmul._triton().fits(linear.weight, torch.float32)
        with torch.inference_mode():
            logits = there.model(input_ids=ids).logits.cpu()
    here = weights.load(resolve_weights(spec), "float32", "cpu", Hooks())
    with torch.inference_mode():
        torch.testing.assert_close(logits, here.model(input_ids=torch.arange(4, 7)[None]).logits, rtol=1e-4, atol=1e-4)
