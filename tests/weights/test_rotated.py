"""Random rotations, and the storage of rotated integers."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels import matmul
from quant_engine.kernels.linear import QuantLinear
from quant_engine.weights.registry import FORMS
from quant_engine.weights.rotated import RotatedInt, factors, rotation

KINDS = ["kronecker", "blocked"]


def stored(bits, rows=24, columns=96, kind="kronecker", seed=3):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scales = (torch.rand(columns, generator=generator) + 0.5).half()
    return RotatedInt.pack(codes, torch.tensor([0.01]).half(), scales, bits, seed, kind), codes


def dense(size, side, kind, seed=3):
    """The rotation as a matrix."""
    return rotation(size, seed, side, kind)(torch.eye(size)).T


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4096, (64, 64)),
        (14336, (64, 224)),
        (1024, (32, 32)),
        (28672, (448, 64)),
        (576, (24, 24)),
        (7, (7, 1)),
        (1, (1, 1)),
    ],
)
def test_sizes_are_split_as_the_reference_splits_them(size, expected):
    assert sorted(factors(size)) == sorted(expected)
    assert factors(size)[0] * factors(size)[1] == size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 7, 30, 64, 96, 192])
def test_rotations_are_orthogonal_and_undone_by_going_back(size, kind):
    turn = rotation(size, 0, "inputs", kind, torch.float64)
    matrix = turn(torch.eye(size, dtype=torch.float64)).T
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(turn(x), x @ matrix.T)
    assert torch.allclose(turn.back(turn(x)), x)
    assert torch.allclose(turn.back(x), x @ matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_large_entry_is_spread_over_all(kind):
    unit = torch.zeros(1, 576)
    unit[0, 100] = 1
    assert rotation(576, 0, "inputs", kind)(unit).abs().max() < 0.35


def test_kronecker_form_is_a_kronecker_product_between_permutations():
    turn = rotation(30, 1, "outputs", "kronecker", torch.float64)
    matrix = turn(torch.eye(30, dtype=torch.float64)).T
    inner = matrix[turn.back_out][:, turn.into]
    assert torch.allclose(inner, torch.kron(turn.left, turn.right))


def test_sides_and_seeds_differ_and_a_seed_gives_the_same_for_ever():
    first = rotation(6, 0, "inputs", "kronecker")
    assert not torch.equal(dense(6, "inputs", "kronecker"), dense(6, "outputs", "kronecker"))
    assert not torch.equal(dense(6, "inputs", "kronecker", 0), dense(6, "inputs", "kronecker", 1))
    assert rotation(6, 0, "inputs", "kronecker") is first
    # A change here would make every stored QuIP model useless.
    assert first.into.tolist() == [3, 5, 4, 1, 0, 2]
    assert torch.allclose(first.left[0], torch.tensor([-0.98933661, -0.14564703]), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(24, 96), (33, 64), (40, 50), (6, 7)])
def test_product_is_that_of_the_dequantized_weight(bits, kind, shape):
    weight, codes = stored(bits, *shape, kind)
    grid = weight.scale.float() * (codes - (2**bits - 1) / 2)
    u, v = dense(shape[0], "outputs", kind), dense(shape[1], "inputs", kind)
    expected = u.T @ grid @ v * weight.column_scales.float()
    assert torch.allclose(weight.dequantize(), expected, atol=1e-6)
    assert torch.equal(weight.dequantize(2, 5), weight.dequantize()[2:5])
    for count in (1, 3, 40):
        x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(count))
        y = x @ expected.T
        assert torch.allclose(matmul.matmul(x, weight), y, atol=2e-5 * y.abs().max())
        assert torch.allclose(matmul.tiled(x, weight), y, atol=2e-5 * y.abs().max())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [96, 50])
def test_file_gives_the_weight_back_bit_for_bit_and_ledger_counts_it_all(bits, columns, tmp_path):
    weight, _ = stored(bits, columns=columns)
    layer = QuantLinear(weight)
    save_file(layer.state_dict(), tmp_path / "weight")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "weight"))
    assert torch.equal(again.weight.dequantize(), weight.dequantize())
    assert weight.ledger().total_bits == 8 * weight.stored_bytes()
    held = sum(t.numel() * t.element_size() for t in [*layer.parameters(), *layer.buffers()])
    assert held == weight.ledger().bytes
    assert FORMS[weight.form] is RotatedInt


def test_bits_per_weight_are_the_field_s_formula():
    weight = RotatedInt(4096, 4096, 2, 0, "kronecker")
    assert weight.ledger().bits_per_weight == pytest.approx(2 + 16 / 4096, abs=1e-4)


def test_an_answer_makes_no_dense_weight(monkeypatch):
    weight, _ = stored(2)
    monkeypatch.setattr(RotatedInt, "dequantize", lambda *a, **k: pytest.fail("a dense weight was made"))
    monkeypatch.setattr(matmul, "TILE_WEIGHTS", 96 * 4)
    for rows in (1, 20):
        matmul.matmul(torch.randn(rows, 96), weight)
