"""What each method says that it stores, against the ledger of what it really makes."""

import pytest
import torch

from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.methods.db_llm import first_scale
from quant_engine.spec import QuantSetting
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.low_rank import LowRank

SHAPES = [(32, 128), (24, 96), (10, 70), (7, 33)]
"""Of linears [out_features, in_features]; groups of 32 divide the first two."""
OPTIONS = {
    "rtn": [{}, {"symmetric": True}],
    "gptq": [{}, {"symmetric": True}, {"act_order": True}, {"act_order": True, "groups": "static"}],
    "quip": [{}, {"incoherence": False}],
    "normal_float": [{}, {"double_quantization": False}],
    "qlora": [{"rank": 4}, {"rank": 3, "double_quantization": False}],
    "ir_qlora": [{"rank": 4, "search_steps": 2}, {"rank": 3, "double_quantization": False, "search_steps": 2}],
}
CASES = [
    (name, bits, group, options)
    for name, method in METHODS.items()
    for bits in method.card.bits
    for group in ((None, 32) if method.card.grouped else (None,))
    for options in OPTIONS.get(name, [{}])
]


def make(setting, rows, columns):
    """A random weight of this shape as the method stores it, adapters included."""
    method = METHODS[setting.method]
    setting = method.resolve(setting)
    options = method.options(setting)
    random = torch.Generator().manual_seed(rows)
    weight = torch.randn((rows, columns), generator=random) * 0.05
    inputs = torch.randn((200, columns), generator=random) * (1 + torch.arange(columns) % 5)
    group = setting.group_size or columns
    first = first_scale(weight, group, "minmax")
    trained = dict(DualBinary.pack(weight, first, -first / 2, group).named_buffers())
    statistics = Statistics(2 / 8 * inputs.T @ inputs, inputs=inputs, trained=trained)
    stored = method.quantize(Layer(weight, statistics, setting, options, print))
    if method.fine_tunes:
        stored = LowRank(stored, torch.zeros(options.rank, columns), torch.zeros(rows, options.rank), 1)
    return stored, method.stored_bits(rows, columns, setting, options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "bits", "group", "options"), CASES)
def test_a_method_stores_what_it_says(name, bits, group, options, shape):
    a_bits = 8 if name == "smoothquant" else 16
    setting = QuantSetting(method=name, w_bits=bits, a_bits=a_bits, group_size=group, options=options)
    stored, bits_per_weight = make(setting, *shape)
    ledger = stored.ledger()
    # Where widths are mixed around 2, a group of one bit has a mean and a spread in place of a scale and a zero point,
    # one of three bits a longer zero point; and the columns of one bit are marked.
    one_bit_groups = (stored.widths == 1).sum().item() if name == "slim_llm" else 0
    extra = one_bit_groups * (shape[0] * (32 - 18 + 1) + (group or 0))
    assert bits_per_weight + extra / ledger.weights == pytest.approx(ledger.bits_per_weight, rel=1e-12)
