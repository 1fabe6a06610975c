"""A decoder block with random weights and its calibration inputs, for the methods that work across linears."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from quant_engine.methods.block import CalibratedBlock, first_inputs


def calibrated_block(seed=0, *, key_value_heads=4, width=32, samples=6, length=24, outlier=None):
    """A block in float32 with norm weights that are not 1. `outlier`: one input channel is a hundred times larger."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = LlamaModel(config).eval().requires_grad_(False)
    block = model.layers[0]
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        norm.weight.data = 0.5 + torch.rand(width)
        if outlier is not None:
            norm.weight.data[outlier] = 100
    hidden, kwargs = first_inputs(model, torch.randint(0, 64, (samples, length)))
    return CalibratedBlock(block, hidden, kwargs)


def output(block):
    """What the block makes of its inputs: [samples, length, width]."""
    out = torch.empty_like(block.hidden)
    block.advance(out)
    return out


def inputs_of(block, name):
    """All inputs of one linear: [tokens, in_features]."""
    seen = []
    block.watch([name], lambda _, x: seen.append(x.reshape(-1, x.shape[-1])))
    return torch.cat(seen)


def relative(change, original):
    return (change.norm() / original.norm()).item()
