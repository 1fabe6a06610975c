"""The kernels of binary weights against dequantize-then-multiply."""

import pytest
import torch
from weights.test_binary import FORMS, made

from quant_engine.kernels import cpu, matmul

SHAPES = [(9, 576, 64), (20, 160, 32), (17, 150, 64), (6, 45, 45), (4, 100, 25), (5, 1536, 128), (3, 200, 200)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_product_is_that_of_the_dequantized_weight(form, rows, columns, group):
    weight, dense = made(form, rows, columns, group, seed=rows)
    for count in (1, 2, 7, 16, 40):
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
        expected = (x.double() @ dense.double().T).float()
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * expected.abs().max())
        assert torch.allclose(matmul.tiled(x, weight), expected, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_numba_dequantizes_bit_for_bit_as_the_form_does(form, rows, columns, group):
    weight, _ = made(form, rows, columns, group)
    expected = weight.dequantize(1)
    assert torch.equal(matmul.CPU_KERNELS[weight.form].dequantize_rows(weight, 1, rows), expected)
    assert torch.equal(weight.dequantize(1), expected)


@pytest.mark.parametrize("form", FORMS)
def test_groups_that_cut_through_a_word_are_left_to_tiles(form):
    assert not cpu.fits(made(form, 3, 45, 45)[0])
    assert not cpu.fits(made(form, 4, 96, 24)[0])
    assert cpu.fits(made(form, 3, 96, 96)[0])


@pytest.mark.parametrize("form", FORMS)
def test_kernels_leave_torch_s_number_of_threads_alone(form):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            matmul.matmul(torch.randn(1, 96), made(form, 40, 96, 32)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
