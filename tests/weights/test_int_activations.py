"""Integer weights and activations: storage, and the products against rounding and multiplying in float64."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels import cpu
from quant_engine.kernels.linear import QuantLinear
from quant_engine.kernels.matmul import matmul
from quant_engine.weights.int_activations import IntActivations, quantize_rows, quantize_tokens


def random(rows, columns, bits, a_bits=8, quantized_output=False, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, scales = quantize_rows(weight, bits)
    return IntActivations.pack(codes, scales, bits, a_bits, quantized_output), codes, scales


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [64, 100])
def test_dequantizes_to_its_codes_and_scales(bits, columns):
    stored, codes, scales = random(17, columns, bits)
    assert torch.equal(stored.dequantize(), codes * scales.float())
    assert torch.equal(stored.integers(3, 9).float(), codes[3:9])


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("rows", [1, 4, 5, 33])
@pytest.mark.parametrize(("outputs", "columns"), [(16, 64), (23, 100), (2500, 576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_product_is_that_of_the_rounded_numbers(bits, rows, outputs, columns, dtype):
    stored, codes, scales = random(outputs, columns, bits, a_bits=bits)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens, delta = quantize_tokens(x, bits)
    expected = (tokens.double() * delta.double()) @ (codes.double() * scales.double()).T
    found = matmul(x, stored)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-4)


@pytest.mark.skipif(not cpu.sums_integers(random(16, 64, 8)[0]), reason="a CPU with integer dot products")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 3, 4, 16, 40])
def test_sums_are_those_of_integers_to_the_last_bit(bits, rows):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (37, 4096), generator=generator).float()
    x = torch.randint(-127, 128, (rows, 4096), generator=generator).float()
    x[:, 0] = 127  # so that a token's scale is one
    stored = IntActivations.pack(codes, torch.rand(37, 1, generator=generator) + 0.1, bits, 8, False)
    expected = (x.double() @ codes.double().T).float() * stored.row_scales.float()
    assert torch.equal(matmul(x, stored), expected)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_a_token_that_is_not_a_number_stays_so_and_others_are_as_before(rows):
    stored, _, _ = random(20, 96, 8)
    x = torch.randn(rows, 96)
    expected = matmul(x, stored)
    x[0, 5] = torch.nan
    found = matmul(x, stored)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], expected[1:])


def test_goes_to_disk_and_back_bit_for_bit(tmp_path):
    layer = QuantLinear(random(24, 96, 6, a_bits=5, quantized_output=True)[0])
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    x = torch.randn(5, 96)
    assert torch.equal(again(x), layer(x))
    assert again.config() == layer.config()


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_ledger_counts_every_stored_bit(bits):
    stored, _, _ = random(17, 100, bits)
    ledger = stored.ledger()
    assert ledger.total_bits == 8 * stored.stored_bytes()
    assert ledger.bits["codes"] == 17 * 100 * bits
    assert ledger.bits["scales"] == 17 * 16
    assert "zeros" not in ledger.bits


def test_outputs_are_rounded_after_the_bias():
    stored, _, _ = random(16, 64, 8, a_bits=4, quantized_output=True)
    plain, _, _ = random(16, 64, 8, a_bits=4)
    bias, x = torch.randn(16), torch.randn(3, 64)
    codes, scale = quantize_tokens(QuantLinear(plain, bias)(x), 4)
    assert torch.equal(QuantLinear(stored, bias)(x), codes * scale)
