"""NormalFloat on one linear: what it stores, against a plain computation, and what it gains over integers."""

import pytest
import torch

from quant_engine.methods import METHODS, Layer, resolve_setting
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.codebook import construct_levels
from quant_engine.weights.grouped import GroupedInt, grids, round_to_grid

NORMAL_FLOAT = METHODS["normal_float"]


def run(weight, bits, **options):
    setting = NORMAL_FLOAT.resolve(QuantSetting(method="normal_float", w_bits=bits, options=options))
    return NORMAL_FLOAT.quantize(Layer(weight.clone(), None, setting, NORMAL_FLOAT.options(setting), print))


def gaussian(rows=64, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def plain_scales(scales):
    """Scales twice quantized, one after the other: distance to the mean, over the largest of 256, to the nearest
    entry of the dynamic map."""
    entries = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade
        for i in range(parts):
            middle = 0.1 + 0.9 * (i + 0.5) / parts
            entries += [middle * 10.0 ** (decade - 6), -middle * 10.0 ** (decade - 6)]
    mean = sum(scales) / len(scales)
    out = []
    for start in range(0, len(scales), 256):
        part = [scale - mean for scale in scales[start : start + 256]]
        step = max(abs(value) for value in part)
        out += [min(entries, key=lambda e, v=v: abs(e - v / step)) * step + mean for v in part]
    return out


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [32, 64])
def test_equals_a_plain_implementation_with_doubly_quantized_scales(bits, block):
    weight = gaussian(40, 448, seed=bits)
    levels = construct_levels(bits).tolist()
    blocks = weight.double().view(-1, block).tolist()
    exact = [max(abs(value) for value in part) for part in blocks]
    expected = [
        [min(levels, key=lambda q, v=v, s=scale: abs(q - v / s)) * kept for v in part]
        for part, scale, kept in zip(blocks, exact, plain_scales(exact), strict=True)
    ]
    found = run(weight, bits, block_size=block).dequantize()
    assert torch.allclose(found.double(), torch.tensor(expected).view(weight.shape).double(), atol=2e-6)


def test_loses_less_than_symmetric_integers_on_normal_weights():
    for seed in range(5):
        weight = gaussian(seed=seed)
        scales, zeros = grids(weight, 4, 64, symmetric=True)
        integers = GroupedInt.pack(round_to_grid(weight, scales, zeros, 4, 64), scales, None, 4, 64)
        loss = [(weight - s.dequantize()).square().mean() for s in (run(weight, 4), integers)]
        assert loss[0] < 0.95 * loss[1]


def test_more_levels_and_smaller_blocks_lose_less():
    weight = gaussian()
    loss = lambda bits, block: (weight - run(weight, bits, block_size=block).dequantize()).square().sum()  # noqa: E731
    assert loss(4, 64) < loss(3, 64) < loss(2, 64)
    assert loss(4, 32) < loss(4, 256)


def test_weights_are_left_as_they_are():
    weight = gaussian()
    before = weight.clone()
    run(weight, 4)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"w_bits": 5}, "NormalFloat is defined for 2, 3, 4 weight bits, not 5"),
        ({"w_bits": 4, "group_size": 64}, "NormalFloat has no groups"),
        ({"w_bits": 4, "options": {"block_size": 4}}, "NormalFloat option block_size"),
    ],
)
def test_what_is_not_defined_is_refused_in_a_sentence(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_setting(QuantSetting(method="normal_float", **setting))
