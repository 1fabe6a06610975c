"""Half a block advances from the inputs of its last linear where these were watched."""

import pytest
import torch
from methods.blocks import calibrated_block, output

from quant_engine.methods import block as module


@pytest.mark.parametrize("held_at_most", [0, 2**27])
def test_halves_advance_from_what_was_watched_as_the_whole_block_does(held_at_most, monkeypatch):
    monkeypatch.setattr(module, "HELD_AT_MOST", held_at_most)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 48)  # several passes
    block = calibrated_block()
    expected = output(block)
    for half in block.halves():
        half.watch([half.last], lambda name, x: None)
        assert bool(half.last_inputs) == bool(held_at_most)
        half.advance(block.hidden)
        assert not half.last_inputs
    assert torch.equal(block.hidden, expected)


def test_a_half_advances_through_the_last_linear_that_it_has_by_then():
    block = calibrated_block()
    attention, _ = block.halves()
    attention.watch([attention.last], lambda name, x: None)
    block.module.self_attn.o_proj.weight.data.zero_()
    before = block.hidden.clone()
    attention.advance(block.hidden)
    assert torch.equal(block.hidden, before)
