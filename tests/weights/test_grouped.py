"""Properties of uniform grids (each with a plain computation beside it) and of their storage."""

import pytest
import torch

from quant_engine.weights.grouped import GroupedInt, grids, round_to_grid


def gaussian(rows=24, columns=160, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[:, ::37] *= 8
    return weight


def quantized(weight, bits, group, **kind):
    scales, zeros = grids(weight, bits, group, **kind)
    codes = round_to_grid(weight, scales, zeros, bits, group)
    return GroupedInt.pack(codes, scales, None if kind.get("symmetric") else zeros, bits, group)


def plain_rtn(weight, bits, group):
    """Round to nearest, number by number, with the float16 nearest to a scale."""
    out = torch.empty_like(weight)
    top = 2**bits - 1
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[r, start : start + group]
            low, high = min(0.0, part.min().item()), max(0.0, part.max().item())
            exact = torch.tensor(high) - torch.tensor(low)
            scale = (exact / top).half().float()
            zero = torch.round(-low / scale).clamp(0, top)
            codes = (torch.round(part / scale) + zero).clamp(0, top)
            out[r, start : start + group] = scale * (codes - zero)
    return out


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [32, 64, 50, 160, 1000])
def test_equals_plain_rounding_group_by_group(bits, group):
    weight = gaussian(rows=6)
    assert torch.allclose(quantized(weight, bits, group).dequantize(), plain_rtn(weight, bits, group), atol=1e-7)


@pytest.mark.parametrize("bits", range(1, 9))
def test_error_is_at_most_half_a_step_and_what_rounding_the_scale_moves(bits):
    weight = gaussian(seed=bits)
    scales, _ = grids(weight, bits, 32)
    error = (weight - quantized(weight, bits, 32).dequantize()).abs().view(24, -1, 32)
    at_the_end = (2**bits - 1) * 2.0**-11
    assert (error <= scales.float()[..., None] * (0.5 + at_the_end) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", [{}, {"around_zero": False}, {"symmetric": True}], ids=str)
def test_a_range_clipped_on_both_sides_uses_all_codes(bits, kind):
    """Both ends lie halfway between two codes: one of them goes outwards."""
    limits = torch.rand(200, 1, generator=torch.Generator().manual_seed(bits)) * 3 + 1e-3
    weight = torch.cat([-limits, limits, limits * torch.linspace(-1, 1, 2 ** (bits + 2))], 1)
    scales, zeros = grids(weight, bits, weight.shape[1], **kind)
    codes = round_to_grid(weight, scales, zeros, bits, weight.shape[1])
    assert (codes.amin(1) == 0).all()
    assert (codes.amax(1) == 2**bits - 1).all()
    off = (weight - scales.float() * (codes.float() - zeros.float())).abs()
    assert (off <= scales.float() * (0.5 + (2**bits - 1) * 2.0**-10)).all()


@pytest.mark.parametrize("size", [2.0**-24, 2.0**-20, 2.0**-15])
def test_a_range_of_tiny_weights_is_spanned(size):
    """Float16 is coarse there."""
    weight = size * torch.linspace(-2.9, 4.3, 64).reshape(1, -1)
    scales, _ = grids(weight, 3, 64)
    assert 7 * scales.float().item() >= 7.2 * size * (1 - 1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_stays_exactly_zero(symmetric):
    weight = gaussian()
    weight[:, ::5] = 0
    weight[3] = 0
    weight[4] = weight[4].abs() + 1
    dequantized = quantized(weight, 3, 32, symmetric=symmetric).dequantize()
    assert (dequantized[weight == 0] == 0).all()
    assert torch.isfinite(dequantized).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_rounding_twice_is_rounding_once_with_exact_scales(bits):
    weight = gaussian(seed=3).double()

    def once(w):
        scales, zeros = grids(w, bits, 32, scale_dtype=torch.float64)
        scale, zero = (v.double().repeat_interleave(32, 1) for v in (scales, zeros))
        return scale * (round_to_grid(w, scales, zeros, bits, 32).double() - zero)

    assert torch.allclose(once(once(weight)), once(weight), rtol=1e-6, atol=1e-12)


def test_smaller_groups_and_more_bits_lose_less():
    weight = gaussian(rows=64, columns=512)
    loss = lambda bits, group: (weight - quantized(weight, bits, group).dequantize()).square().sum().item()  # noqa: E731
    assert loss(3, 128) < loss(3, 512)
    assert loss(8, 128) < loss(4, 128) < loss(2, 128)


def test_clip_search_lowers_the_error_that_it_minimises():
    weight = gaussian(rows=16, columns=128)
    plain, searched = (
        (weight - quantized(weight, 3, 128, mse_clip=clip).dequantize()).abs().pow(2.4).sum() for clip in (False, True)
    )
    assert searched < 0.9 * plain


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_ledger_counts_every_stored_bit(bits, symmetric):
    weight = gaussian(rows=17, columns=150)
    stored = quantized(weight, bits, 64, symmetric=symmetric)
    ledger = stored.ledger()
    assert ledger.total_bits == 8 * stored.stored_bytes()
    assert ledger.bits["codes"] == 17 * 150 * bits
    assert ledger.bits["scales"] == 17 * 3 * 16
    assert ledger.bits.get("zeros", 0) == (0 if symmetric else 17 * 3 * bits)


def test_bits_per_weight_are_the_field_s_formula():
    stored = quantized(torch.randn(256, 4096), 4, 128)
    assert stored.ledger().bits_per_weight == pytest.approx(4 + (16 + 4) / 128)


def test_column_order_is_undone_when_dequantizing():
    weight = gaussian(columns=96)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    scales, zeros = grids(weight[:, order], 4, 32)
    codes = round_to_grid(weight[:, order], scales, zeros, 4, 32)
    stored = GroupedInt.pack(codes, scales, zeros, 4, 32, order=order)
    plain = GroupedInt.pack(codes, scales, zeros, 4, 32).dequantize()
    assert torch.equal(stored.dequantize()[:, order], plain)
    assert stored.ledger().bits["order"] == 96 * 32


def test_empty_form_takes_the_buffers_back_bit_for_bit():
    stored = quantized(gaussian(columns=150), 5, 64)
    again = GroupedInt.empty(**stored.config())
    again.load_state_dict(stored.state_dict())
    assert torch.equal(again.dequantize(), stored.dequantize())
