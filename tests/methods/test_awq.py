"""AWQ against a plain version of its reference's steps, and the properties that follow from its definition."""

import copy

import pytest
import torch
from methods.blocks import calibrated_block, inputs_of, output, relative

from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.awq import SEARCHES, clip_limits, fold, prepare, scales_of, search
from quant_engine.models.architecture import LINEARS
from quant_engine.spec import QuantSetting

AWQ = METHODS["awq"]


def setting_of(bits=3, group=8, **options):
    return AWQ.resolve(QuantSetting(method="awq", w_bits=bits, group_size=group, options=options))


def plain_round(weight, bits, group):
    """The reference's pseudo-quantization, a group at a time, with scales as they are stored."""
    parts = []
    for w in weight.split(group, 1):
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        exact = (high - low).clamp(min=1e-5) / (2**bits - 1)
        scale = exact.half()
        below = torch.nextafter(scale, torch.zeros_like(scale))  # both ends lie between two codes: one goes outwards
        scale = torch.where((low == -high) & (scale.float() > exact), below, scale).float()
        zero = (-torch.round(low / scale)).clamp(0, 2**bits - 1)
        parts.append(((torch.round(w / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale)
    return torch.cat(parts, 1)


def plain_clip(weight, inputs, bits, group):
    """The clipped weight: for each row and group the limit with the least error of the group's part of the output."""
    out = weight.clone()
    x = inputs[:: max(1, len(inputs) // 512)]
    for start in range(0, weight.shape[1], group):
        w, part = weight[:, start : start + group], x[:, start : start + group]
        best = torch.full((len(w), 1), torch.inf)
        for i in range(10):
            limit = w.abs().amax(1, keepdim=True) * (1 - i / 20)
            clipped = torch.minimum(torch.maximum(w, -limit), limit)
            error = (part @ (plain_round(clipped, bits, group) - w).T).square().mean(0)[:, None]
            better = error < best * (1 - 1e-6)
            best = torch.where(better, error, best)
            out[:, start : start + group] = torch.where(better, clipped, out[:, start : start + group])
    return out


def plain_awq(block, bits, group):
    """Dense rounded weights of the block's linears, and its scaled norm weights, with every step written out."""
    module = block.module
    x = {name: inputs_of(block, name) for name in LINEARS}
    windows = block.hidden.shape[:2]
    found = []
    for producer, names, compared in SEARCHES:
        if (
            compared == "self_attn.o_proj"
            and module.self_attn.v_proj.weight.shape != module.self_attn.o_proj.weight.shape
        ):
            continue

        def run(module, compared=compared, given=x[names[0]]):
            part = module.get_submodule(compared)
            if compared == "self_attn":
                return part(given.view(*windows, -1), **block.kwargs)[0]
            return part(given)

        expected = run(module)
        magnitude = x[names[0]].abs().mean(0)
        best = None
        for step in range(20):
            power = (magnitude ** (step / 20)).clamp(min=1e-4)
            scales = power / (power.max() * power.min()).sqrt()
            tried = copy.deepcopy(module)
            for name in names:
                linear = tried.get_submodule(name)
                linear.weight.data = plain_round(linear.weight * scales, bits, group) / scales
            loss = (run(tried) - expected).square().mean()
            if best is None or loss < best[0]:
                best = loss, scales
        found.append((producer, names, best[1]))
    scaled = copy.deepcopy(module)
    for producer, names, scales in found:
        weight = scaled.get_submodule(producer).weight
        weight.data = weight / (scales if weight.dim() == 1 else scales[:, None])
        for name in names:
            scaled.get_submodule(name).weight.data *= scales
            x[name] = x[name] / scales
    rounded = {}
    for name in LINEARS:
        weight = scaled.get_submodule(name).weight
        if name.split(".")[1] not in ("q_proj", "k_proj"):
            weight = plain_clip(weight, x[name], bits, group)
        rounded[name] = plain_round(weight, bits, group)
    return rounded, scaled


def run(block, setting):
    options = AWQ.options(setting)
    prepare(block, setting, options, lambda line: None)
    stored = {}
    for name in LINEARS:
        inputs = inputs_of(block, name)
        hessian = 2 / len(block.hidden) * inputs.T @ inputs
        statistics = Statistics(hessian, linear=name, inputs=inputs)
        weight = block.module.get_submodule(name).weight
        stored[name] = AWQ.quantize(Layer(weight.clone(), statistics, setting, options, print))
    return stored


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 16), (4, None)])
@pytest.mark.parametrize("key_value_heads", [2, 4])
def test_equals_the_plain_steps(bits, group, key_value_heads):
    block = calibrated_block(bits, key_value_heads=key_value_heads)
    rounded, scaled = plain_awq(block, bits, group or 10**6)
    stored = run(block, setting_of(bits, group))
    for name in LINEARS:
        assert torch.allclose(stored[name].dequantize(), rounded[name], atol=1e-5), name
    for norm in ("input_layernorm", "post_attention_layernorm"):
        assert torch.allclose(block.module.get_submodule(norm).weight, scaled.get_submodule(norm).weight, rtol=1e-5)


@pytest.mark.parametrize("key_value_heads", [2, 4])
def test_scales_change_nothing_but_the_rounding(key_value_heads):
    block = calibrated_block(key_value_heads=key_value_heads)
    before = output(block)
    weights = {name: block.module.get_submodule(name).weight.clone() for name in LINEARS}
    prepare(block, setting_of(), AWQ.options(setting_of()), lambda line: None)
    assert relative(output(block) - before, before) < 1e-5
    moved = [name for name in LINEARS if not torch.equal(block.module.get_submodule(name).weight, weights[name])]
    assert ("self_attn.o_proj" in moved) == (key_value_heads == 4)
    assert "mlp.down_proj" in moved


def test_a_norm_s_bias_is_divided_as_well():
    norm = torch.nn.LayerNorm(16)
    norm.bias.data.normal_()
    linear = torch.nn.Linear(16, 8)
    x, scales = torch.randn(5, 16), 0.5 + torch.rand(16)
    before = linear(norm(x))
    with torch.no_grad():
        fold(norm, [linear], scales)
    assert torch.allclose(linear(norm(x)), before, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_never_loses_to_rounding_to_nearest(bits):
    block = calibrated_block(outlier=3)
    before = copy.deepcopy(block.module.state_dict())
    for _, names, compared in SEARCHES:
        ratio, _, losses = search(block, names, compared, bits, 8)
        assert len(losses) == 20
        assert losses[round(ratio * 20)] == min(losses) <= losses[0]
    for name, weight in block.module.state_dict().items():
        assert torch.equal(weight, before[name]), "the search must leave the block as it was"


def test_the_loss_of_a_linear_is_the_mean_squared_error_of_its_output():
    block = calibrated_block()
    _, _, losses = search(block, ("mlp.down_proj",), "mlp.down_proj", 3, 8)
    weight, x = block.module.mlp.down_proj.weight, inputs_of(block, "mlp.down_proj")
    assert losses[0] == pytest.approx((x @ (weight - plain_round(weight, 3, 8)).T).square().mean().item(), rel=1e-4)


def test_the_search_can_look_at_fewer_windows():
    block = calibrated_block(outlier=3)
    lines = []
    setting = setting_of(search_samples=2)
    prepare(block, setting, AWQ.options(setting), lines.append)
    few = calibrated_block(outlier=3, samples=6)
    few = type(few)(few.module, few.hidden[:2], few.kwargs)
    others = []
    prepare(few, setting_of(), AWQ.options(setting_of()), others.append)
    assert lines == others


def test_clipping_never_adds_error_and_stays_within_its_range():
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 48, generator=generator), torch.randn(100, 48, generator=generator)
    limits = clip_limits(weight, inputs, 2, 20)  # the last group of a row is shorter
    for group, start in enumerate(range(0, 48, 20)):
        w, x = weight[:, start : start + 20], inputs[:, start : start + 20]
        largest = w.abs().amax(1)
        assert (limits[:, group] >= 0.55 * largest - 1e-6).all()
        assert (limits[:, group] <= largest).all()
        limit = limits[:, group, None]
        clipped = (x @ (plain_round(torch.minimum(torch.maximum(w, -limit), limit), 2, 20) - w).T).square().mean(0)
        whole = (x @ (plain_round(w, 2, 20) - w).T).square().mean(0)
        assert (clipped <= whole * (1 + 1e-5)).all()
        assert (clipped < 0.9 * whole).any()


def test_equal_magnitudes_leave_all_scales_at_one():
    for ratio in (0, 0.5, 0.95):
        assert torch.allclose(scales_of(torch.full((16,), 0.37), ratio), torch.ones(16))


def test_equal_magnitudes_leave_rounding_to_nearest_with_clipping():
    block = calibrated_block(key_value_heads=2)  # values are not scaled for o_proj then
    generator = torch.Generator().manual_seed(0)
    block.hidden[:] = torch.randint(0, 2, block.hidden.shape, generator=generator) * 2.0 - 1
    block.module.input_layernorm.weight.data[:] = 0.7
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    weights = [block.module.get_submodule(name).weight.clone() for name in names]
    x = inputs_of(block, names[0])
    stored = run(block, setting_of(3, 8))
    expected = [*weights[:2], plain_clip(weights[2], x, 3, 8)]
    for name, weight in zip(names, expected, strict=True):
        assert torch.allclose(stored[name].dequantize(), plain_round(weight, 3, 8), atol=1e-5), name


def test_a_large_input_channel_gets_a_finer_grid():
    for seed in range(3):
        block = calibrated_block(seed)
        block.module.mlp.up_proj.weight.data[5] *= 100
        x, weight = inputs_of(block, "mlp.down_proj"), block.module.mlp.down_proj.weight.clone()
        error = lambda inputs, w: (inputs @ w.T - x @ weight.T).square().mean()  # noqa: E731, B023
        plain = error(x, plain_round(weight, 3, 16))
        stored = run(block, setting_of(3, 16))["mlp.down_proj"].dequantize()
        assert error(inputs_of(block, "mlp.down_proj"), stored) < 0.5 * plain


def test_queries_and_keys_are_never_clipped(monkeypatch):
    block = calibrated_block()
    clipped = run(copy.deepcopy(block), setting_of(2, 8))
    monkeypatch.setattr("quant_engine.methods.awq.NOT_CLIPPED", LINEARS)
    whole = run(copy.deepcopy(block), setting_of(2, 8))
    same = {name for name in LINEARS if torch.equal(clipped[name].dequantize(), whole[name].dequantize())}
    assert same == {"self_attn.q_proj", "self_attn.k_proj"}


def test_a_search_in_parts_leaves_out_what_cannot_win_and_finds_the_same(monkeypatch):
    block = calibrated_block(outlier=3)
    names, compared = ("mlp.gate_proj", "mlp.up_proj"), "mlp"
    ratio, scales, losses = search(block, names, compared, 3, 8)
    monkeypatch.setattr("quant_engine.methods.awq.TOKENS_AT_ONCE", 8)
    again, same_scales, lowest = search(block, names, compared, 3, 8)
    assert again == ratio
    assert torch.allclose(same_scales, scales, rtol=1e-4)
    assert min(lowest) == pytest.approx(min(losses), rel=1e-4)
    assert lowest[0] == pytest.approx(losses[0], rel=1e-4), "the loss without scales is known as a whole"
    assert all(some <= whole * (1 + 1e-4) for some, whole in zip(lowest, losses, strict=True))
    assert any(some < 0.9 * whole for some, whole in zip(lowest, losses, strict=True))
