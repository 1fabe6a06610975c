"""The GPU's kernels against dequantize-then-matmul: on a GPU where there is one, else in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from quant_engine.kernels import gpu, gpu_row  # noqa: E402
from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary  # noqa: E402
from quant_engine.weights.codebook import Codebook  # noqa: E402
from quant_engine.weights.dual_binary import DualBinary  # noqa: E402
from quant_engine.weights.grouped import GroupedInt  # noqa: E402
from quant_engine.weights.int_activations import IntActivations  # noqa: E402
from quant_engine.weights.rotated import RotatedInt  # noqa: E402

SHAPES = [(33, 128, 64), (33, 136, 64), (9, 100, 20), (6, 72, 72), (5, 300, 128), (5, 33, 32), (17, 7, 7)]
"""Rows, columns and group: whole tiles, a short last group, groups that are no tiles, one group a row, a last tile that
is short, a column too many, fewer columns than a word has codes."""


def grouped(rows, columns, group, random, bits=3, zeros=True):
    groups = -(-columns // group)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random)
    scales = torch.rand((rows, groups), generator=random).half() + 0.1
    middles = torch.randint(0, 2**bits, (rows, groups), generator=random) if zeros else None
    return GroupedInt.pack(codes, scales, middles, bits, group)


def codebook(rows, columns, group, random, bits=4, **options):
    blocks = -(-rows * columns // group)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random)
    scales = torch.rand(blocks, generator=random) + 0.1
    shifts = torch.randn(blocks, generator=random) if options.pop("shifted", False) else None
    return Codebook.pack(codes, scales, bits, group, shifts=shifts, **options)


def binary(form, rows, columns, group, random):
    def bits(*shape):
        return torch.rand(shape, generator=random) < 0.4

    scales = torch.randn((rows, -(-columns // group), 2 * form.terms), generator=random)
    given = [bits(rows, columns), scales, ~bits(columns), group]
    if form is PartlyBinary:
        codes = torch.randint(0, 256, (rows, columns), generator=random).to(torch.uint8)
        grids = {"grid_scales": torch.rand(rows, generator=random), "grid_zeros": torch.arange(rows) + 100}
        return form.pack(*given, marks=bits(rows, columns), codes=codes, **grids)
    if form is ResidualBinary:
        return form.pack(*given, marks=bits(rows, columns), salient=bits(columns))
    return form.pack(*given)


def dual(rows, columns, group, random):
    scales = torch.rand((rows, -(-columns // group)), generator=random) + 0.1
    return DualBinary.pack(torch.randn((rows, columns), generator=random), scales, -scales / 2, group)


def rotated(rows, columns, group, random):
    codes = torch.randint(0, 4, (rows, columns), generator=random)
    return RotatedInt.pack(codes, torch.tensor([0.1]).half(), torch.ones(columns).half(), 2, 0)


def int_activations(rows, columns, group, random):
    codes = torch.randint(-31, 32, (rows, columns), generator=random)
    return IntActivations.pack(codes, torch.rand((rows, 1), generator=random) + 0.1, 6, 6, False)


MADE = {
    **{f"{bits} bits": lambda *shape, bits=bits: grouped(*shape, bits=bits) for bits in range(1, 9)},
    "symmetric": lambda *shape: grouped(*shape, zeros=False),
    "codebook": codebook,
    "codebook, 3 bits, shifts": lambda *shape: codebook(*shape, bits=3, shifted=True),
    "codebook, scales as they are": lambda *shape: codebook(*shape, double=False, shifted=True),
    "binary": lambda *shape: binary(Binary, *shape),
    "partly binary": lambda *shape: binary(PartlyBinary, *shape),
    "residual binary": lambda *shape: binary(ResidualBinary, *shape),
    "dual binary": dual,
    "rotated": rotated,
    "integer activations": int_activations,
}


def made(name, shape):
    return MADE[name](*shape, torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MADE)
def test_kernels_do_what_the_form_does(name, shape):
    weight = made(name, shape)
    rows, columns, _ = shape
    dense = weight.stored_rows(0, rows)
    assert torch.equal(gpu.dequantize_rows(weight, 2, rows - 1), dense[2 : rows - 1])
    # The interpreter can't multiply bfloat16 matrices.
    several = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    for count, dtype in ((1, torch.float32), (1, torch.bfloat16), (5, torch.float32), (16, several)):
        x = torch.randn((count, columns), generator=torch.Generator().manual_seed(count)).to(DEVICE, dtype)
        product, expected = gpu.multiply(x, weight), x.double() @ dense.double().T
        assert product.dtype == torch.float32
        close = 1e-6 if dtype == torch.float32 or count == 1 else 1e-2
        assert (product - expected).norm() < close * expected.norm()


LONG = ("symmetric", "rotated", "codebook", "codebook, 3 bits, shifts", "dual binary", "integer activations")


@pytest.mark.parametrize("name", [*(f"{bits} bits" for bits in range(1, 9)), *LONG])
def test_a_single_row_longer_than_a_tile_is_multiplied(name):
    rows, columns = 5, 8 * gpu_row.EIGHTS + 136
    weight = made(name, (rows, columns, 128))
    x = torch.randn((1, columns), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    expected = x.double() @ weight.stored_rows(0, rows).double().T
    assert (gpu.multiply(x, weight) - expected).norm() < 1e-6 * expected.norm()


def test_what_runs_right_is_used():
    assert gpu.fits(made("3 bits", SHAPES[0]), torch.float32)
    assert not gpu.fits(made("3 bits", SHAPES[0]), torch.float64)


@pytest.mark.parametrize("fault", ["wrong", "not a number", "broken"])
def test_a_kernel_that_fails_is_left_out_with_a_warning(fault, monkeypatch, caplog):
    def multiply(x, weight):
        if fault == "broken":
            raise RuntimeError("no compiler here")
        return torch.full((len(x), weight.out_features), 1.0 if fault == "wrong" else torch.nan, device=x.device)

    monkeypatch.setattr(gpu, "_WORKS", {})
    monkeypatch.setattr(gpu, "multiply", multiply)
    weight = made("3 bits", SHAPES[0])
    assert not gpu.fits(weight, torch.float32)
    assert not gpu.fits(weight, torch.float32)
    (warning,) = caplog.messages
    assert ("no compiler here" if fault == "broken" else "off by") in warning


FORMS_TO_COMPILE = ("4 bits", "3 bits", "codebook, 3 bits, shifts", "partly binary", "residual binary", "dual binary")
MOST_SPILLED = 8
"""Bytes that a thread may spill to memory: a number or two, where 16 rows meet the form with the most parts."""


def test_kernels_compile_for_nvidia_cards_and_keep_their_numbers_in_registers():
    """Needs no card: Triton brings the assembler. In a process of its own, without the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("compile_for_gpu.py")
    command = [sys.executable, script, "--forms", *FORMS_TO_COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["card"] for row in rows} == {"sm_80", "sm_89", "sm_90"}
    assert {row["form"] for row in rows} == set(FORMS_TO_COMPILE)
    spilling = [row for row in rows if row["spilled_bytes"] > MOST_SPILLED]
    assert not spilling
    # What a card of any kind has for one program.
    assert all(row["shared_bytes"] <= 48 * 1024 for row in rows)
