"""Dual-binary weights: planes, storage, and products against dequantize-then-multiply."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels import cpu
from quant_engine.kernels.linear import QuantLinear
from quant_engine.kernels.matmul import matmul
from quant_engine.weights.dual_binary import DualBinary, planes


def random(rows, columns, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    shape = (rows, -(-columns // group))
    first = 0.5 + torch.rand(shape, generator=generator)
    second = -first * (0.2 + 0.6 * torch.rand(shape, generator=generator))
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    return weight, (first * sign).half().float(), (second * sign).half().float()


def nearest(weight, first, second, group):
    """Each weight at the nearest of the four levels, one weight after the other."""
    out = torch.empty_like(weight)
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            a, b = first[row, column // group], second[row, column // group]
            levels = torch.stack([torch.zeros(()), a, b, a + b])
            out[row, column] = levels[(levels - weight[row, column]).abs().argmin()]
    return out


@pytest.mark.parametrize("group", [8, 20, 48])
def test_a_weight_takes_the_nearest_of_its_four_levels(group):
    weight, first, second = random(5, 48, group)
    stored = DualBinary.pack(weight, first, second, group)
    assert torch.allclose(stored.dequantize(), nearest(weight, first, second, group), atol=1e-6)


def test_the_first_scales_are_a_2_bit_grid():
    generator = torch.Generator().manual_seed(0)
    weight, step = torch.randn(50, 200, generator=generator, dtype=torch.float64), 0.7
    first = torch.full((50, 1), 2 * step, dtype=torch.float64)
    one, two = planes(weight, first, -first / 2, 200)
    found = (2 * step * one.double() - step * two.double())[:, 0]
    assert torch.allclose(found, step * torch.round(weight / step).clamp(-1, 2))
    mirrored = planes(-weight, -first, first / 2, 200)
    assert torch.equal(torch.stack([one, two]), torch.stack(mirrored))


@pytest.mark.parametrize(("rows", "columns", "group"), [(16, 64, 32), (23, 100, 100), (23, 100, 12), (1500, 576, 64)])
@pytest.mark.parametrize("tokens", [1, 4, 5, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_planes_multiply_as_the_dense_weight(rows, columns, group, tokens, dtype):
    stored = DualBinary.pack(*random(rows, columns, group), group)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = matmul(x, stored)
    expected = x.double() @ stored.dequantize().double().T
    assert found.dtype == dtype
    change = (found.double() - expected).norm() / expected.norm()
    assert change < (1e-5 if dtype == torch.float32 else 1e-2)


def test_tiles_are_the_dequantized_rows():
    stored = DualBinary.pack(*random(20, 100, 12), 12)
    assert torch.equal(cpu.dequantize_rows(stored, 3, 11), stored.dequantize(3, 11))
    assert torch.equal(stored.dequantize()[3:11], stored.dequantize(3, 11))
    assert not cpu.fits(stored)
    stored = DualBinary.pack(*random(20, 128, 32), 32)
    assert torch.equal(cpu.dequantize_rows(stored, 3, 19), stored.dequantize(3, 19))
    assert cpu.fits(stored)


def test_goes_to_disk_and_back_bit_for_bit(tmp_path):
    layer = QuantLinear(DualBinary.pack(*random(24, 96, 32), 32))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    assert torch.equal(again.weight.dequantize(), layer.weight.dequantize())
    assert again.config() == layer.config()


@pytest.mark.parametrize(("columns", "group", "bits"), [(128, 128, 2.25), (128, 64, 2.5)])
def test_ledger_counts_every_stored_bit(columns, group, bits):
    stored = DualBinary.pack(*random(16, columns, group), group)
    assert stored.ledger().bits_per_weight == bits
    odd = DualBinary.pack(*random(17, 100, 12), 12)
    assert odd.ledger().total_bits == 8 * odd.stored_bytes()
    assert odd.ledger().bits["planes"] == 2 * 17 * 100
    assert odd.ledger().bits["scales"] == 2 * 16 * 17 * 9
