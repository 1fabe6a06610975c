import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels.linear import QuantLinear
from quant_engine.kernels.matmul import matmul, matmul_back
from quant_engine.weights.codebook import Codebook, round_to_levels
from quant_engine.weights.grouped import GroupedInt, grids, round_to_grid
from quant_engine.weights.low_rank import LowRank


def bases(rows=48, columns=96):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    scales, zeros = grids(weight, 3, 24)
    codes, exact = round_to_levels(weight, 4, 64)
    return {
        "codebook": Codebook.pack(codes, exact, 4, 64),
        "grouped": GroupedInt.pack(round_to_grid(weight, scales, zeros, 3, 24), scales, zeros, 3, 24),
    }


def adapted(form, rank=5):
    base = bases()[form]
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(rank, base.in_features, generator=generator)
    return LowRank(base, a, torch.randn(base.out_features, rank, generator=generator), 0.25)


@pytest.mark.parametrize("form", ["codebook", "grouped"])
def test_goes_to_a_file_and_back_bit_for_bit(form, tmp_path):
    layer = QuantLinear(adapted(form))
    save_file(layer.state_dict(), tmp_path / "one.safetensors")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "one.safetensors"), assign=True)
    assert again.state_dict().keys() == layer.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(again.weight.dequantize(), layer.weight.dequantize())


@pytest.mark.parametrize("form", ["codebook", "grouped"])
def test_dequantizes_and_multiplies_as_base_and_adapter_together(form):
    weight = adapted(form)
    dense = weight.base.dequantize() + 0.25 * weight.b.float() @ weight.a.float()
    assert torch.equal(weight.dequantize(), dense)
    assert torch.equal(weight.dequantize(7, 20), dense[7:20])
    for rows in (1, 9):
        x = torch.randn(rows, weight.in_features)
        assert torch.allclose(matmul(x, weight), x @ dense.T, atol=1e-4)
        gradient = torch.randn(rows, weight.out_features)
        assert torch.allclose(matmul_back(gradient, weight), gradient @ dense, atol=1e-4)


@pytest.mark.parametrize("form", ["codebook", "grouped"])
def test_ledger_counts_base_and_adapter(form):
    weight = adapted(form, rank=6)
    ledger = weight.ledger()
    assert ledger.total_bits == 8 * weight.stored_bytes()
    assert ledger.bits["adapter"] == 16 * 6 * (48 + 96)
    assert ledger.weights == 48 * 96
    assert ledger.headline_bits == weight.base.ledger().headline_bits


def test_a_gradient_with_a_column_order_lands_on_the_right_columns():
    weight = torch.randn(16, 64)
    order = torch.randperm(64)
    scales, zeros = grids(weight[:, order], 4, 32)
    stored = GroupedInt.pack(round_to_grid(weight[:, order], scales, zeros, 4, 32), scales, zeros, 4, 32, order=order)
    gradient = torch.randn(3, 16)
    assert torch.allclose(matmul_back(gradient, stored), gradient @ stored.dequantize(), atol=1e-5)


def test_factors_that_do_not_fit_are_refused():
    base = bases()["codebook"]
    with pytest.raises(ValueError, match="don't fit"):
        LowRank(base, torch.zeros(4, 95), torch.zeros(48, 4), 1.0)
