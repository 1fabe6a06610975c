"""Groups of different widths: each part is what it would be alone, in its place; disk and back; the ledger."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels import matmul
from quant_engine.kernels.linear import QuantLinear
from quant_engine.weights.mixed_width import MixedWidth


def made(widths, bits, group=32, columns=None, rows=7, seed=0):
    """A random weight, and the same computed group by group."""
    generator = torch.Generator().manual_seed(seed)
    columns = columns or group * len(widths)
    per_column = torch.tensor(widths).repeat_interleave(group)[:columns]
    codes = (torch.rand(rows, columns, generator=generator) * 2**per_column).to(torch.uint8)
    scales = torch.rand(rows, len(widths), generator=generator).half()
    zeros = (torch.rand(rows, len(widths), generator=generator) * 2 ** torch.tensor(widths)).to(torch.uint8)
    means = torch.randn(rows, len(widths), generator=generator).half()
    live = torch.rand(columns, generator=generator) < 0.9
    weight = MixedWidth.pack(widths, codes, scales, zeros, means, live, bits, group)
    expected = torch.empty(rows, columns)
    for index, width in enumerate(widths):
        place = slice(index * group, min(index * group + group, columns))
        scale, code = scales[:, index, None].float(), codes[:, place].float()
        if width == 1:
            mean = means[:, index, None].float()
            expected[:, place] = torch.where(code > 0, mean + scale, mean - scale) * live[place]
        else:
            expected[:, place] = scale * (code - zeros[:, index, None].float())
    return weight, expected


CASES = [
    ([2, 1, 3, 2, 3, 1], 2, 32, None),
    ([2, 3, 3, 4, 2, 4, 3], 3, 32, 6 * 32 + 20),
    ([4, 4, 4], 4, 32, None),
    ([1, 2, 3, 2], 2, 20, 75),
    ([6, 7, 8], 7, 8, None),
    ([3], 3, 40, None),
]


@pytest.mark.parametrize(("widths", "bits", "group", "columns"), CASES)
def test_every_group_is_dequantized_at_its_own_width(widths, bits, group, columns):
    weight, expected = made(widths, bits, group, columns)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.dequantize(2, 5), expected[2:5])


@pytest.mark.parametrize(("widths", "bits", "group", "columns"), CASES)
def test_product_is_that_of_the_dequantized_weight(widths, bits, group, columns):
    weight, dense = made(widths, bits, group, columns)
    for count in (1, 3, 40):
        x = torch.randn(count, weight.in_features, generator=torch.Generator().manual_seed(count))
        expected = x @ dense.T
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize(("widths", "bits", "group", "columns"), CASES)
def test_goes_to_a_file_and_back_bit_for_bit(widths, bits, group, columns, tmp_path):
    weight, expected = made(widths, bits, group, columns)
    layer = QuantLinear(weight)
    save_file(layer.state_dict(), tmp_path / "weight.safetensors")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "weight.safetensors"), assign=True)
    assert torch.equal(again.weight.dequantize(), expected)
    assert again.weight.ledger() == weight.ledger()


@pytest.mark.parametrize(("widths", "bits", "group", "columns"), CASES)
def test_ledger_counts_every_stored_bit(widths, bits, group, columns):
    weight, _ = made(widths, bits, group, columns)
    assert weight.ledger().total_bits == 8 * weight.stored_bytes()


def test_bits_are_the_field_s_formula():
    weight, _ = made([2, 1, 3, 2, 2, 2, 3, 1], 2, group=128, rows=256)
    ledger = weight.ledger()
    assert ledger.headline_bits == 2
    one_bit = 2 / 8
    side = ((1 - one_bit) * 16 + (4 * 2 + 2 * 3) / 8 + one_bit * 32) / 128
    assert ledger.bits_per_weight == pytest.approx(2 + side, abs=0.01)
