"""BiLLM against a plain implementation with masks over whole slabs, and the properties that its algebra promises."""

import numpy as np
import pytest
import torch

from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.billm import BillmOptions, binarize, break_point, masks, salient_count
from quant_engine.spec import QuantSetting
from quant_engine.weights.binary import ResidualBinary
from quant_engine.weights.ledger import Ledger

BILLM = METHODS["billm"]


def problem(rows=16, columns=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(6 * columns, columns, generator=generator, dtype=torch.float64) @ (mixing + 0.3)
    return weight, 2 / 8 * inputs.T @ inputs


def run(weight, hessian, group=32, log=lambda line: None, **options):
    setting = BILLM.resolve(QuantSetting(method="billm", w_bits=1.1, group_size=group, options=options))
    return BILLM.quantize(Layer(weight.clone(), Statistics(hessian.clone()), setting, BILLM.options(setting), log))


def half(value):
    return float(np.float16(value))


def exact(value):
    return float(value)


def plain_terms(slab, mask, terms, rounded=exact):
    """The sum of so many binary terms on the mask, row by row; zero elsewhere."""
    total = np.zeros_like(slab)
    for i in range(len(slab)):
        on = mask[i]
        if not on.any():
            continue
        for _ in range(terms):
            rest = slab[i, on] - total[i, on]
            mean = rounded(rest.mean())
            spread = rounded(np.abs(rest - mean).mean())
            total[i, on] += mean + spread * np.where(rest >= mean, 1, -1)
    return total


def plain_billm(weight, hessian, size, *, metric="hessian", search_on="saliency", search_rest_terms=2,
                compensation="reference"):  # fmt: skip
    weight, hessian = weight.numpy().copy(), hessian.numpy().copy()
    columns = weight.shape[1]
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    out = np.zeros_like(weight)
    found = []
    for start in range(0, columns, size):
        end = min(start + size, columns)
        block = weight[:, start:end]
        saliency = block**2 / np.diag(factor)[start:end] ** 2 if metric == "hessian" else block
        slab = saliency if search_on == "saliency" else block
        order = np.argsort(-np.abs(saliency).sum(0), kind="stable")
        best, count = np.inf, None
        for k in range(1, min(49, end - start - 1) + 1):
            salient = np.zeros(slab.shape, bool)
            salient[:, order[:k]] = True
            rest = plain_terms(slab, ~salient, search_rest_terms)
            error = ((slab - plain_terms(slab, salient, 2) - rest) ** 2).mean()
            if error < best:
                best, count = error, k
        salient = np.zeros(slab.shape, bool)
        salient[:, order[:count]] = True
        best, value = np.inf, None
        for tried in np.quantile(np.abs(np.where(salient, 0, slab)), np.linspace(0.1, 0.9, 81)):
            near, far = ~salient & (np.abs(slab) < tried), ~salient & (np.abs(slab) >= tried)
            parts = plain_terms(slab, near, 1) + plain_terms(slab, far, 1) + plain_terms(slab, salient, 2)
            error = ((slab - parts) ** 2).mean()
            if error < best:
                best, value = error, tried
        near, far = ~salient & (np.abs(slab) < value), ~salient & (np.abs(slab) >= value)
        quantized = plain_terms(block, near, 1, half) + plain_terms(block, far, 1, half)
        quantized += plain_terms(block, salient, 2, half)
        quantized[:, dead[start:end]] = 0
        out[:, start:end] = quantized
        found.append((count, value))
        change = block - quantized
        if compensation == "exact":
            weight[:, end:] -= change @ np.linalg.inv(factor[start:end, start:end]) @ factor[start:end, end:]
        elif compensation == "reference":
            weight[:, end:] -= (change / np.diag(factor)[start:end]) @ factor[start:end, end:]
    return torch.from_numpy(out), found


OPTIONS = [
    {},
    {"metric": "magnitude"},
    {"search_on": "weight"},
    {"search_on": "weight", "search_rest_terms": 1},
    {"search_rest_terms": 1},
    {"compensation": "exact"},
    {"compensation": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("columns", [64, 75])
def test_equals_the_plain_implementation(options, columns):
    weight, hessian = problem(columns=columns, seed=columns)
    expected, _ = plain_billm(weight, hessian, 32, **options)
    assert torch.allclose(run(weight, hessian, **options).dequantize().double(), expected, atol=1e-5)


def test_no_more_columns_are_salient_than_49_in_a_block_of_128():
    weight, hessian = problem(rows=6, columns=128)
    # Counted with one term for the rest, a second one gains in every column.
    options = {"search_on": "weight", "search_rest_terms": 1}
    expected, ((count, _),) = plain_billm(weight, hessian, 128, **options)
    assert count == 49
    assert torch.allclose(run(weight, hessian, group=128, **options).dequantize().double(), expected, atol=1e-5)


def test_the_whole_row_can_be_one_block():
    weight, hessian = problem(columns=40)
    expected, _ = plain_billm(weight, hessian, 40)
    assert torch.allclose(run(weight, hessian, group=None).dequantize().double(), expected, atol=1e-5)


def test_a_dead_input_gets_zero_weights():
    weight, hessian = problem(columns=64)
    hessian[5], hessian[:, 5] = 0, 0
    found = run(weight, hessian).dequantize().double()
    assert (found[:, 5] == 0).all()
    assert torch.allclose(found, plain_billm(weight, hessian, 32)[0], atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_second_term_never_raises_the_error(seed):
    slab = problem(seed=seed)[0].numpy()
    mask = np.random.default_rng(seed).random(slab.shape) < 0.3
    errors = [((slab - plain_terms(slab, mask, terms))[mask] ** 2).sum() for terms in range(4)]
    assert errors == sorted(errors, reverse=True)
    block, none = torch.from_numpy(slab), torch.zeros(slab.shape, dtype=torch.bool)
    one, two = (binarize(block, torch.full((96,), salient), none)[0] for salient in (False, True))
    error = [(block - quantized).square().sum(1) for quantized in (one, two)]
    assert (error[1] <= error[0]).all()
    assert error[1].sum() < 0.5 * error[0].sum()


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_the_three_masks_part_the_block_and_salient_weights_are_whole_columns(options):
    weight, _ = problem(columns=64, seed=1)
    diagonal = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1
    salient, sparse = masks(weight, diagonal, BillmOptions(**options))
    assert 1 <= salient.sum() <= 49
    assert not (sparse & salient).any()
    assert sparse.any()
    assert not (sparse | salient).all()


def test_two_values_per_level_and_four_in_salient_columns():
    weight, hessian = problem(rows=6, columns=96)
    stored = run(weight, hessian, group=48)
    dense, salient = stored.dequantize(), stored.column_bits(stored.salient)
    marks = stored._bits(stored.marks, 0, None)
    for block in (slice(0, 48), slice(48, 96)):
        for row, mark in zip(dense[:, block], marks[:, block], strict=True):
            plain = ~salient[block]
            assert len(row[plain & mark].unique()) <= 2
            assert len(row[plain & ~mark].unique()) <= 2
            assert len(row[~plain].unique()) <= 4


@pytest.mark.parametrize("seed", range(3))
def test_the_searches_find_the_least_error_of_all_candidates(seed):
    weight, hessian = problem(rows=16, columns=32, seed=seed)
    _, ((count, value),) = plain_billm(weight, hessian, 32)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32)))
    slab = weight.square() / factor.diagonal().square()
    # The diagonal of the lower factor of the inverse is that of its transpose U.
    order = slab.sum(0).argsort(descending=True)
    assert salient_count(slab[:, order], 31, 2) == count
    salient = torch.zeros(32, dtype=torch.bool)
    salient[order[:count]] = True
    assert break_point(slab, salient).item() == pytest.approx(value)


def test_compensation_lowers_the_loss_and_the_exact_one_more():
    losses = dict.fromkeys(("none", "reference", "exact"), 0.0)
    for seed in range(5):
        weight, hessian = problem(rows=32, columns=128, seed=seed)
        for kind in losses:
            change = weight - run(weight, hessian, group=32, compensation=kind).dequantize()
            losses[kind] += torch.trace(change @ hessian @ change.T).item()
    assert losses["exact"] <= losses["reference"] < losses["none"]


def test_with_equal_inputs_the_masks_are_those_of_squared_magnitudes():
    weight, _ = problem(columns=64)
    diagonal = torch.full((64,), 0.25, dtype=torch.float64)
    by_hessian = masks(weight, diagonal, BillmOptions())
    by_magnitude = masks(weight.square(), diagonal, BillmOptions(metric="magnitude"))
    assert all(torch.equal(*pair) for pair in zip(by_hessian, by_magnitude, strict=True))


def test_headline_bits_count_signs_and_average_by_size():
    def planted(rows, columns, share):
        block = torch.randn(rows, columns)
        salient = torch.zeros(columns, dtype=torch.bool)
        salient[: round(share * columns)] = True
        sparse = (block.abs() > 1) & ~salient
        _, signs, marks, scales = binarize(block, salient, sparse)
        live = torch.ones(columns, dtype=torch.bool)
        return ResidualBinary.pack(signs, scales[:, None], live, columns, marks=marks, salient=salient).ledger()

    small, large = planted(8, 40, 0.1), planted(24, 40, 0.3)
    assert small.headline_bits == pytest.approx(1.1)
    assert Ledger.sum([small, large]).headline_bits == pytest.approx(1.25)


def test_says_how_many_columns_are_salient():
    lines = []
    weight, hessian = problem(columns=64)
    stored = run(weight, hessian, log=lines.append)
    share = stored.column_bits(stored.salient).float().mean()
    assert f"{share:.1%} of all" in lines[0]
    assert stored.ledger().headline_bits == pytest.approx(1 + share.item())
