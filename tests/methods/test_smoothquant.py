"""SmoothQuant against a plain version of its reference's steps, and the properties that follow from its definition."""

import copy

import pytest
import torch
from methods.blocks import calibrated_block, inputs_of, output, relative
from torch.nn.functional import linear

from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS, Layer, Statistics, resolve_setting
from quant_engine.methods.smoothquant import prepare, smoothing
from quant_engine.models.architecture import LINEARS
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.int_activations import quantize_rows, quantize_tokens

SMOOTHQUANT = METHODS["smoothquant"]
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")


def setting_of(w_bits=8, a_bits=8, **options):
    return SMOOTHQUANT.resolve(QuantSetting(method="smoothquant", w_bits=w_bits, a_bits=a_bits, options=options))


def quantize_block(block, setting, smooth=True):
    """The block with packed linears, as the pipeline leaves it."""
    options = SMOOTHQUANT.options(setting)
    if smooth:
        prepare(block, setting, options, print)
    for name in LINEARS:
        weight = block.module.get_submodule(name).weight
        stored = SMOOTHQUANT.quantize(Layer(weight.clone(), Statistics(None, linear=name), setting, options, print))
        parent, _, leaf = name.rpartition(".")
        setattr(block.module.get_submodule(parent), leaf, QuantLinear(stored))
    return block


def plain_quantize(values, bits, stored=False):
    """The reference's fake quantization over the last dimension; what is `stored` has scales of 16 bits, rounded up."""
    delta = values.abs().max(dim=-1, keepdim=True)[0].clamp(min=1e-5) / (2 ** (bits - 1) - 1)
    if stored:
        half = delta.half()
        delta = torch.where(half.float() < delta, torch.nextafter(half, torch.full_like(half, 100)), half).float()
    return torch.round(values / delta) * delta


class PlainLinear(torch.nn.Module):
    """The reference's linear: dense, weight rounded once, inputs and maybe outputs rounded at run time."""

    def __init__(self, weight, w_bits, a_bits, quantized_output):
        super().__init__()
        self.weight = plain_quantize(weight, w_bits, stored=True)
        self.a_bits, self.quantized_output = a_bits, quantized_output

    def forward(self, x):
        y = linear(plain_quantize(x, self.a_bits), self.weight)
        return plain_quantize(y, self.a_bits) if self.quantized_output else y


def plain_smoothquant(block, w_bits, a_bits, alpha, attention_inputs=True):
    module = copy.deepcopy(block.module)
    for norm, names in (("input_layernorm", ATTENTION), ("post_attention_layernorm", MLP)):
        linears = [module.get_submodule(name) for name in names]
        activations = inputs_of(block, names[0]).abs().amax(0)
        weights = torch.cat([one.weight for one in linears]).abs().amax(0).clamp(min=1e-5)
        scales = (activations**alpha / weights ** (1 - alpha)).clamp(min=1e-5)
        module.get_submodule(norm).weight.data /= scales
        for one in linears:
            one.weight.data *= scales
    for name in LINEARS:
        parent, _, leaf = name.rpartition(".")
        rounded_output = attention_inputs and name in ATTENTION
        rounded = PlainLinear(module.get_submodule(name).weight.data, w_bits, a_bits, rounded_output)
        setattr(module.get_submodule(parent), leaf, rounded)
    return type(block)(module, block.hidden, block.kwargs)


@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (6, 6), (4, 4), (3, 7)])
@pytest.mark.parametrize("alpha", [0.5, 0.85])
@pytest.mark.parametrize("attention_inputs", [True, False])
def test_equals_the_plain_steps(w_bits, a_bits, alpha, attention_inputs):
    block = calibrated_block(w_bits, key_value_heads=2, outlier=3)
    expected = output(plain_smoothquant(block, w_bits, a_bits, alpha, attention_inputs))
    before = output(block)
    setting = setting_of(w_bits, a_bits, alpha=alpha, attention_inputs=attention_inputs)
    found = output(quantize_block(block, setting))
    # Sums in another order may move single values to the other side of a rounding step.
    assert relative(found - expected, expected) < 0.02 * relative(found - before, before)


def test_smoothing_changes_nothing_but_the_rounding():
    block = calibrated_block(outlier=7)
    before = output(block)
    norm = block.module.input_layernorm.weight.clone()
    prepare(block, setting_of(), SMOOTHQUANT.options(setting_of()), print)
    assert relative(output(block) - before, before) < 1e-5
    assert not torch.equal(block.module.input_layernorm.weight, norm)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_alpha_says_where_the_outliers_go(alpha):
    block = calibrated_block(outlier=7)
    x = inputs_of(block, ATTENTION[0]).abs().amax(0)
    w = torch.cat([block.module.get_submodule(name).weight for name in ATTENTION]).abs().amax(0)
    setting = setting_of(alpha=alpha)
    prepare(block, setting, SMOOTHQUANT.options(setting), print)
    smoothed_x = inputs_of(block, ATTENTION[0]).abs().amax(0)
    smoothed_w = torch.cat([block.module.get_submodule(name).weight for name in ATTENTION]).abs().amax(0)
    expected = {0: (x * w, torch.ones_like(w)), 0.5: ((x * w).sqrt(),) * 2, 1: (torch.ones_like(x), x * w)}[alpha]
    assert torch.allclose(smoothed_x, expected[0], rtol=1e-4)
    assert torch.allclose(smoothed_w, expected[1], rtol=1e-4)


def test_a_channel_that_calibration_never_excites_is_left_alone():
    scales = smoothing(torch.tensor([0.0, 4.0, 1e-9]), [torch.full((2, 3), 0.25)], 0.5)
    assert scales[0] == 1
    assert scales[1] == 4
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_symmetric_and_within_their_range(bits):
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(bits))
    weight[0, 0] = 0
    weight[6] = 0
    highest = 2 ** (bits - 1) - 1
    for quantizer in (quantize_rows, quantize_tokens):
        codes, scales = quantizer(weight, bits)
        assert codes.abs().max() == highest
        assert codes[0, 0] == 0
        assert torch.equal(quantizer(-weight, bits)[0], -codes)
        assert ((codes * scales - weight).abs() <= scales.float() * 0.501).all()


def test_at_16_bits_it_is_the_unquantized_product():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(20, 64, generator=generator), torch.randn(9, 64, generator=generator)
    (codes, scale), (tokens, delta) = quantize_tokens(weight, 16), quantize_tokens(x, 16)
    expected = x @ weight.T
    assert relative((tokens * delta) @ (codes * scale).T - expected, expected) < 1e-4


def test_smoothing_helps_and_fewer_bits_cost_more():
    for seed in range(3):
        block = calibrated_block(seed, outlier=5)
        x, weight = inputs_of(block, ATTENTION[0]), block.module.self_attn.q_proj.weight.clone()

        def error(bits, smooth, block=block, x=x, weight=weight):
            tried = type(block)(copy.deepcopy(block.module), block.hidden, block.kwargs)
            setting = setting_of(bits, bits, attention_inputs=False)
            if smooth:
                prepare(tried, setting, SMOOTHQUANT.options(setting), print)
            inputs = inputs_of(tried, ATTENTION[0])
            quantize_block(tried, setting, smooth=False)
            return relative(tried.module.self_attn.q_proj(inputs) - x @ weight.T, x @ weight.T)

        assert error(8, True) < error(8, False)
        assert error(8, True) < error(6, True) < error(4, True)


def test_each_token_is_rounded_for_itself():
    block = quantize_block(calibrated_block(), setting_of(4, 4))
    generator = torch.Generator().manual_seed(0)
    for rows in (3, 50):
        x = torch.randn(rows, 32, generator=generator)
        order = torch.randperm(rows, generator=generator)
        for name in LINEARS[:3]:
            layer = block.module.get_submodule(name)
            assert torch.equal(layer(x[order]), layer(x)[order])


def test_only_queries_keys_and_values_are_rounded_as_outputs():
    rounded = {
        name
        for name in LINEARS
        if quantize_block(calibrated_block(), setting_of()).module.get_submodule(name).weight.quantized_output
    }
    assert rounded == set(ATTENTION)
    off = quantize_block(calibrated_block(), setting_of(attention_inputs=False)).module
    assert not any(off.get_submodule(name).weight.quantized_output for name in LINEARS)


@pytest.mark.parametrize("a_bits", [4, 5, 6, 7, 8])
def test_is_defined_for_4_to_8_activation_bits(a_bits):
    assert resolve_setting(QuantSetting(method="smoothquant", w_bits=4, a_bits=a_bits)).a_bits == a_bits


def test_16_activation_bits_and_other_methods_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="4, 5, 6, 7, 8 activation bits, not 16"):
        resolve_setting(QuantSetting(method="smoothquant", w_bits=8))
    with pytest.raises(UserError, match="no groups"):
        resolve_setting(QuantSetting(method="smoothquant", w_bits=8, a_bits=8, group_size=64))
    for name, method in METHODS.items():
        if name != "smoothquant":
            with pytest.raises(UserError, match="activation bits need SmoothQuant"):
                method.resolve(QuantSetting(method=name, w_bits=method.card.bits[0], a_bits=8))
