"""The codebook kernels against dequantize-then-matmul, over widths, shapes, blocks and side data."""

import pytest
import torch

from quant_engine.kernels import cpu, matmul
from quant_engine.weights.codebook import Codebook


def stored(bits, rows, columns, block, *, double=True, shifted=False):
    generator = torch.Generator().manual_seed(bits)
    blocks = -(-rows * columns // block)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scales = torch.rand(blocks, generator=generator) * 0.1
    shifts = torch.randn(blocks, generator=generator) * 0.02 if shifted else None
    return Codebook.pack(codes, scales, bits, block, double=double, shifts=shifts)


SHAPES = [(33, 576, 64), (7, 96, 64), (5, 96, 128), (40, 1536, 256), (6, 100, 64), (9, 64, 40)]
"""The block of the second lies across rows, that of the third is longer than a row; the last two take no row kernel."""


KINDS = [(2, True, True), (3, True, True), (4, True, False), (4, True, True), (4, False, False)]
"""Each width, and each combination of side data, which is compiled for itself: bits, double, shifted."""


@pytest.mark.parametrize(("rows", "columns", "block"), SHAPES)
@pytest.mark.parametrize(("bits", "double", "shifted"), KINDS)
def test_product_is_that_of_the_dequantized_weight(bits, rows, columns, block, double, shifted):
    weight = stored(bits, rows, columns, block, double=double, shifted=shifted)
    dense = weight.dequantize()
    for count in (1, 2, 7, 16, 40):
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
        expected = (x.double() @ dense.double().T).float()
        scale = expected.abs().max()
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * scale)
        assert torch.allclose(matmul.tiled(x, weight), expected, atol=1e-5 * scale)


@pytest.mark.parametrize(("bits", "double", "shifted"), KINDS)
def test_kernel_dequantizes_as_the_form_does(bits, double, shifted):
    weight = stored(bits, 37, 192, 64, double=double, shifted=shifted)
    assert cpu.fits(weight)
    expected = weight.dequantize(5, 30)
    assert torch.equal(cpu.dequantize_rows(weight, 5, 30), expected)
    assert torch.equal(weight.dequantize(5, 30), expected)
