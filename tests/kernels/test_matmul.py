"""Every kernel against dequantize-then-matmul, over widths, shapes, groups and column orders."""

import pytest
import torch

from quant_engine.kernels import cpu, matmul
from quant_engine.kernels.linear import QuantLinear
from quant_engine.weights.grouped import GroupedInt


def stored(bits, rows, columns, group, *, symmetric=False, ordered=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scales = torch.rand(rows, groups, generator=generator).half() * 0.1 + 1e-6
    zeros = None if symmetric else torch.randint(0, 2**bits, (rows, groups), generator=generator)
    order = torch.randperm(columns, generator=generator) if ordered else None
    return GroupedInt.pack(codes, scales, zeros, bits, group, order=order)


SHAPES = [
    (5, 576, 64),
    (33, 576, 576),
    (16, 1536, 128),
    (7, 96, 32),
    (9, 160, 64),
    (6, 100, 64),
    (4, 45, 45),
    (3, 64, 20),
]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize("kind", ["plain", "symmetric", "ordered"])
def test_product_is_that_of_the_dequantized_weight(bits, rows, columns, group, kind):
    weight = stored(bits, rows, columns, group, symmetric=kind == "symmetric", ordered=kind == "ordered", seed=bits)
    dense = weight.dequantize()
    for count in (1, 3, 40):
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
        expected = (x.double() @ dense.double().T).float()
        scale = expected.abs().max()
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * scale)
        assert torch.allclose(matmul.tiled(x, weight), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("bits", range(1, 9))
def test_numba_dequantizes_bit_for_bit_as_the_form_does(bits):
    weight = stored(bits, 37, 150, 64, seed=bits)
    assert torch.equal(cpu.dequantize_rows(weight, 5, 30), weight.dequantize(5, 30))


def test_tiles_cover_a_weight_larger_than_one_tile(monkeypatch):
    monkeypatch.setattr(matmul, "TILE_WEIGHTS", 96 * 10)
    weight = stored(3, 37, 96, 32)
    x = torch.randn(20, 96)
    assert torch.allclose(matmul.tiled(x, weight), x @ weight.dequantize().T, atol=1e-4)


def test_linear_keeps_the_shape_and_type_of_its_input_and_adds_the_bias():
    weight = stored(4, 12, 64, 32)
    layer = QuantLinear(weight, torch.arange(12.0))
    x = torch.randn(2, 3, 64)
    expected = x @ weight.dequantize().T + torch.arange(12.0)
    assert torch.allclose(layer(x), expected, atol=1e-4)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_a_linear_holds_no_dense_weight():
    layer = QuantLinear(stored(3, 64, 576, 64))
    held = sum(t.numel() * t.element_size() for t in [*layer.parameters(), *layer.buffers()])
    assert held == layer.weight.stored_bytes() == layer.weight.ledger().bytes
    assert held < 0.25 * 64 * 576 * 2
