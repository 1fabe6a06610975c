"""Information calibration against a plain search over its candidates, and the properties that follow from it."""

import math
import statistics

import numpy as np
import pytest
import torch

from quant_engine.kernels import entropy
from quant_engine.methods import METHODS, Layer, resolve_setting
from quant_engine.methods.ir_qlora import informative_shifts
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.codebook import construct_levels, dynamic_map, levels, round_to_levels

IR, NF = METHODS["ir_qlora"], METHODS["normal_float"]


def run(weight, bits=4, method=IR, **options):
    setting = method.resolve(QuantSetting(method=method.card.name, w_bits=bits, options=options))
    return method.quantize(Layer(weight.clone(), None, setting, method.options(setting), print))


def shifts_of(blocks, bits=4, **options):
    return informative_shifts(blocks, bits, IR.Options(**options))


def gaussian(count=256, size=64, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def entropies(blocks, shifts, bits=4):
    """Bits per code of each block, rounded around its shift."""
    codes, _ = round_to_levels(blocks, bits, blocks.shape[1], shifts)
    found = []
    for row in codes.tolist():
        shares = [row.count(code) / len(row) for code in set(row)]
        found.append(-math.fsum(share * math.log2(share) for share in shares))
    return torch.tensor(found)


def plain_shift(block, bits, reach, steps, unit):
    """One block, one candidate after the other, as the paper's algorithm reads; float32 like the reference code."""
    block = np.array(block, np.float32)
    centre = np.float32(sorted(block.tolist())[(len(block) - 1) // 2])
    scale = np.float32(max(abs(block - centre)) if unit == "absmax" else statistics.pstdev(block.astype(float)))
    if unit == "absmax":
        reach /= statistics.NormalDist().inv_cdf(0.9677083)
    known = np.array(construct_levels(bits).tolist(), np.float32)
    best, kept = -1.0, None
    for k in range(-steps, steps + 1):
        shift = centre + np.float32(reach * k / steps) * scale
        values = (block - shift) / max(abs(block - shift))
        codes = [int(np.argmin(abs(known - value))) for value in values]
        shares = sorted(codes.count(code) / len(codes) for code in set(codes))
        found = -math.fsum(share * math.log2(share) for share in shares)
        if found > best + 1e-12:
            best, kept = found, shift
    return float(kept), best


@pytest.mark.parametrize("unit", ["absmax", "deviation"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_finds_the_shift_of_a_plain_search(monkeypatch, bits, unit):
    monkeypatch.setattr("quant_engine.methods.ir_qlora.SEARCH_RANGE", 0.3)
    blocks = gaussian(24, seed=bits)
    found = shifts_of(blocks, bits, search_steps=20, search_unit=unit)
    plain = [plain_shift(block.tolist(), bits, 0.3, 20, unit) for block in blocks]
    assert torch.allclose(found, torch.tensor([shift for shift, _ in plain]), atol=1e-5)
    assert torch.allclose(entropies(blocks, found, bits), torch.tensor([best for _, best in plain]), atol=1e-6)


def test_the_search_for_other_devices_finds_the_same():
    blocks = gaussian()
    centers, units = blocks.median(1).values, blocks.abs().amax(1)
    offsets = torch.linspace(-0.2, 0.2, 21)
    for try_zero in (False, True):
        given = (blocks, centers, units, offsets, levels(4), try_zero)
        middles, terms = (levels(4)[1:] + levels(4)[:-1]) / 2, torch.tensor(entropy.information(64))
        other = entropy._search_on_device(blocks, centers, units, offsets, middles, terms, try_zero)
        assert torch.equal(entropy.best_shifts(*given), other)


def test_no_block_carries_less_than_around_its_median_and_on_average_more_than_normal_float():
    blocks = gaussian(4096)
    found = entropies(blocks, shifts_of(blocks))
    assert (found >= entropies(blocks, blocks.median(1).values) - 1e-6).all()
    normal_float = entropies(blocks, torch.zeros(len(blocks)))
    assert found.mean() > normal_float.mean() + 0.05
    # A block can lose against no shift at all, unless that is a candidate too.
    assert (found < normal_float - 1e-6).any()
    assert (entropies(blocks, shifts_of(blocks, try_zero=True)) >= normal_float - 1e-6).all()


def test_entropy_is_at_most_the_width_and_zero_for_constant_blocks():
    for bits in (2, 3, 4):
        assert (entropies(gaussian(), shifts_of(gaussian(), bits), bits) <= bits).all()
    constant = torch.full((3, 64), 0.7)
    assert torch.equal(shifts_of(constant), constant[:, 0])
    assert (entropies(constant, shifts_of(constant)) == 0).all()
    uniform = levels(4).repeat(4)[None]
    assert entropies(uniform, torch.zeros(1)) == 4
    assert sum(entropy.information(64)[4] for _ in range(16)) == 4 * entropy.UNIT


def test_a_range_of_zero_is_normal_float_around_the_median(monkeypatch):
    monkeypatch.setattr("quant_engine.methods.ir_qlora.SEARCH_RANGE", 0)
    weight = gaussian(8, 256)
    medians = weight.view(-1, 64).median(1).values
    stored = run(weight, double_quantization=False)
    centred = run(weight - medians.view(8, 4).repeat_interleave(64, 1), method=NF, double_quantization=False)
    assert torch.equal(stored.codes, centred.codes)
    assert torch.equal(stored.shifts, medians)
    assert torch.allclose(stored.scales, centred.scales)


def test_a_shifted_block_has_the_same_codes_and_its_shift_moves_along():
    weight = gaussian(16, 128)
    moved = weight + 0.5
    here, there = run(weight, double_quantization=False), run(moved, double_quantization=False)
    # Sums in float32 are not exact, so of two shifts with equally informative codes another may come out.
    close = (there.shifts - here.shifts - 0.5).abs() < 1e-5
    assert close.float().mean() > 0.9
    off = ((there.dequantize() - 0.5 - here.dequantize()).view(-1, 64)[close]).abs() > 1e-4
    assert off.float().mean() < 0.002  # values between two levels
    assert torch.allclose(
        entropies(weight.view(-1, 64), here.shifts), entropies(moved.view(-1, 64), there.shifts), atol=0.07
    )


def test_quantized_shifts_are_off_by_at_most_half_a_step_of_the_map():
    blocks = gaussian(1024) + torch.randn(1024, 1, generator=torch.Generator().manual_seed(9))
    exact = shifts_of(blocks)
    kept = run(blocks.view(256, 256)).shift()
    steps = exact.view(-1, 256).abs().amax(1).repeat_interleave(256)
    entries = dynamic_map()
    at = torch.bucketize(exact / steps, entries).clamp(1, 255)
    gap = torch.where(exact / steps < entries[0], 2 * (1 + entries[0]), entries[at] - entries[at - 1])
    assert ((kept - exact).abs() <= gap / 2 * steps + 1e-7).all()


@pytest.mark.parametrize("shape", [(6, 64), (5, 90), (3, 7)])
@pytest.mark.parametrize("fill", [0.0, 0.3])
def test_odd_shapes_and_empty_groups_are_finite(shape, fill):
    stored = run(torch.full(shape, fill))
    assert torch.allclose(stored.dequantize(), torch.full(shape, fill), atol=4e-3)
    weight = gaussian(*shape)
    assert (weight - run(weight).dequantize()).norm() < 0.2 * weight.norm()


def test_stored_bits_are_those_of_the_paper_plus_the_map_steps():
    stored = run(gaussian(256, 4096))
    assert stored.ledger().bits_per_weight == pytest.approx(4 + 2 * (8 / 64 + 32 / (64 * 256)), abs=1e-4)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"w_bits": 8}, "IR-QLoRA is defined for 2, 3, 4 weight bits"),
        ({"w_bits": 4, "options": {"search_steps": 0}}, "IR-QLoRA option search_steps"),
        ({"w_bits": 4, "options": {"search_unit": "sigma"}}, "IR-QLoRA option search_unit"),
        ({"w_bits": 4, "options": {"data": "/no/such/file.json"}}, "There is no training data /no/such/file.json"),
        ({"w_bits": 4, "options": {"data": "hub:a/b/c"}}, "names no hub data set"),
    ],
)
def test_what_is_not_defined_is_refused_in_a_sentence(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_setting(QuantSetting(method="ir_qlora", **setting))
