"""PB-LLM against a plain column loop, and the properties that its definition promises."""

import numpy as np
import pytest
import torch

from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.pb_llm import PbLlmOptions, most_salient, partly_binarize
from quant_engine.spec import QuantSetting
from quant_engine.weights.grouped import grids

PB_LLM, GPTQ = METHODS["pb_llm"], METHODS["gptq"]


def problem(rows=16, columns=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(6 * columns, columns, generator=generator, dtype=torch.float64) @ (mixing + 0.3)
    return weight, 2 / 8 * inputs.T @ inputs


def run(weight, hessian, share, group=32, **options):
    statistics = Statistics(hessian.clone())
    setting = QuantSetting(method="pb_llm", w_bits=2, group_size=group)
    layer = Layer(weight.clone(), statistics, setting, PbLlmOptions(**options), lambda line: None)
    return partly_binarize(layer, share)


def plain_pb_llm(weight, hessian, share, group, *, saliency="hessian", means="group", compensation=True):
    """Every update applied at once, every number by itself."""
    grid_scale, grid_zero = (values[:, 0].double().numpy() for values in grids(weight, 8, weight.shape[1]))
    weight, hessian = weight.numpy().copy(), hessian.numpy().copy()
    rows, columns = weight.shape
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(columns))
    factor = np.linalg.cholesky(inverse).T
    divisor = {"hessian": np.diag(factor), "paper": np.diag(inverse), "magnitude": np.ones(columns)}[saliency]
    saliency = (weight / divisor) ** 2
    salient = np.zeros((rows, columns), bool)
    levels = {}
    for start in range(0, columns, group):
        part = slice(start, min(start + group, columns))
        threshold = np.sort(saliency[:, part].ravel())[int(saliency[:, part].size * (1 - share))]
        salient[:, part] = saliency[:, part] > threshold
        for i in range(rows):
            rest = ~salient[i, part]
            values = weight[i, part][rest] if means == "binary" else weight[i, part] * rest
            mean = float(np.float16(values.mean()))
            levels[i, start] = mean, float(np.float16(np.abs(values - mean).mean()))
    out = np.empty_like(weight)
    for j in range(columns):
        for i in range(rows):
            if salient[i, j]:
                code = np.clip(np.round(weight[i, j] / grid_scale[i]) + grid_zero[i], 0, 255)
                out[i, j] = grid_scale[i] * (code - grid_zero[i])
            else:
                mean, spread = levels[i, j // group * group]
                out[i, j] = mean + spread if weight[i, j] >= mean else mean - spread
        if compensation:
            error = (weight[:, j] - out[:, j]) / factor[j, j]
            weight[:, j:] -= np.outer(error, factor[j, j:])
    return torch.from_numpy(out), salient


@pytest.mark.parametrize("share", [0.1, 1 / 7, 0.5])
@pytest.mark.parametrize("group", [32, 40, 192])
@pytest.mark.parametrize(
    "options",
    [{}, {"means": "binary"}, {"saliency": "paper"}, {"saliency": "magnitude"}, {"compensation": False}],
    ids=str,
)
def test_equals_the_plain_column_loop(share, group, options):
    weight, hessian = problem(columns=192)
    expected, salient = plain_pb_llm(weight, hessian, share, group, **options)
    stored = run(weight, hessian, share, group, **options)
    assert torch.equal(stored._bits(stored.marks, 0, None), torch.from_numpy(salient))
    assert torch.allclose(stored.dequantize().double(), expected, atol=1e-5)


def test_with_every_weight_salient_it_is_gptq_at_8_bits_per_row():
    weight, hessian = problem(columns=192)
    setting = GPTQ.resolve(QuantSetting(method="gptq", w_bits=8))
    gptq = GPTQ.quantize(Layer(weight.clone(), Statistics(hessian), setting, GPTQ.options(setting), print))
    assert torch.equal(run(weight, hessian, 1.0).dequantize(), gptq.dequantize())


def test_weights_on_the_8_bit_grid_stay_what_they_are_when_all_are_salient():
    weight, hessian = problem()
    codes = torch.randint(0, 256, weight.shape, generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, 1] = 0, 255
    weight = (codes - 128.0).double() / 64
    assert torch.equal(run(weight, hessian, 1.0).dequantize().double(), weight)


@pytest.mark.parametrize("means", ["group", "binary"])
def test_without_salient_weights_there_are_two_values_per_row_and_group(means):
    weight, hessian = problem()
    stored = run(weight, hessian, 0.0, means=means, compensation=False)
    dense = stored.dequantize().double()
    assert stored.salient == 0
    for part, original in zip(dense.split(32, 1), weight.split(32, 1), strict=True):
        error = (part - original).square().sum(1)
        assert all(len(row.unique()) == 2 for row in part)
        mean, spread = (part.amax(1) + part.amin(1)) / 2, (part.amax(1) - part.amin(1)) / 2
        signs = torch.where(part > mean[:, None], 1.0, -1.0)
        for change in (0.99, 1.01):
            other = mean[:, None] + signs * spread[:, None] * change
            assert ((other - original).square().sum(1) > error).all()
        assert torch.allclose(mean, original.mean(1), atol=1e-3)


@pytest.mark.parametrize("share", [0.05, 0.1, 1 / 7, 0.5])
def test_so_many_weights_are_salient_in_each_group(share):
    weight, hessian = problem(rows=20, columns=100)
    stored = run(weight, hessian, share)
    for part in stored._bits(stored.marks, 0, None).split(32, 1):
        assert abs(int(part.sum()) - share * part.numel()) <= 2


def test_ties_at_the_threshold_are_binary():
    saliency = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 2.0]])
    assert most_salient(saliency, 0.5).tolist() == [[False] * 5 + [True]]
    assert not most_salient(saliency, 0.0).any()
    assert most_salient(saliency, 1.0).all()


def test_loss_falls_as_more_weights_are_salient():
    losses = []
    for share in (0, 0.05, 0.1, 1 / 7, 0.2, 0.5):
        loss = 0
        for seed in range(4):
            weight, hessian = problem(rows=32, columns=128, seed=seed)
            change = weight - run(weight, hessian, share).dequantize()
            loss += torch.trace(change @ hessian @ change.T).item()
        losses.append(loss)
    assert losses == sorted(losses, reverse=True)


def test_compensation_lowers_the_loss():
    weight, hessian = problem(rows=32, columns=128)
    loss = {}
    for compensation in (False, True):
        change = weight - run(weight, hessian, 0.1, compensation=compensation).dequantize()
        loss[compensation] = torch.trace(change @ hessian @ change.T)
    assert loss[True] < 0.8 * loss[False]


@pytest.mark.parametrize("bits", [1.35, 1.7, 2, 2.4, 4.5])
def test_the_width_is_what_the_headline_counts(bits):
    weight, hessian = problem(rows=64, columns=256)
    setting = PB_LLM.resolve(QuantSetting(method="pb_llm", w_bits=bits, group_size=128))
    stored = PB_LLM.quantize(Layer(weight, Statistics(hessian), setting, PB_LLM.options(setting), print))
    ledger = stored.ledger()
    assert ledger.headline_bits == pytest.approx(bits, abs=0.002)
    side = 1 + 32 / 128 + (16 + 8 + 32) / 256 + 1 / 64
    assert ledger.bits_per_weight == pytest.approx(bits + side, abs=0.01)


def test_with_equal_inputs_saliency_is_magnitude():
    weight, _ = problem()
    hessian = 3 * torch.eye(96, dtype=torch.float64)
    marks = [run(weight, hessian, 0.2, saliency=kind).marks for kind in ("hessian", "paper", "magnitude")]
    assert torch.equal(marks[0], marks[2])
    assert torch.equal(marks[1], marks[2])


def test_a_dead_input_gets_zero_weights():
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    assert (run(weight, hessian, 0.1).dequantize()[:, 5] == 0).all()
