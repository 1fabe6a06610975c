"""Divergence from the unquantized model, against a plain computation and against real greedy answers."""

import copy
from dataclasses import replace

import pytest
import torch
from evaluate import tiny
from PIL import Image

from quant_engine.data import texts
from quant_engine.evaluate import TASKS, Watch, divergence, parse_result_name, parse_task
from quant_engine.evaluate.divergence import compare_along, token_shifts
from quant_engine.models import batch
from quant_engine.models.batch import Asked
from quant_engine.models.decode import PictureCache, answer, answer_states, prompt_inputs
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

RTN = QuantSetting(method="rtn", w_bits=4)


def perturbed(loaded, amount=0.05, seed=1):
    """The same model with noise on its linears, as quantization makes it."""
    other = replace(loaded, model=copy.deepcopy(loaded.model))
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in other.model.get_decoder().layers:
            for weight in layer.parameters():
                weight += amount * torch.randn_like(weight)
    return other


@pytest.fixture
def pair(monkeypatch):
    """A tiny model, and what stands for it quantized."""
    reference = tiny.llama()
    monkeypatch.setattr(divergence, "unquantized", lambda loaded, spec: reference)
    return reference, perturbed(reference)


def test_divergence_on_a_text_is_the_definition(pair, monkeypatch):
    reference, low = pair
    monkeypatch.setattr(divergence, "POSITIONS_AT_ONCE", 7)
    spec = RunSpec(weights=WeightSpec(model="tiny", setting=RTN), tasks=("divergence",), window=32, limit=3)
    outcome = TASKS["divergence"].measure(low, spec, Watch())
    ids = torch.tensor(reference.tokenizer(texts.read(texts.BUILTIN_EVALUATION))["input_ids"])
    divergences, same = [], []
    for k in range(3):
        window = ids[None, k * 32 : k * 32 + 32]
        with torch.no_grad():
            p, q = (one.model(input_ids=window).logits[0].double().log_softmax(-1) for one in (reference, low))
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
        same.append((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert outcome.value == pytest.approx(sum(divergences) / 3, rel=1e-4)
    (top1,) = outcome.parts
    assert (top1.name, top1.value) == ("divergence_top1", pytest.approx(100 * sum(same) / 3))
    assert outcome.value > 0.01
    assert top1.value < 100


def test_a_model_does_not_diverge_from_itself(pair):
    reference, _ = pair
    spec = RunSpec(weights=WeightSpec(model="tiny"), tasks=("divergence",), window=32, limit=2)
    outcome = TASKS["divergence"].measure(reference, spec, Watch())
    assert outcome.value == pytest.approx(0, abs=1e-9)
    assert outcome.parts[0].value == 100


@pytest.mark.parametrize("make", [tiny.llama, tiny.llava_next])
def test_answers_part_where_greedy_answers_part(make):
    reference = make()
    picture = Image.new("RGB", (40, 30), "red") if reference.processor else None
    parted = set()
    for amount in (0.0, 0.02, 0.1):
        low = perturbed(reference, amount)
        (answered,) = batch.answers(reference, [Asked(lambda: picture, ["What is it?"], [0], [12])])
        found = compare_along(reference, low, picture, "What is it?", answered)
        own = [step.token for step in answer(reference, picture, "What is it?", 12)]
        other = [step.token for step in answer(low, picture, "What is it?", 12)]
        assert answered.tokens == own
        first = next((k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
        assert found.shared == first
        parted.add(found.shared)
        assert (found.divergence < 1e-6) == (amount == 0)
    assert len(parted) > 1


@pytest.mark.parametrize("make", [tiny.llama, tiny.llava_next])
def test_shifts_of_an_answers_tokens_are_those_of_the_probabilities_themselves(make, monkeypatch):
    monkeypatch.setattr(divergence, "POSITIONS_AT_ONCE", 5)
    reference = make()
    low = perturbed(reference, 0.05)
    picture = Image.new("RGB", (40, 30), "red") if reference.processor else None
    *_, last = answer(reference, picture, "Why?", 12, earlier=[("What?", "A")])
    reference_states, states = (
        answer_states(model, picture, "Why?", last.tokens, [("What?", "A")], PictureCache())
        for model in (reference, low)
    )
    head = reference.model.get_output_embeddings()
    shifts = token_shifts(head, low, reference_states, states, last.tokens)
    inputs = prompt_inputs(low, picture, "Why?", [("What?", "A")], last.tokens)
    with torch.no_grad():
        p, q = (model.model(**inputs).logits[0].double().softmax(-1) for model in (reference, low))
    start = len(p) - len(last.tokens) - 1
    for position, (shift, token) in enumerate(zip(shifts, last.tokens, strict=True), start):
        assert shift.p == pytest.approx(p[position, token].item(), rel=1e-3, abs=1e-6)
        assert shift.q == pytest.approx(q[position, token].item(), rel=1e-3, abs=1e-6)
        kl = (p[position] * (p[position] / q[position]).log()).sum().item()
        assert shift.divergence == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert shift.choice_q == pytest.approx(q[position].max().item(), rel=1e-3)
        assert shift.agrees == (q[position].argmax().item() == token)
    assert "".join(shift.text or "" for shift in shifts) == last.text
    assert max(shift.divergence for shift in shifts) > 0.001
    assert (
        max(
            shift.divergence for shift in token_shifts(head, reference, reference_states, reference_states, last.tokens)
        )
        < 1e-6
    )


def test_divergence_on_the_questions_of_a_picture_task(monkeypatch):
    reference = tiny.llava_next()
    reference.model.config.text_config.max_position_embeddings = 4096
    low = perturbed(reference)
    monkeypatch.setattr(divergence, "unquantized", lambda loaded, spec: reference)
    task = parse_task("divergence:demo-chartqa")
    spec = RunSpec(weights=WeightSpec(model="demo", setting=RTN), tasks=(task.name,), limit=2)
    outcome = task.measure(low, spec, Watch())
    assert outcome.items == 2
    assert {part.name for part in outcome.parts} == {
        "divergence:demo-chartqa_top1",
        "divergence:demo-chartqa_shared",
    }
    for question, output in zip(TASKS["demo-chartqa"].questions(2), outcome.outputs, strict=True):
        own, other = (
            [step.token for step in answer(model, question.picture(), question.prompt, divergence.MOST_TOKENS)]
            for model in (reference, low)
        )
        shared = next((k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), len(own))
        assert 0 < shared == output.measures[1]
        assert output.gold == [low.tokenizer.decode(own, skip_special_tokens=True)]
        assert output.prediction == low.tokenizer.decode(own[:shared], skip_special_tokens=True)


def test_names_lead_to_tasks(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    name = parse_task(f"divergence:{tmp_path}/a.txt").name
    assert parse_result_name(f"{name}_top1")[0].name == name
    task, suffix = parse_result_name("divergence:demo-mme_shared")
    assert (task.name, suffix, task.higher(suffix), task.higher("")) == ("divergence:demo-mme", "shared", True, False)
    with pytest.raises(UserError, match="There is no text file"):
        parse_task("divergence:nothing")
