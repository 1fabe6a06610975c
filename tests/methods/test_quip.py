"""QuIP against a plain implementation with dense rotations, and the properties that follow from its algebra."""

from functools import partial

import numpy as np
import pytest
import torch

from quant_engine.methods import METHODS, Layer, Statistics, gptq, resolve_setting
from quant_engine.methods.quip import QuipOptions, greedy_passes, ldlq, rescale, rotate, round_columns
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.grouped import grids
from quant_engine.weights.rotated import rotation

QUIP, GPTQ = METHODS["quip"], METHODS["gptq"]


def problem(rows=24, columns=96, seed=0):
    """A weight with a few large entries, and the Hessian of inputs that vary together, some far more than others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(6 * columns, columns, generator=generator, dtype=torch.float64) @ (mixing + 0.1)
    inputs[:, ::17] *= 5
    weight[::7, ::11] *= 8
    return weight, 2 / 8 * inputs.T @ inputs


def stored(weight, hessian, bits, *, seed=0, **options):
    setting = QUIP.resolve(QuantSetting(method="quip", w_bits=bits, options=options))
    statistics = Statistics(hessian.clone(), seed=seed)
    return QUIP.quantize(Layer(weight.clone(), statistics, setting, QUIP.options(setting), print))


def run(weight, hessian, bits, **options):
    return stored(weight, hessian, bits, **options).dequantize().double()


def proxy(change, hessian):
    return torch.trace(change @ hessian @ change.T).item()


def plain_round(aim, hessian, highest, *, order, passes):
    """LDLQ and greedy passes number by number, from the last column to the first, with the Cholesky factor of H."""
    n = aim.shape[1]
    hessian = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(n)
    aim, hessian = aim[:, order], hessian[np.ix_(order, order)]
    lower = np.linalg.cholesky(hessian)
    lower = lower / np.diag(lower) - np.eye(n)
    codes = np.zeros_like(aim)
    for row in range(len(aim)):
        for i in reversed(range(n)):
            fed = sum((aim[row, j] - codes[row, j]) * lower[j, i] for j in range(i + 1, n))
            codes[row, i] = min(max(np.floor(aim[row, i] + fed + 0.5), 0), highest)
        for _ in range(passes):
            for i in reversed(range(n)):
                pull = sum((codes[row, j] - aim[row, j]) * hessian[j, i] for j in range(n))
                codes[row, i] = np.floor(codes[row, i] - pull / hessian[i, i] + 0.5)
            codes[row] = codes[row].clip(0, highest)
    return codes[:, np.argsort(order)]


def plain_quip(weight, hessian, bits, *, kind="kronecker", rg=False, passes=0):
    """The reference's steps with dense orthogonal matrices; d and s in the precision in which they are stored."""
    w, h = weight.numpy().copy(), hessian.numpy().copy()
    m, n = w.shape
    top = 2**bits - 1
    h = h / np.abs(h).max()
    d = (np.maximum(np.diag(h), 1e-8) / np.maximum((w**2).sum(0), 1e-8)) ** 0.25
    d = 1 / (1 / (d / np.exp(np.log(d).mean()))).astype(np.float16).astype(np.float64)
    w, h = w * d, h / np.outer(d, d)
    h = h * n / np.trace(h) + 0.01 * np.eye(n)
    u, v = (
        rotation(size, 0, side, kind, torch.float64)(torch.eye(size, dtype=torch.float64)).T.numpy()
        for size, side in ((m, "outputs"), (n, "inputs"))
    )
    w, h = u @ w @ v.T, v @ h @ v.T
    step = float(np.float16(2 * 2.4 * np.sqrt((w**2).mean()) / top))
    aim = w / step + top / 2
    aim = aim.clip(0, top)
    order = np.argsort(np.diag(h), kind="stable") if rg else np.arange(n)
    codes = plain_round(aim, h, top, order=order, passes=passes)
    return torch.from_numpy(u.T @ (step * (codes - top / 2)) @ v / d)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["kronecker", "blocked"])
def test_equals_the_plain_steps_with_dense_rotations(bits, kind):
    weight, hessian = problem(12, 60, seed=bits)
    expected = plain_quip(weight, hessian, bits, kind=kind)
    assert torch.allclose(run(weight, hessian, bits, rotation=kind), expected, atol=1e-5)


@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("rg", [False, True])
def test_order_and_greedy_passes_equal_the_plain_ones(rg, passes):
    weight, hessian = problem(12, 60)
    expected = plain_quip(weight, hessian, 2, rg=rg, passes=passes)
    found = run(weight, hessian, 2, rounding="ldlq_rg" if rg else "ldlq", passes=passes)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_without_incoherence_it_equals_plain_ldlq_on_a_grid_for_each_row(bits):
    weight, hessian = problem(12, 60, seed=bits)
    scales, zeros = (value.double() for value in grids(weight, bits, 60))
    aim = (weight / scales + zeros).clamp(0, 2**bits - 1)
    codes = plain_round(aim.numpy(), hessian.numpy(), 2**bits - 1, order=np.arange(60), passes=0)
    expected = scales * (torch.from_numpy(codes) - zeros)
    assert torch.allclose(run(weight, hessian, bits, incoherence=False), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["kronecker", "blocked"])
def test_undoing_the_change_of_variables_gives_the_weight_back(kind):
    weight, hessian = problem()
    scaled, scaled_hessian, stored_scales = rescale(weight, hessian)
    rotated, _ = rotate(scaled, scaled_hessian, kind, 0)
    u, v = (
        rotation(size, 0, side, kind, torch.float64)(torch.eye(size, dtype=torch.float64))
        for size, side in ((24, "outputs"), (96, "inputs"))
    )
    back = u @ rotated @ v.T * stored_scales.double()
    assert ((back - weight).norm() / weight.norm()).item() < 1e-5


def test_ldlq_is_the_feedback_of_the_cholesky_factor():
    weight, hessian = problem(16, 200)
    aim = (weight + 4) * 2
    found = round_columns(aim, hessian, 15, QuipOptions(), print)
    expected = plain_round(aim.clamp(0, 15).numpy(), hessian.numpy(), 15, order=np.arange(200), passes=0)
    assert torch.equal(found, torch.from_numpy(expected).to(torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_without_rotations_it_is_gptq_from_the_last_column_to_the_first(bits):
    for seed in range(20):
        weight, hessian = problem(8, 48, seed)
        setting = GPTQ.resolve(QuantSetting(method="gptq", w_bits=bits))
        statistics = Statistics(hessian.flip(0, 1))
        reverse = GPTQ.quantize(Layer(weight.flip(1), statistics, setting, GPTQ.options(setting), print))
        scales, zeros = (v.double() for v in grids(weight, bits, 48))
        # QuIP itself would first clip the up to half a step by which weights may lie outside the grid.
        aim = (weight / scales + zeros).flip(1)
        codes = ldlq(aim, hessian.flip(0, 1), 2**bits - 1, print).flip(1)
        assert torch.allclose(scales * (codes - zeros), reverse.dequantize().double().flip(1), atol=1e-6)


def test_is_nearest_rounding_when_inputs_are_uncorrelated():
    weight, _ = problem()
    aim = (weight * 2 + 8).clamp(0, 15)
    eye = 3 * torch.eye(96, dtype=torch.float64)
    found = [round_columns(aim, eye, 15, QuipOptions(rounding=r), print) for r in ("ldlq", "ldlq_rg", "nearest")]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[2], torch.floor(aim + 0.5).to(torch.uint8))


def test_ldlq_loses_less_than_nearest_and_greedy_passes_less_still():
    loss = {}
    for seed in range(5):
        weight, hessian = problem(seed=seed)
        for name, options in (
            ("nearest", {"rounding": "nearest"}),
            ("ldlq", {}),
            ("passes", {"passes": 5}),
        ):
            loss[name] = loss.get(name, 0) + proxy(weight - run(weight, hessian, 2, **options), hessian)
    assert loss["ldlq"] < 0.8 * loss["nearest"]
    assert loss["passes"] < loss["ldlq"]


def test_a_greedy_pass_never_adds_loss_where_nothing_is_clipped():
    weight, hessian = problem(16, 200)
    aim = weight * 3 + 1000
    codes = torch.floor(aim + 0.5)
    losses = [proxy(codes - aim, hessian)]
    for _ in range(4):
        codes = greedy_passes(codes, aim, hessian, 2000, 1)
        losses.append(proxy(codes - aim, hessian))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
    settled = greedy_passes(codes, aim, hessian, 2000, 200)
    assert torch.equal(greedy_passes(settled, aim, hessian, 2000, 1), settled)


@pytest.mark.parametrize("kind", ["kronecker", "blocked"])
def test_change_of_variables_keeps_the_loss(kind):
    _, hessian = problem()
    change = torch.randn(24, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled, scaled_hessian, stored_scales = rescale(change, hessian)
    top = hessian.abs().max()
    assert proxy(scaled, scaled_hessian) * top == pytest.approx(proxy(change, hessian), rel=1e-9)
    assert torch.allclose(scaled * stored_scales.double(), change)
    rotated, rotated_hessian = rotate(scaled, scaled_hessian, kind, 0)
    # Rotating also normalises the trace and adds 0.01 I.
    trace = scaled_hessian.trace() / 96
    kept = proxy(rotated, rotated_hessian - 0.01 * torch.eye(96)) * trace
    assert kept.item() == pytest.approx(proxy(scaled, scaled_hessian), rel=1e-6)


def test_rotating_makes_a_weight_with_outliers_even():
    weight, hessian = problem(64, 96)
    weight[3, 5], weight[40, 70] = 60, -80
    rotated, _ = rotate(*rescale(weight, hessian)[:2], "kronecker", 0)
    spread = lambda w: (w.abs().max() / w.square().mean().sqrt()).item()  # noqa: E731
    assert spread(rotated) < 0.3 * spread(weight)


def test_incoherence_lowers_the_loss_at_two_bits():
    losses = [0.0, 0.0]
    for seed in range(5):
        weight, hessian = problem(48, 96, seed)
        for i, incoherence in enumerate((True, False)):
            losses[i] += proxy(weight - run(weight, hessian, 2, incoherence=incoherence), hessian)
    assert losses[0] < 0.7 * losses[1]


def counterexample(n, c=0.01):
    """The family of the reference's counter script; its columns go from the first to the last."""
    hessian = torch.ones(n, n, dtype=torch.float64) + torch.eye(n, dtype=torch.float64)
    hessian[-1, -1] = 1
    hessian[0, 1:-1] += 2 * c
    hessian[1:-1, 0] += 2 * c
    hessian[0, -1] += c
    hessian[-1, 0] += c
    hessian[0, 0] += 4 * c + n * c**2
    weight = 0.499 * torch.ones(1, n, dtype=torch.float64)
    weight[0, 1::2] = 0.501
    return weight, hessian


def test_ldlq_can_be_worse_than_nearest_rounding_where_codes_are_clipped(monkeypatch):
    monkeypatch.setattr(gptq, "inverse_factor", partial(gptq.inverse_factor, damping=1e-9))
    weight, hessian = counterexample(64)
    nearest = torch.floor(weight + 0.5)
    found = ldlq(weight, hessian, 3, print)
    assert proxy(found - weight, hessian) > 2 * proxy(nearest - weight, hessian)


def test_a_dead_input_costs_nothing_and_spoils_nothing():
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    for incoherence in (True, False):
        assert torch.isfinite(run(weight, hessian, 2, incoherence=incoherence)).all()


def test_seeds_give_different_rotations_and_all_bits_are_counted():
    weight, hessian = problem()
    first = stored(weight, hessian, 2)
    second = stored(weight, hessian, 2, seed=1)
    assert torch.nn.functional.cosine_similarity(second.dequantize().flatten(), weight.float().flatten(), 0) > 0.8
    assert not torch.equal(first.codes, second.codes)
    assert first.ledger().total_bits == 8 * first.stored_bytes()
    assert first.ledger().bits_per_weight == pytest.approx(2 + 16 / 24 + 16 / (24 * 96))
    assert stored(weight, hessian, 2, incoherence=False).form == "grouped_int"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"w_bits": 1}, "QuIP is defined for 2, 3, 4"),
        ({"w_bits": 2, "group_size": 64}, "QuIP has no groups"),
        ({"w_bits": 2, "options": {"rounding": "up"}}, "QuIP option rounding"),
    ],
)
def test_what_is_not_defined_is_refused_in_a_sentence(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_setting(QuantSetting(method="quip", **setting))
