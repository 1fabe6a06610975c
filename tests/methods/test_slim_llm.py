"""SliM-LLM against a plain implementation of allocation, calibrated grids and column loop, and its properties."""

import numpy as np
import pytest
import torch

from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.gptq import inverse_factor
from quant_engine.methods.slim_llm import (
    SlimLlmOptions,
    allocate,
    calibrated_grid,
    divergences,
    fix_groups,
    mixed_pairs,
    salience,
)
from quant_engine.spec import QuantSetting
from quant_engine.weights.grouped import grids

SLIM, GPTQ = METHODS["slim_llm"], METHODS["gptq"]


def problem(rows=12, columns=128, seed=0, group=None, larger=1.0):
    """Weights, inputs and their Hessian; the inputs of group number 3 (of `group` columns) are `larger`."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ (mixing + 0.1)
    if group:
        inputs[:, 3 * group : 4 * group] *= larger
    return weight, inputs, 2 / 8 * inputs.T @ inputs


def run(weight, inputs, hessian, bits, group, log=lambda line: None, **options):
    setting = SLIM.resolve(QuantSetting(method="slim_llm", w_bits=bits, group_size=group, options=options))
    statistics = Statistics(hessian.clone(), inputs=inputs)
    return SLIM.quantize(Layer(weight.clone(), statistics, setting, SLIM.options(setting), log))


def plain_grid(values, bits, tau=1.0):
    low, high = tau * min(0, values.min()), tau * max(0, values.max())
    scale = float(np.float16((high - low) / (2**bits - 1)))
    return scale, np.clip(np.round(-low / scale), 0, 2**bits - 1)


def plain_round(values, scale, zero, bits):
    return scale * (np.clip(np.round(values / scale) + zero, 0, 2**bits - 1) - zero)


def plain_one_bit(values):
    mean = float(np.float16(values.mean()))
    spread = float(np.float16(np.abs(values).mean()))
    return mean, spread


def plain_rtn(weight, bits, group):
    out = np.empty_like(weight)
    for i in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            values = weight[i, start : start + group]
            if bits == 1:
                mean, spread = plain_one_bit(values)
                out[i, start : start + group] = np.where(values >= mean, mean + spread, mean - spread)
            else:
                out[i, start : start + group] = plain_round(values, *plain_grid(values, bits), bits)
    return out


def plain_softmax(outputs):
    exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
    return np.maximum(exponentials / exponentials.sum(1, keepdims=True), 1e-6)


def upper(hessian, damping):
    return np.linalg.cholesky(np.linalg.inv(hessian + damping * np.eye(len(hessian)))).T


def plain_salience(weight, factor, group):
    by_weight = weight**2 / np.diag(factor) ** 2
    return np.array([by_weight[:, start : start + group].sum() for start in range(0, weight.shape[1], group)])


def plain_widths(saliences, whole, bits, pairs):
    order = np.argsort(saliences[:whole], kind="stable")
    widths = np.full(len(saliences), bits)
    widths[order[:pairs]] = bits - 1
    widths[order[whole - pairs :]] = bits + 1
    return widths


def plain_scores(weight, inputs, hessian, bits, group, *, paper=False):
    whole = weight.shape[1] // group
    saliences = plain_salience(weight, upper(hessian, 0.01), group)
    rounded = {width: plain_rtn(weight, width, group) for width in (bits - 1, bits, bits + 1)}
    original = plain_softmax(inputs @ weight.T)
    scores = []
    for pairs in range(whole // 2):
        mixed = np.concatenate(
            [
                rounded[width][:, index * group : (index + 1) * group]
                for index, width in enumerate(plain_widths(saliences, whole, bits, pairs))
            ],
            1,
        )
        quantized = plain_softmax(inputs @ mixed.T)
        of, against = (original, quantized) if paper else (quantized, original)
        scores.append((of * (np.log(of) - np.log(against))).sum() / len(inputs))
    return scores


def plain_slim(weight, inputs, hessian, bits, group, *, divergence="reference", allow_uniform=False,
               salient_weight=1.0):  # fmt: skip
    weight, inputs, hessian = (tensor.numpy().copy() for tensor in (weight, inputs, hessian))
    whole = weight.shape[1] // group
    scores = plain_scores(weight, inputs, hessian, bits, group, paper=divergence == "paper")
    first = 0 if allow_uniform else 1
    pairs = first + int(np.argmin(scores[first:]))
    factor = upper(hessian, 0.01 * np.diag(hessian).mean())
    widths = plain_widths(plain_salience(weight, factor, group), whole, bits, pairs)
    taus = [1.0] + [1 + i * 0.1 / 50 for i in range(1, 51)] + [1 - i * 0.1 / 50 for i in range(1, 51)]
    out = np.empty_like(weight)
    for index, width in enumerate(widths):
        part = slice(index * group, min((index + 1) * group, weight.shape[1]))
        slab = weight[:, part].copy()
        delta = slab**2 / np.diag(factor)[part] ** 2
        outlying = np.abs(delta - delta.mean()) / delta.std(ddof=1) > 2
        salient = delta >= delta[outlying].min() if outlying.any() else np.zeros(slab.shape, bool)
        levels = []
        for i in range(len(slab)):
            if width == 1:
                levels.append(plain_one_bit(slab[i]))
                continue
            best = np.inf
            for tau in taus:
                scale, zero = plain_grid(slab[i], width, tau)
                error = np.abs(slab[i] - plain_round(slab[i], scale, zero, width)) ** 2.4
                error = error[~salient[i]].sum() + salient_weight * error[salient[i]].sum()
                if error < best:
                    best, chosen = error, (scale, zero)
            levels.append(chosen)
        for j in range(part.start, part.stop):
            for i, (first_number, second) in enumerate(levels):
                value = weight[i, j]
                if width == 1:
                    out[i, j] = first_number + second if value >= first_number else first_number - second
                else:
                    out[i, j] = plain_round(value, first_number, second, width)
            error = (weight[:, j] - out[:, j]) / factor[j, j]
            weight[:, j:] -= np.outer(error, factor[j, j:])
    return torch.from_numpy(out), widths


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"divergence": "paper"}, {"allow_uniform": True}, {"salient_weight": 5.0}],
    ids=str,
)
def test_equals_the_plain_implementation(bits, options):
    weight, inputs, hessian = problem(rows=6, columns=136, seed=bits)
    expected, widths = plain_slim(weight, inputs, hessian, bits, 16, **options)
    stored = run(weight, inputs, hessian, bits, 16, **options)
    assert stored.widths.tolist() == widths.tolist()
    assert torch.allclose(stored.dequantize().double(), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("columns", [128, 150, 192])
def test_the_average_width_is_exact_and_one_pair_at_least_is_mixed(bits, columns):
    weight, inputs, hessian = problem(columns=columns, seed=bits)
    stored = run(weight, inputs, hessian, bits, 16)
    widths = stored.widths.tolist()
    low, high = widths.count(bits - 1), widths.count(bits + 1)
    assert 1 <= low == high <= columns // 16 // 2 - 1
    assert stored.ledger().headline_bits == bits
    assert columns % 16 == 0 or widths[-1] == bits


def test_the_most_salient_groups_get_a_bit_more_and_the_least_one_less():
    weight, inputs, hessian = problem(seed=4)
    widths = torch.tensor(run(weight, inputs, hessian, 3, 16).widths.tolist())
    factor = inverse_factor(hessian, print)
    saliences = salience(weight, factor, 16)
    assert saliences[widths == 4].min() > saliences[widths == 3].max()
    assert saliences[widths == 2].max() < saliences[widths == 3].min()


def test_equal_saliences_keep_their_order():
    assert allocate(torch.ones(8), 3, 2, 8) == [2, 2, 3, 3, 3, 3, 4, 4]
    assert allocate(torch.ones(5), 3, 0, 4) == [3] * 5


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("salient_weight", [1.0, 10.0])
def test_a_calibrated_grid_is_never_worse_than_the_plain_one(bits, salient_weight):
    weight, _, hessian = problem(rows=40, columns=64)
    diagonal = inverse_factor(hessian, print).diagonal()
    delta = weight.square() / diagonal.square()
    salient = delta >= delta[(delta - delta.mean()).abs() > 2 * delta.std()].min()
    counted = torch.where(salient, salient_weight, 1.0)

    def error(grid):
        scale, zero = (values.view(-1, 1).double() for values in grid)
        codes = (torch.round(weight / scale) + zero).clamp(0, 2**bits - 1)
        return ((weight - scale * (codes - zero)).abs().pow(2.4) * counted).sum(1)

    found = calibrated_grid(weight, diagonal, bits, SlimLlmOptions(salient_weight=salient_weight))
    assert (error(found) <= error(grids(weight, bits, 64))).all()
    assert (error(found) < error(grids(weight, bits, 64))).any()


def test_salient_weights_make_no_difference_unless_they_count_more():
    weight, _, _ = problem(rows=40, columns=64)
    diagonals = torch.ones(64, dtype=torch.float64), torch.linspace(0.01, 5, 64, dtype=torch.float64)
    same = [calibrated_grid(weight, diagonal, 3, SlimLlmOptions()) for diagonal in diagonals]
    assert all(torch.equal(*pair) for pair in zip(*same, strict=True))
    other = [calibrated_grid(weight, diagonal, 3, SlimLlmOptions(salient_weight=50)) for diagonal in diagonals]
    assert not torch.equal(other[0][0], other[1][0])


def test_a_group_whose_weights_are_all_equal_has_a_grid():
    flat = torch.full((3, 16), 0.75, dtype=torch.float64)
    scale, zero = calibrated_grid(flat, torch.ones(16, dtype=torch.float64), 2, SlimLlmOptions(salient_weight=2))
    assert torch.isfinite(scale).all()
    assert torch.equal(scale.double() * (3 - zero.double()), torch.full((3,), 0.75, dtype=torch.float64))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_with_equal_widths_and_no_stretching_it_is_gptq_bit_for_bit(monkeypatch, bits):
    monkeypatch.setattr("quant_engine.methods.slim_llm.TAU_RANGE", 0)
    weight, _, hessian = problem(columns=384)
    weight, hessian = weight.float(), hessian.float()
    setting = GPTQ.resolve(QuantSetting(method="gptq", w_bits=bits, group_size=128))
    gptq = GPTQ.quantize(Layer(weight.clone(), Statistics(hessian), setting, GPTQ.options(setting), print))
    factor = inverse_factor(hessian, print)
    live = torch.ones(384, dtype=torch.bool)
    ours = fix_groups(weight.clone(), factor, live, [bits] * 3, bits, 128, SlimLlmOptions())
    assert torch.equal(ours.dequantize(), gptq.dequantize())


@pytest.mark.parametrize("divergence", ["reference", "paper"])
def test_divergence_is_zero_for_unchanged_weights_and_positive_otherwise(divergence):
    weight, inputs, _ = problem()
    codes = torch.randint(0, 8, weight.shape, generator=torch.Generator().manual_seed(1))
    codes[:, ::16], codes[:, 1::16] = 0, 7
    on_grid = (codes - 4.0).double() / 16
    options = SlimLlmOptions(divergence=divergence)
    assert divergences(on_grid, inputs, 3, 16, list(range(8)), options)[0] == pytest.approx(0, abs=1e-9)
    assert all(score > -1e-5 for score in divergences(weight, inputs, 3, 16, list(range(8)), options))


@pytest.mark.parametrize("seed", range(3))
def test_a_group_with_far_larger_inputs_gets_a_bit_more_and_the_outputs_gain(seed):
    weight, inputs, hessian = problem(columns=128, group=16, larger=20.0, seed=seed)
    assert run(weight, inputs, hessian, 3, 16).widths[3] == 4
    options = SlimLlmOptions()
    factor = inverse_factor(hessian, print, 0.01 / hessian.diagonal().mean().item())
    ranked = torch.argsort(salience(weight, factor, 16), stable=True).tolist()
    scores = divergences(weight, inputs, 3, 16, ranked, options)
    assert ranked[-1] == 3
    assert min(scores[1:]) < scores[0]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_stored_diverges_less_than_with_one_width_for_all(bits, seed):
    weight, inputs, hessian = problem(rows=32, columns=128, group=16, larger=20.0, seed=seed)
    factor = inverse_factor(hessian, print)
    live = torch.ones(128, dtype=torch.bool)
    mixed = run(weight, inputs, hessian, bits, 16)
    uniform = fix_groups(weight.clone(), factor, live, [bits] * 8, bits, 16, SlimLlmOptions())
    original = torch.log_softmax(inputs @ weight.T, -1)

    def divergence(stored):
        quantized = torch.log_softmax(inputs @ stored.dequantize().double().T, -1)
        return (quantized.exp() * (quantized - original)).sum(1).mean()

    assert divergence(mixed) < divergence(uniform)


def test_too_few_groups_are_left_alone_and_that_is_said():
    weight, inputs, hessian = problem(columns=48)
    lines = []
    assert mixed_pairs(weight, hessian, inputs, 3, 16, SlimLlmOptions(), lines.append) == 0
    assert "too few" in lines[0]
    assert run(weight, inputs, hessian, 3, None).widths.tolist() == [3]


def test_a_dead_input_gets_zero_weights_even_at_one_bit():
    weight, inputs, hessian = problem()
    for column in range(0, 128, 9):
        inputs[:, column] = 0
    hessian = 2 / 8 * inputs.T @ inputs
    stored = run(weight, inputs, hessian, 2, 16)
    assert 1 in stored.widths
    assert (stored.dequantize()[:, ::9] == 0).all()
