"""Weights in 16 bits: products and rows are those of the values, and nothing is added to what they take."""

import pytest
import torch

from quant_engine.kernels import cpu
from quant_engine.kernels.linear import HalfEmbedding, HalfLinear
from quant_engine.kernels.matmul import matmul, tiled
from quant_engine.weights.half import Half

DTYPES = [torch.float16, torch.bfloat16]


def values(rows, columns, dtype):
    """Of all sizes, those too small for normal numbers included."""
    generator = torch.Generator().manual_seed(rows)
    exponents = torch.randint(-26, 4, (rows, columns), generator=generator)
    return (torch.randn(rows, columns, generator=generator) * 2.0**exponents).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 96), (16, 576), (7, 45)])
def test_product_is_that_of_the_values(dtype, shape):
    dense = values(*shape, dtype)
    weight = Half.pack(dense.clone())
    assert torch.equal(weight.dequantize(2, 6), dense[2:6].float())
    for count in (1, 3, 16, 40):
        x = torch.randn(count, shape[1])
        wanted = (x.double() @ dense.double().T).float()
        for found in (matmul(x, weight), tiled(x, weight)):
            assert torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max())
    assert torch.equal(weight.dequantize(), dense.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_read_bit_for_bit_however_they_lie(dtype):
    dense, tokens = values(37, 64, dtype), torch.tensor([[0, 36], [17, 17]])
    embedding = HalfEmbedding(Half.pack(dense.clone()))
    assert torch.equal(embedding(tokens), dense.float()[tokens])
    assert torch.equal(cpu.dequantize_rows(embedding.weight, 3, 30), dense[3:30].float())
    assert embedding.weight.interleaved
    assert torch.equal(embedding(tokens), dense.float()[tokens])
    assert torch.equal(embedding.state_dict()["weight.values"], dense)


def test_a_linear_in_halves_passes_gradients_on():
    dense = values(20, 64, torch.float16)
    layer, x = HalfLinear(Half.pack(dense.clone()), torch.arange(20.0)), torch.randn(3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    (other @ dense.float().T + torch.arange(20.0)).square().sum().backward()
    assert torch.allclose(x.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_sixteen_bits_a_weight_are_all_that_is_stored():
    weight = Half.pack(values(10, 64, torch.float16))
    assert weight.ledger().bits_per_weight == 16
    assert weight.ledger().bytes == weight.stored_bytes() == 10 * 64 * 2
