"""The kernels of other programs' forms against dequantize-then-matmul."""

import pytest
import torch
from formats import plain
from weights.test_gguf_blocks import random_blocks

from quant_engine.formats import FORMATS
from quant_engine.kernels import cpu, matmul
from quant_engine.weights.gguf_blocks import KINDS, GgufBlocks
from quant_engine.weights.rounded_inputs import RoundedInputs
from quant_engine.weights.scaled import Float8, ScaledInt


def scaled_int(bits, dtype, symmetric):
    codes, zeros, scales = plain.draw(37, 96, bits, 3)
    return ScaledInt.pack(codes, scales.to(dtype) * 0.3, None if symmetric else zeros, bits, 32)


def float8(dtype, groups):
    random = torch.Generator().manual_seed(0)
    values = torch.randn((37, 96), generator=random).mul_(20).to(torch.float8_e4m3fn)
    values[0, :4] = torch.tensor([0.0, -0.0, 2**-9, 448.0]).to(torch.float8_e4m3fn)
    return Float8.pack(values, torch.rand((37, groups), generator=random).to(dtype), 96 // groups)


def fp4(double):
    return FORMATS["bitsandbytes"].weight(plain.four_bits(37, 192, "fp4", double=double)[0], {})


def weights():
    """Each form with each of its variants that is compiled for itself."""
    for kind in KINDS:
        yield kind, lambda kind=kind: GgufBlocks.pack(random_blocks(kind, rows=37), kind)
    for symmetric in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"int4 {dtype} {symmetric}"
            yield name, lambda dtype=dtype, symmetric=symmetric: scaled_int(4, dtype, symmetric)
    yield "int8", lambda: scaled_int(8, torch.float32, True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield f"float8 {dtype}", lambda dtype=dtype: float8(dtype, 1 if dtype == torch.float32 else 3)
    yield "fp4", lambda: fp4(False)
    yield "fp4 doubly quantized", lambda: fp4(True)


WEIGHTS = dict(weights())


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_kernel_dequantizes_bit_for_bit_and_multiplies_as_the_form_does(name):
    weight = WEIGHTS[name]()
    assert cpu.fits(weight)
    assert weight.ledger().bytes == weight.stored_bytes()
    dense, before = weight.dequantize(), {key: tensor.clone() for key, tensor in weight.state_dict().items()}
    for count in (1, 4, 7, 20):
        x = torch.randn(count, weight.in_features, generator=torch.Generator().manual_seed(count))
        expected = (x.double() @ dense.double().T).float()
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * expected.abs().max())
    assert weight.interleaved
    assert torch.equal(cpu.dequantize_rows(weight, 5, 30), dense[5:30])
    assert torch.equal(weight.dequantize(32, 37), dense[32:])
    after = weight.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


@pytest.mark.parametrize("scale", [None, torch.tensor([0.25])])
def test_rounded_inputs_count_their_base_and_the_scale_that_they_store(scale):
    base = scaled_int(8, torch.float32, True)
    weight = RoundedInputs(base, "int8", scale)
    assert weight.ledger().bytes == weight.stored_bytes() == base.stored_bytes() + (0 if scale is None else 4)
