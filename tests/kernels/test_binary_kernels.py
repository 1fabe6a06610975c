"""The kernels of binary weights against dequantize-then-multiply."""

import os
import platform
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="features of x86 processors")
@pytest.mark.parametrize("features", ["", "+ssse3,+avx,+avx2,+fma,+f16c,+popcnt"])
def test_salient_weights_are_spread_over_lanes_on_processors_without_an_instruction_for_it(features, tmp_path):
    code = (
        "import torch; from test_binary import made; from quant_engine.kernels import matmul\n"
        "weight, dense = made('partly', 20, 160, 32)\n"
        "x = torch.randn(5, 160)\n"
        "assert torch.equal(matmul.tiled(torch.eye(160), weight), dense.T)\n"
        "assert torch.allclose(matmul.matmul(x, weight), x @ dense.T, atol=1e-4)"
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests / "weights"), str(tests.parent)])
    asked = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked, "PYTHONPATH": path}, check=True)


@pytest.mark.parametrize("form", FORMS)
def test_an_interleaved_weight_goes_to_a_file_as_the_plain_one(form):
    weight, _ = made(form, 37, 192, 64)
    before = {name: buffer.clone() for name, buffer in weight.state_dict().items()}
    cpu.prepare(weight)
    assert weight.interleaved
    after = weight.state_dict()
    assert after.keys() == before.keys()
    for name, buffer in before.items():
        assert torch.equal(after[name], buffer), name
        assert after[name].dtype == buffer.dtype


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
