"""NormalFloat levels, the dynamic map, and the storage of codebook weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.weights.codebook import (
    NF4,
    Codebook,
    construct_levels,
    dynamic_map,
    in_blocks,
    levels,
    nearest,
    quantize_again,
    round_to_levels,
)
from quant_engine.weights.registry import FORMS

NF3 = [-1, -0.4786292, -0.2171418, 0, 0.1609302, 0.3379152, 0.5626170, 1]
NF2 = [-1, 0, 0.3379152, 1]


def gaussian(rows=32, columns=192, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def stored(weight, bits=4, block=64, double=True, shifted=False):
    shifts = in_blocks(weight, block).median(1).values if shifted else None
    codes, scales = round_to_levels(weight, bits, block, shifts)
    return Codebook.pack(codes, scales, bits, block, double=double, shifts=shifts)


def plain(weight, bits, block, shifted):
    """Value by value over the flattened matrix, nearest level by comparing all of them."""
    flat = weight.flatten()
    out = torch.empty_like(flat)
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        padded = torch.zeros(block)
        padded[: len(part)] = part
        shift = padded.median() if shifted else torch.zeros(())
        scale = (part - shift).abs().max()
        unit = (part - shift) / scale if scale > 0 else torch.zeros_like(part)
        codes = (unit[:, None] - levels(bits)).abs().argmin(1)
        out[start : start + block] = levels(bits)[codes] * scale + shift
    return out.view(weight.shape)


def test_levels_are_those_of_the_library():
    table = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert torch.allclose(levels(4), torch.tensor(table), rtol=0, atol=1e-7)
    assert torch.equal(levels(4), torch.tensor(NF4))
    assert torch.allclose(levels(3), torch.tensor(NF3), atol=1e-7)
    assert torch.allclose(levels(2), torch.tensor(NF2), atol=1e-7)
    assert (construct_levels(4) - torch.tensor(NF4, dtype=torch.float64)).abs().max() < 2e-7


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_distinct_sorted_and_hold_zero_and_both_ends(bits):
    assert len(levels(bits)) == 2**bits
    assert (levels(bits).diff() > 0).all()
    assert {-1.0, 0.0, 1.0} <= set(levels(bits).tolist())


def test_dynamic_map_has_seven_decades_a_one_and_no_minus_one():
    entries = dynamic_map()
    assert len(entries) == 256
    assert (entries.diff() > 0).all()
    assert entries[-1] == 1
    assert 0 in entries
    assert entries[0] == pytest.approx(-0.99297, abs=1e-5)
    assert entries[entries > 0][0] == pytest.approx(0.55e-6)


def test_nearest_is_the_smallest_distance_and_the_lower_of_two():
    values = gaussian(1, 5000)[0] * 10
    distances = (values[:, None] - levels(4)).abs()
    found = nearest(values, levels(4)).long()
    assert torch.allclose(distances.gather(1, found[:, None])[:, 0], distances.min(1).values)
    assert nearest(torch.tensor([0.5]), torch.tensor([0.0, 1.0])) == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [16, 64, 100])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("columns", [192, 50])
def test_equals_plain_rounding_block_by_block(bits, block, shifted, columns):
    weight = gaussian(7, columns, seed=bits)
    found = stored(weight, bits, block, double=False, shifted=shifted).dequantize()
    assert torch.allclose(found, plain(weight, bits, block, shifted), atol=1e-7)


def test_largest_of_each_block_is_exact_and_no_error_exceeds_half_the_widest_gap():
    weight = gaussian()
    blocks = in_blocks(weight, 64)
    error = in_blocks(weight - stored(weight, double=False).dequantize(), 64).abs()
    largest = blocks.abs().argmax(1, keepdim=True)
    assert (error.gather(1, largest) == 0).all()
    assert (error.amax(1) <= blocks.abs().amax(1) * 0.152).all()


def test_rounding_twice_gives_the_same_codes():
    weight = gaussian(seed=3)
    codes, scales = round_to_levels(weight, 4, 64)
    again, _ = round_to_levels(Codebook.pack(codes, scales, 4, 64, double=False).dequantize(), 4, 64)
    assert torch.equal(codes, again)


def test_double_quantization_costs_next_to_nothing():
    weight = gaussian(256, 256)
    once, twice = stored(weight, double=False), stored(weight)
    steps = twice.scale_steps.repeat_interleave(256)[: twice.blocks]
    assert ((once.scale() - twice.scale()).abs() < 0.02 * steps).all()
    loss = [(weight - s.dequantize()).square().sum().item() for s in (once, twice)]
    assert loss[1] < 1.01 * loss[0]


def test_twice_quantized_shifts_are_off_by_at_most_half_a_gap_of_the_map():
    shifts = gaussian(1, 1000)[0]
    codes, steps = quantize_again(shifts)
    step = steps.repeat_interleave(256)[:1000]
    entries = dynamic_map()
    found = entries[codes.long()] * step
    # Below the lowest entry, which is not -1, the way to it counts.
    gap = torch.stack([entries.diff()[(codes.long() + off).clamp(0, 254)] for off in (-1, 0)]).amax(0)
    assert ((found - shifts).abs() <= torch.maximum(gap / 2, 1 + entries[0]) * step * (1 + 1e-5)).all()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_blocks_of_one_value_and_of_zeros_are_exact_or_near(shifted, double):
    weight = gaussian()
    weight[3], weight[4] = 0, 0.25
    found = stored(weight, double=double, shifted=shifted).dequantize()
    assert torch.isfinite(found).all()
    assert found[3].abs().max() <= (0.003 if shifted and double else 0)
    assert torch.allclose(found[4], weight[4], atol=0.01 if double else 1e-7)
    assert (stored(torch.zeros(4, 64), double=double, shifted=shifted).dequantize() == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("columns", [192, 50])
def test_file_gives_the_weight_back_bit_for_bit_and_ledger_counts_it_all(bits, double, shifted, columns, tmp_path):
    weight = stored(gaussian(9, columns), bits, double=double, shifted=shifted)
    save_file(weight.state_dict(), tmp_path / "weight")
    again = FORMS["codebook"].empty(**weight.config())
    again.load_state_dict(load_file(tmp_path / "weight"))
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert weight.ledger().total_bits == 8 * weight.stored_bytes()
    for start, end in ((0, 4), (3, 9), (5, 6)):
        assert torch.equal(weight.dequantize(start, end), weight.dequantize()[start:end])


def test_bits_per_weight_are_the_field_s_formulas():
    weight = gaussian(256, 4096)
    assert stored(weight, double=False).ledger().bits_per_weight == 4 + 32 / 64
    once_for_all = 32 / weight.numel()
    expected = 4 + 8 / 64 + 32 / (64 * 256) + once_for_all
    assert stored(weight).ledger().bits_per_weight == pytest.approx(expected)
    shifted = 4 + 2 * (8 / 64 + 32 / (64 * 256)) + once_for_all
    assert stored(weight, shifted=True).ledger().bits_per_weight == pytest.approx(shifted)
