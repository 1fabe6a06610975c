"""Blocks of GGUF files, against the gguf package's own reading of them."""

import gguf
import numpy as np
import pytest
import torch

from quant_engine.kernels.matmul import matmul
from quant_engine.weights.gguf_blocks import KINDS, GgufBlocks
from quant_engine.weights.registry import empty_weight


def random_blocks(kind, rows=5, blocks=3):
    """Any bytes at all, but for halves that are finite and not huge."""
    size = KINDS[kind].bytes
    data = np.random.default_rng(0).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "iq4_nl": (0,)}.get(kind, (0, 2))
    for at in halves:
        data[..., at + 1] = data[..., at + 1] & 0x83 | 0x20
    return torch.from_numpy(data)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_as_the_gguf_package_reads_them(kind):
    blocks = random_blocks(kind)
    weight = GgufBlocks.pack(blocks, kind)
    number = gguf.GGMLQuantizationType[kind.upper()]
    assert gguf.GGML_QUANT_SIZES[number] == (KINDS[kind].columns, KINDS[kind].bytes)
    expected = torch.from_numpy(gguf.dequantize(blocks.flatten(1).numpy(), number))
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.dequantize(2, 4), expected[2:4])


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_counts_every_bit_and_a_state_dict_reads_back(kind):
    weight = GgufBlocks.pack(random_blocks(kind), kind)
    assert weight.ledger().bytes == weight.stored_bytes()
    again = empty_weight(form=weight.form, **weight.config())
    again.load_state_dict(weight.state_dict())
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize("rows", [1, 40])
def test_a_product_is_that_with_the_dequantized_weight(rows):
    weight = GgufBlocks.pack(random_blocks("q4_k"), "q4_k")
    x = torch.randn(rows, weight.in_features)
    torch.testing.assert_close(matmul(x, weight), x @ weight.dequantize().T, rtol=1e-4, atol=1e-4)
