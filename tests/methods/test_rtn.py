"""RTN itself, with all of its options, against rounding number by number."""

import pytest
import torch

from quant_engine.methods import METHODS, Layer
from quant_engine.spec import QuantSetting

RTN = METHODS["rtn"]


def problem(rows=6, columns=150, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[:, ::37] *= 8
    return weight


def run(weight, bits, group, **options):
    setting = RTN.resolve(QuantSetting(method="rtn", w_bits=bits, group_size=group, options=options))
    return RTN.quantize(Layer(weight.clone(), None, setting, RTN.options(setting), print))


def half(exact, *, down=False):
    """The nearest float16, or the one at or below."""
    scale = torch.tensor(exact).half()
    return (torch.nextafter(scale, torch.zeros_like(scale)) if down and scale.float() > exact else scale).item()


def plain_grid(low, high, bits, symmetric):
    """Scale and zero point of a range that holds 0."""
    top = 2**bits - 1
    if symmetric:
        return half(2 * max(-low, high) / top, down=True), 2 ** (bits - 1)
    scale = half((high - low) / top, down=-low == high)
    return scale, min(max(round(-low / scale), 0), top)


def plain_group(part, bits, symmetric, mse_clip):
    """One group of weights, rounded to the best of its grids: the whole range, or 80 of them with `mse_clip`."""
    low, high = min(0.0, part.min().item()), max(0.0, part.max().item())
    best = None
    for step in range(80 if mse_clip else 1):
        keep = 1 - 0.01 * step
        scale, zero = plain_grid(low * keep, high * keep, bits, symmetric)
        rounded = torch.tensor(
            [(min(max(round(w / scale) + zero, 0), 2**bits - 1) - zero) * scale for w in part.tolist()]
        )
        error = (rounded - part).abs().pow(2.4).sum().item()
        if best is None or error < best[0] * (1 - 1e-6):
            best = error, rounded
    return best


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_rounding_number_by_number(bits, group, symmetric):
    weight = problem(seed=bits)
    found = run(weight, bits, group, symmetric=symmetric).dequantize()
    for row, rounded in zip(weight, found, strict=True):
        expected = [plain_group(part, bits, symmetric, False)[1] for part in row.split(group or len(row))]
        assert torch.allclose(rounded, torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_clip_search_finds_the_best_of_80_ranges(bits, symmetric):
    weight = problem(rows=3, seed=bits)
    found = run(weight, bits, 64, symmetric=symmetric, mse_clip=True).dequantize()
    for row, rounded in zip(weight, found, strict=True):
        for part, own in zip(row.split(64), rounded.split(64), strict=True):
            least = plain_group(part, bits, symmetric, True)[0]
            assert (own - part).abs().pow(2.4).sum().item() == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_ties_and_the_ends_of_the_range_are_off_by_half_a_step_at_most(bits):
    top = 2**bits - 1
    step = 2.0**-6  # a scale that float16 holds exactly
    for lowest in range(-top, 1):
        row = torch.tensor([lowest * step, (lowest + top) * step, *((lowest + k + 0.5) * step for k in range(top))])
        stored = run(row[None], bits, None)
        assert (row - stored.dequantize()[0]).abs().max() <= step / 2
        assert torch.equal(stored.dequantize()[0, :2], row[:2])


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_group_has_no_more_values_than_its_width_can_name(bits):
    for part in run(problem(columns=2048), bits, 1024).dequantize().split(1024, 1):
        assert all(len(row.unique()) <= 2**bits for row in part)
