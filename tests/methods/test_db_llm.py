"""DB-LLM: dual binarization and deviation-aware distillation against their formulas written out."""

import math

import pytest
import torch
from models import tiny_chat
from torch.func import functional_call

from quant_engine.methods import METHODS, Layer, Statistics, Training
from quant_engine.methods import db_llm as method
from quant_engine.models.architecture import SEQUENTIAL_SETS
from quant_engine.progress import Stopped
from quant_engine.spec import QuantSetting, UserError

DB_LLM = METHODS["db_llm"]
GROUP = 16


def training(folder, *, seed=0, stop=lambda: None, group=GROUP, family="llama", length=24, **options):
    loaded = tiny_chat.llama() if family == "llama" else tiny_chat.llava_next()
    model = loaded.model.requires_grad_(False)
    setting = DB_LLM.resolve(QuantSetting(method="db_llm", w_bits=2, group_size=group, options=options))
    return Training(
        model=model,
        decoder=model.model.language_model if family == "llava" else model.model,
        sets=SEQUENTIAL_SETS,
        windows=torch.randint(4, 200, (64, length), generator=torch.Generator().manual_seed(1)),
        setting=setting,
        options=DB_LLM.options(setting),
        seed=seed,
        folder=folder,
        progress=lambda share, message: None,
        check_stop=stop,
        log=lambda line: None,
    )


def plain_planes(w, a1, a2):
    """The paper's two step functions for one weight of a group with a1 > 0."""
    b1 = 1.0 if w - (a1 + a2) / 2 >= 0 else 0.0
    b2 = 1.0 if -(w - a1 * b1 - a2 / 2) >= 0 else 0.0
    return b1, b2


def plain_dense(weight, a1, a2, group):
    """w_hat, b1 and b2 of a weight, one element after the other."""
    hat, one, two = (torch.empty_like(weight) for _ in range(3))
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            x, y = a1[i, j // group].item(), a2[i, j // group].item()
            sign = -1 if x < 0 else 1
            b1, b2 = plain_planes(sign * weight[i, j].item(), sign * x, sign * y)
            hat[i, j], one[i, j], two[i, j] = x * b1 + y * b2, b1, b2
    return hat, one, two


def plain_loss(student, teacher, deviation, gamma):
    """The loss over all positions, one position after the other."""
    total = 0.0
    for ours, theirs in zip(student.double(), teacher.double(), strict=True):
        q, p = torch.softmax(ours, -1), torch.softmax(theirs, -1)
        cross = -(p * q.log()).sum()
        entropy = -(p * p.log()).sum() - (q * q.log()).sum()
        undecided = (entropy / (2 * math.log(len(q)))).detach()
        total = total + cross + deviation * undecided**gamma * cross
    return total / len(student)


def test_loss_and_gradients_are_those_of_the_formulas(tmp_path):
    given = training(tmp_path, deviation=1.5, gamma=0.5)
    student = method.make_student(given)
    for dual in student.weights.values():
        dual.moves.data = 0.3 * torch.randn(dual.moves.shape, generator=torch.Generator().manual_seed(0))
    ids = given.windows[:2]
    loss = method.distillation_loss(given, student, ids)
    loss.backward()

    teacher = tiny_chat.llama().model.requires_grad_(False)
    hats, planes = {}, {}
    for name, dual in student.weights.items():
        a1 = dual.start * dual.moves[0].detach().exp()
        a2 = -a1 / (1 + (-dual.moves[1].detach()).exp())
        weight = teacher.model.layers.get_submodule(name).weight
        hat, one, two = plain_dense(weight, a1, a2, GROUP)
        hats[f"model.layers.{name}.weight"] = hat.requires_grad_()
        planes[name] = a1, a2, one, two
    answered = functional_call(teacher, hats, kwargs={"input_ids": ids}).logits
    expected = plain_loss(answered.flatten(0, 1), teacher(input_ids=ids).logits.flatten(0, 1), 1.5, 0.5)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, (a1, a2, one, two) in planes.items():
        by_weight = hats[f"model.layers.{name}.weight"].grad
        by_first, by_second = ((by_weight * plane).unflatten(1, (-1, GROUP)).sum(-1) for plane in (one, two))
        # a1 = start exp(t) and a2 = -a1 sigmoid(r).
        share = -a2 / a1
        found = student.weights[name].moves.grad
        assert torch.allclose(found[0], by_first * a1 + by_second * a2, rtol=1e-3, atol=1e-5), name
        assert torch.allclose(found[1], -by_second * a1 * share * (1 - share), rtol=1e-3, atol=1e-5), name


def test_gradients_of_the_scales_are_finite_differences_while_planes_stay():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    start = torch.full((3, 2), 1.1, dtype=torch.float64)
    moves = torch.nn.Parameter(torch.zeros((2, 3, 2), dtype=torch.float64))
    dual = method.DualWeight(weight, start, moves, 16)
    target = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    loss = lambda: (dual.dense() - target).square().sum()  # noqa: E731
    loss().backward()
    for place in [(0, 1, 0), (1, 2, 1)]:
        values = []
        for step in (1e-7, -1e-7):
            with torch.no_grad():
                moves[place] += step
                values.append(loss().item())
                moves[place] -= step
        assert (values[0] - values[1]) / 2e-7 == pytest.approx(moves.grad[place].item(), rel=1e-4)


def test_searched_scales_lose_no_more_than_the_best_ones_but_for_the_steps_of_the_search():
    group, (least, most, spacing) = 32, (0.208, 1.0, 0.008)  # of max |w| / 2: the hundred steps from 1 on, towards 0.2
    weight = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    slices = weight.unflatten(1, (-1, group))
    largest = slices.abs().amax(-1) / 2

    def error(first):
        dual = method.DualWeight(weight, first, torch.zeros(2, *first.shape), group)
        return (dual.dense() - weight).square().unflatten(1, (-1, group)).sum(-1)

    searched, plain = error(method.first_scale(weight, group, "l2")), error(method.first_scale(weight, group, "minmax"))
    # The grid from the largest magnitude is the first that is tried.
    rounding = 1 + 1e-5
    assert (searched <= plain * rounding).all()
    assert searched.sum() < plain.sum()

    # A level, at most 2s from zero, is at most one spacing off where the nearest size tried is half a spacing off, and
    # by as much in each weight the norm of a group's error can be greater.
    allowed = spacing * largest * group**0.5
    best = torch.full_like(searched, torch.inf)
    for size in torch.linspace(least, most, 1000):
        for sign in (1, -1):
            levels = sign * torch.tensor([-1.0, 0, 1, 2]) * (size * largest)[..., None]
            best = torch.minimum(best, (slices[..., None] - levels[..., None, :]).abs().amin(-1).square().sum(-1))
    assert (searched.sqrt() <= best.sqrt() * rounding + allowed).all()
    assert (method.first_scale(weight, group, "l2") < 0).any(), "the mirrored grid is the better one for some groups"

    # One bit has the two levels -s and s of these four, with s = mean |w|: no better, where that size is searched.
    middle = slices.abs().mean(-1)
    one_bit = (slices.abs() - middle[..., None]).square().sum(-1)
    within = (least * largest <= middle) & (middle <= most * largest)
    assert within.float().mean() > 0.5
    assert (searched.sqrt() <= one_bit.sqrt() + allowed)[within].all()


def test_columns_make_up_for_each_other():
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weight = torch.randn(24, 64, generator=generator)
        inputs = torch.randn(400, 64, generator=generator) @ (torch.randn(64, 64, generator=generator) / 8 + 0.3)
        hessian = 2 / 8 * inputs.T @ inputs
        start = method.first_scale(weight, 32, "l2")
        latent = method.corrected(weight, start, 32, hessian, print)
        loss = lambda w: (  # noqa: E731
            (inputs @ (method.DualWeight(w, start, torch.zeros(2, 24, 2), 32).dense() - weight).T).square().mean()  # noqa: B023
        )
        assert loss(latent) < loss(weight)


def test_corrected_weights_are_those_of_the_plain_column_loop():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 40, generator=generator, dtype=torch.float64)
    hessian = inputs.T @ inputs
    start = method.first_scale(weight, 20, "l2")
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    current, latent = weight.clone(), torch.empty_like(weight)
    for j in range(40):
        latent[:, j] = current[:, j]
        a1 = start[:, j // 20]
        fixed, _, _ = plain_dense(current[:, j : j + 1], a1[:, None], -a1[:, None] / 2, 1)
        error = (current[:, j] - fixed[:, 0]) / factor[j, j]
        current[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    assert torch.allclose(method.corrected(weight, start, 20, hessian, print), latent, atol=1e-8)


def test_scales_keep_the_order_of_levels_however_far_they_move():
    moves = 5 * torch.randn((2, 30, 4), generator=torch.Generator().manual_seed(0))
    sign = torch.where(torch.arange(30) % 2 == 0, 1.0, -1.0)[:, None]
    first, second = method.DualWeight(torch.zeros(30, 64), 0.3 * sign.expand(30, 4), moves, 16).scales()
    assert (first * sign > 0).all()
    assert (second * sign < 0).all()
    assert ((first + second) * sign > 0).all()


def test_without_deviation_the_loss_is_plain_distillation():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(20, 50, generator=generator) for _ in range(2))
    plain = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    assert torch.allclose(method.deviation_aware(student, teacher, 0.0, 1.0), plain, rtol=1e-5)
    # Alike at all positions, indecision changes the loss by one factor.
    order = torch.stack([torch.randperm(50, generator=generator) for _ in range(20)])
    alike = student[:1].expand(20, -1).gather(1, order), teacher[:1].expand(20, -1).gather(1, order)
    factor = method.deviation_aware(*alike, 2.0, 0.5) / method.deviation_aware(*alike, 0.0, 0.5)
    assert torch.allclose(factor, factor[:1].expand(20), rtol=1e-5)
    assert 1 < factor[0] < 3
    assert method.deviation_aware(torch.zeros(1, 50), torch.zeros(1, 50), 1.0, 1.0).item() == pytest.approx(
        2 * math.log(50), rel=1e-5
    )


def test_a_student_that_is_its_teacher_has_no_gradient():
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    method.deviation_aware(logits, logits.detach().clone(), 1.0, 1.0).sum().backward()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("family", "init", "deviation"),
    [
        ("llama", "l2", 1.0),
        ("llama", "l2", 0.0),
        ("llama", "minmax", 0.0),
        ("llama", "gptq", 0.0),
        ("llava", "l2", 1.0),
    ],
)
def test_a_few_steps_bring_the_student_nearer_to_its_teacher(tmp_path, init, family, deviation):
    given = training(
        tmp_path, family=family, init=init, steps=30, batch=8, learning_rate=0.01, generated=0, deviation=deviation
    )
    held_out = torch.randint(4, 200, (16, 24), generator=torch.Generator().manual_seed(9))
    student = method.make_student(given)
    with torch.no_grad():
        before = method.distillation_loss(given, student, held_out).item()
    method.distill(given, student)
    with torch.no_grad():
        after = method.distillation_loss(given, student, held_out).item()
    assert after < before


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(method, "SAVED_EVERY", 0.0)
    options = {"steps": 6, "batch": 3, "generated": 3, "length": 10}
    whole = method.train(training(tmp_path / "a", **options))  # the folder is made by the pipeline
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 15:  # in the fourth step
            raise Stopped

    with pytest.raises(Stopped):
        method.train(training(tmp_path / "b", stop=stop, **options))
    assert (tmp_path / "b" / "state.safetensors").exists()
    again = method.train(training(tmp_path / "b", **options))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()


def test_the_teacher_s_texts_are_the_same_for_a_seed(tmp_path):
    texts = []
    for seed in (0, 0, 1):
        given = training(tmp_path, seed=seed, generated=5, length=12)
        texts.append(method.written_by_teacher(given, method.make_student(given)))
    assert texts[0].shape == (5, 12)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    given = training(tmp_path, length=12)
    best = given.model(input_ids=texts[0][:, :3]).logits.argmax(-1)
    assert torch.equal(texts[0][:, 1:4], best), "the first three tokens after the random one are greedy"


def test_every_window_is_looked_at_once_before_any_is_again():
    picks = torch.cat([method._picks(0, step, 4, 10) for step in range(5)])
    assert sorted(picks[:10].tolist()) == sorted(picks[10:].tolist()) == list(range(10))
    assert picks[:10].tolist() != picks[10:].tolist()


def test_quantize_returns_what_was_trained(tmp_path):
    given = training(tmp_path, steps=0)
    trained = method.train(given)
    weight = given.decoder.layers[1].mlp.down_proj.weight
    mine = {name.rpartition(".")[2]: value for name, value in trained.items() if name.startswith("1.mlp.down_proj.")}
    stored = DB_LLM.quantize(Layer(weight, Statistics(None, trained=mine), given.setting, given.options, print))
    first = method.first_scale(weight, GROUP, "l2").half().float()
    hat, _, _ = plain_dense(weight, first, -(first / 2).half().float(), GROUP)
    assert torch.allclose(stored.dequantize(), hat, atol=1e-6)
    assert stored.ledger().bits_per_weight == pytest.approx(2 + 32 / GROUP)


def test_is_defined_for_2_bits():
    with pytest.raises(UserError, match="defined for 2 weight bits"):
        DB_LLM.resolve(QuantSetting(method="db_llm", w_bits=3))
