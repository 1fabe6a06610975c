"""Adapters on packed linears, against dense autograd and against IR-QLoRA's formulas written out."""

import math

import pytest
import torch
from peft import LoraConfig
from torch import nn

from quant_engine.finetune import adapters
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods.ir_qlora import IrQloraOptions
from quant_engine.methods.qlora import QloraOptions
from quant_engine.spec import UserError
from quant_engine.weights.codebook import Codebook, round_to_levels


def packed(rows, columns, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5
    return QuantLinear(Codebook.pack(*round_to_levels(weight, 4, 64), 4, 64))


class Block(nn.Module):
    """The seven linears of a block, one after another, named as in a model."""

    def __init__(self, width, inner):
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": packed(width, width, seed=ord(name)) for name in "qkvo"})
        self.mlp = nn.ModuleDict(
            {"gate_proj": packed(inner, width), "up_proj": packed(inner, width, 1), "down_proj": packed(width, inner)}
        )

    def forward(self, x):
        for name in ("q", "k", "v", "o"):
            x = self.self_attn[f"{name}_proj"](x).tanh()
        return self.mlp["down_proj"](self.mlp["gate_proj"](x).tanh() * self.mlp["up_proj"](x))


def adapted(options, width=32, inner=64):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList([Block(width, inner)]), "norm": nn.LayerNorm(width)})
    plain = Block(width, inner)
    adapters.attach(model, "layers.", options)
    return model["layers"][0], plain


def shaken(block, seed=1):
    """The same with every adapter value drawn at random, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.trained(block).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return block


X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
LORA, IEC = QloraOptions(rank=8), IrQloraOptions(rank=8)


@pytest.mark.parametrize("options", [LORA, IEC])
def test_a_new_adapter_leaves_the_output_as_it_is(options):
    block, plain = adapted(options)
    assert torch.equal(block(X), plain(X))


def test_only_factors_and_shortcuts_are_trained_and_all_of_them_get_gradients():
    factors = {"lora_A", "lora_B"}
    for options, kinds in ((LORA, factors), (IEC, factors | {"lora_shortcut_in", "lora_shortcut_out"})):
        block, _ = adapted(options)
        names = adapters.trained(block)
        assert {name.split(".")[2] for name in names} == kinds
        assert len(names) == 7 * len(kinds)
        block(X).square().mean().backward()
        adapters.check_gradients(block)
        others = [name for name, parameter in block.named_parameters() if parameter.grad is not None]
        assert set(others) == set(names)


def gradients(block, x, dtype):
    """Of x and of all factors, for the block written out with dense weights and computed in `dtype`."""
    layers, leaves = dict(adapters.adapted(block)), {"x": x.detach().to(dtype).requires_grad_()}

    def linear(name, x):
        layer = layers[name]
        dense = layer.base_layer.weight.dequantize().to(dtype)
        for kind, factor in (("A", layer.lora_A), ("B", layer.lora_B)):
            leaves[f"{name}.lora_{kind}.default.weight"] = factor["default"].weight.detach().to(dtype).requires_grad_()
        a, b = (leaves[f"{name}.lora_{kind}.default.weight"] for kind in "AB")
        return x @ dense.T + layer.scaling["default"] * (x @ a.T @ b.T)

    y = leaves["x"]
    for name in ("q", "k", "v", "o"):
        y = linear(f"self_attn.{name}_proj", y).tanh()
    y = linear("mlp.down_proj", linear("mlp.gate_proj", y).tanh() * linear("mlp.up_proj", y))
    y.square().mean().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def test_gradients_are_as_near_to_exact_as_those_of_a_dense_model():
    """Packed and dense weights are the same numbers, summed up in another order: both are as far from float64's
    gradients as float32 makes them, which is known beforehand only up to a small factor."""
    block, _ = adapted(LORA)
    shaken(block)
    x = X.clone().requires_grad_()
    block(x).square().mean().backward()
    found = {"x": x.grad, **{name: parameter.grad for name, parameter in adapters.trained(block).items()}}
    exact, dense = gradients(block, X, torch.float64), gradients(block, X, torch.float32)
    assert found.keys() == exact.keys()

    def farthest(given):
        return max(((given[name] - one).abs().max() / one.abs().max()).item() for name, one in exact.items())

    assert 0 < farthest(found) <= 4 * farthest(dense)


def test_no_dense_weight_is_kept_for_the_backward_pass():
    block, _ = adapted(LORA, width=64, inner=128)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        block(torch.randn(1, 3, 64)).sum()
    assert kept
    assert not {(64, 64), (128, 64), (64, 128)} & {shape for saved in kept for shape in (saved, saved[::-1])}


def test_dropout_is_off_while_answering():
    block, _ = adapted(QloraOptions(rank=8, dropout=0.5))
    shaken(block)
    assert not torch.equal(block.train()(X), block(X))
    assert torch.equal(block.eval()(X), block(X))


def plain_elastic(x, a, b, b1, b2, tile):
    """U2(U1(x)) of one vector, written out number by number."""
    rank, n, m = len(a), len(x), len(b)

    def shortcut(values, count):
        g = math.gcd(len(values), count)
        size = len(values) // g
        means = [sum(values[k * size : (k + 1) * size]) / size for k in range(g)]
        return [means[i % g] if tile else means[i // (count // g)] for i in range(count)]

    pooled = shortcut(x, rank)
    inner = [sum(a[j][k] * x[k] for k in range(n)) + b1 * pooled[j] for j in range(rank)]
    repeated = shortcut(inner, m)
    return [sum(b[i][j] * inner[j] for j in range(rank)) + b2 * repeated[i] for i in range(m)]


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 32, 8), (20, 36, 8), (7, 9, 4), (16, 8, 16)])
def test_elastic_connections_equal_the_formula_also_where_the_rank_divides_nothing(rows, columns, rank, tile):
    layer = elastic(rows, columns, rank, tile)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(5))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b1, b2 = layer.lora_shortcut_in["default"].item(), layer.lora_shortcut_out["default"].item()
    expected = [plain_elastic(one, a.tolist(), b.tolist(), b1, b2, tile) for one in x.tolist()]
    assert torch.allclose(layer.change(x), torch.tensor(expected), atol=1e-5)


def elastic(rows, columns, rank, tile):
    base, config = packed(rows, columns), LoraConfig(r=rank, lora_alpha=16)
    return shaken(adapters.ElasticQuantLinear(base, "default", config, tile=tile, r=rank, lora_alpha=16))


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 32, 8), (20, 36, 8), (64, 48, 16)])
def test_merged_shortcuts_are_a_plain_adapter_with_the_same_output(rows, columns, rank, tile):
    layer = elastic(rows, columns, rank, tile)
    x = torch.randn(4, columns)
    a, b = layer.factors()
    assert torch.allclose(layer.change(x), x @ a.T @ b.T, atol=1e-5)


def test_shortcuts_of_zero_are_lora():
    block, _ = adapted(IEC)
    shaken(block)
    for _, layer in adapters.adapted(block):
        layer.lora_shortcut_in["default"].data.zero_()
        layer.lora_shortcut_out["default"].data.zero_()
        x = torch.randn(3, layer.in_features)
        expected = layer.lora_B["default"](layer.lora_A["default"](x))
        assert torch.equal(layer.change(x), expected)


def test_gradients_reach_both_shortcuts():
    """The second from the first step on, though B is zero; the first as soon as B or the second is not."""
    block, _ = adapted(IEC)
    layer = dict(adapters.adapted(block))["self_attn.q_proj"]
    first, second = layer.lora_shortcut_in["default"], layer.lora_shortcut_out["default"]
    block(X).square().mean().backward()
    assert second.grad.abs() > 0
    assert first.grad == 0
    for moved in (second, layer.lora_B["default"].weight):
        moved.data.fill_(0.1)
        block.zero_grad()
        block(X).square().mean().backward()
        assert first.grad.abs() > 0
        moved.data.zero_()


@pytest.mark.parametrize("options", [LORA, IEC])
def test_settled_adapters_answer_as_before_within_float16(options):
    block, _ = adapted(options)
    shaken(block).eval()
    with torch.no_grad():
        before = block(X)
        adapters.settle(block)
        after = block(X)
    assert not list(adapters.adapted(block))
    assert 0 < (after - before).norm() < 2e-3 * before.norm()
    adapters.unsettle(block)
    _, plain = adapted(options)
    assert torch.equal(block(X), plain(X))


def test_an_adapter_without_a_gradient_fails_at_once():
    block, _ = adapted(IEC)
    with pytest.raises(UserError, match=r"self_attn.q_proj has no gradient"):
        adapters.check_gradients(block)
    block(X).square().mean().backward()
    layer = dict(adapters.adapted(block))["mlp.up_proj"]
    layer.lora_B["default"].weight.grad.zero_()
    with pytest.raises(UserError, match=r"mlp.up_proj is zero"):
        adapters.check_gradients(block)
    layer.lora_shortcut_in["default"].grad = None
    with pytest.raises(UserError, match=r"mlp.up_proj has no gradient"):
        adapters.check_gradients(block)
