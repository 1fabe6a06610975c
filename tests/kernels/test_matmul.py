"""Every kernel against dequantize-then-matmul, over widths, shapes, groups and column orders."""

import os
import subprocess
import sys

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
    for count in (1, 2, 7, 16, 40):
        x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
        expected = (x.double() @ dense.double().T).float()
        scale = expected.abs().max()
        assert torch.allclose(matmul.matmul(x, weight), expected, atol=1e-5 * scale)
        assert torch.allclose(matmul.tiled(x, weight), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("columns", "group"), [(160, 64), (96, 96), (150, 64)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_kernel_dequantizes_bit_for_bit_as_the_form_does(bits, columns, group, symmetric):
    weight = stored(bits, 37, columns, group, symmetric=symmetric, seed=bits)
    expected = weight.dequantize()
    assert torch.equal(cpu.dequantize_rows(weight, 5, 30), expected[5:30])
    assert torch.equal(cpu.dequantize_rows(weight, 32, 37), expected[32:])
    assert torch.equal(weight.dequantize(5, 30), expected[5:30])


@pytest.mark.parametrize("rows", range(1, 17))
def test_up_to_sixteen_rows_are_multiplied_from_the_words(rows):
    weight = stored(3, 21, 192, 64)
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(rows))
    expected = x @ weight.dequantize().T
    assert torch.allclose(cpu.multiply(x, weight), expected, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_two_threads_compute_what_a_single_thread_computes(monkeypatch, rows):
    weight = stored(4, 83, 128, 64)
    x = torch.randn(rows, 128)
    expected = matmul.matmul(x, weight)
    monkeypatch.setattr(cpu, "SERIAL_WORK", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = matmul.matmul(x, weight)
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "symmetric", "ordered"])
def test_a_weight_that_was_multiplied_is_stored_as_before(kind):
    weight = stored(3, 37, 96, 32, symmetric=kind == "symmetric", ordered=kind == "ordered")
    before = {name: tensor.clone() for name, tensor in weight.state_dict().items()}
    dense = weight.dequantize()
    matmul.matmul(torch.randn(1, 96), weight)
    assert weight.interleaved
    assert torch.equal(weight.dequantize(), dense)
    after = weight.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not weight.to("cpu").interleaved
    assert all(torch.equal(tensor, before[name]) for name, tensor in weight.named_buffers())


def test_weights_that_lie_interleaved_take_new_ones_from_a_state_dict():
    weight, other = stored(4, 20, 64, 32, seed=1), stored(4, 20, 64, 32, seed=2)
    x = torch.randn(2, 64)
    matmul.matmul(x, weight)
    weight.load_state_dict(other.state_dict())
    assert torch.equal(matmul.matmul(x, weight), matmul.matmul(x, other))


def test_machine_code_is_vector_code_and_found_again_by_another_process(tmp_path):
    code = (
        "import re; from quant_engine.kernels import compiled\n"
        "run = compiled.product(0, 4, 0)\n"
        "code = '' if run.cache_hits else run._library.get_asm_str()\n"
        "print(run.cache_hits, len(re.findall(r'vfmadd.*ps.*[yz]mm', code)), len(re.findall('vfmadd.*ss', code)))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) for _ in range(2)]
    (found, products, scalar), again = (map(int, run.split()) for run in runs)
    assert (found, next(again)) == (0, 1)
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        # For each code of a block, one product with a single activation row and four with four.
        assert products >= 32 * (1 + 4)
        assert scalar == 0


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


TWO_THREADS = """
import threading, torch
from quant_engine.kernels import cpu, matmul
from quant_engine.weights.half import Half

cpu.SERIAL_WORK = 0

def work(weight):
    torch.set_num_threads(2)
    for rows in (4, 20) * 150:
        matmul.matmul(torch.ones(rows, 512), weight)

threads = [threading.Thread(target=work, args=(Half.pack(torch.ones(512, 512).half()),)) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_two_threads_may_multiply_at_once_whatever_numba_shares_work_with():
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    ended = subprocess.run([sys.executable, "-c", TWO_THREADS], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
