"""Training pieces: labels, packing and masking, checkpoints that resume, adapter and its merge, on tiny models."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from quant_engine.demo import model
from quant_engine.demo.pictures import picture
from quant_engine.demo.train import budget, labels, lessons, precision, tower
from quant_engine.demo.train.adapter import Adapter, switched_off


def test_labels_name_the_characters_where_they_were_drawn():
    drawing = picture("form", "test", 1).drawing
    _, parts = labels.grids(drawing)
    for glyph in drawing.glyphs:
        row, column = int(glyph.y // labels.PATCH), int(glyph.x // labels.PATCH)
        near = parts[row, max(0, column - 1) : column + 2, : labels.SLOTS].ravel()
        named = {labels.CHARACTERS[code - 1] for code in near if code}
        assert glyph.character in named


def test_both_views_of_a_picture_have_the_tiles_that_the_architecture_cuts():
    seen = labels.see(picture("chart", "test", 3).drawing)
    rows, columns, _ = seen.parts.shape
    assert len(seen.tiles) == 1 + rows * columns // labels.SIDE**2
    assert seen.tile_labels().shape == (len(seen.tiles), labels.SIDE, labels.SIDE, len(labels.FIELDS))
    assert np.array_equal(seen.tile_labels()[1], seen.parts[: labels.SIDE, : labels.SIDE])


def test_a_grid_of_tiles_is_laid_out_as_the_labels_are():
    seen = labels.see(picture("scene", "test", 3).drawing)
    rows, columns, _ = seen.parts.shape
    tiles = torch.from_numpy(seen.tile_labels()[1:]).flatten(1, 2)
    assert torch.equal(lessons.grid(tiles, rows, columns), torch.from_numpy(seen.parts))


def test_a_tile_full_of_text_has_many_more_characters_than_a_picture():
    rng = random.Random(0)
    assert np.mean([len(tower.full_of_text(rng).glyphs) for _ in range(10)]) > 40


class Letters:
    """A tokenizer of one token per character, enough to build lessons."""

    def __call__(self, text):
        return {"input_ids": [ord(c) for c in text]}


def test_each_question_sees_the_picture_and_itself_and_no_other_question():
    one = lessons.lesson(Letters(), picture("chart", "train", 0), random.Random(0), 3)
    batch = lessons.collate([one])
    segments = torch.tensor(one.segments)
    open_ = batch.mask[0, 0] == 0
    before = torch.ones(len(segments), len(segments), dtype=torch.bool).tril()
    for turn in range(4):
        own = segments == turn
        assert torch.equal(open_[own], before[own] & (own | (segments == 0)))
    shared = one.segments.count(0)
    for turn in (1, 2, 3):
        assert one.positions[one.segments.index(turn)] == shared, "positions start again after the picture"


def test_a_brief_lesson_keeps_the_positions_of_what_it_keeps():
    shown = picture("chart", "train", 0)
    whole = lessons.lesson(Letters(), shown, random.Random(0), 2, empty=1.0)
    brief = lessons.lesson(Letters(), shown, random.Random(0), 2, empty=0.0)
    assert brief.segments.count(0) < whole.segments.count(0) / 1.5
    assert brief.positions[brief.segments.index(1)] == whole.positions[whole.segments.index(1)]
    assert set(brief.positions[: brief.segments.count(0)]) <= set(whole.positions[: whole.segments.count(0)])


def block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn, self.mlp = nn.Module(), nn.Module()
            for name in model.ADAPTED:
                parent, leaf = name.split(".")
                setattr(getattr(self, parent), leaf, nn.Linear(6, 6, bias=False))

    decoder = nn.Module()
    decoder.layers = nn.ModuleList([Block(), Block()])
    return decoder


def test_a_merged_adapter_computes_what_the_adapted_linears_do():
    torch.manual_seed(0)
    decoder, plain = block(), block()
    plain.load_state_dict(decoder.state_dict())
    adapter = Adapter(decoder, rank=2)
    for parameter in adapter.own_parameters():
        nn.init.normal_(parameter)
    model.merge(plain, adapter.tensors())
    x = torch.randn(3, 6)
    adapted, merged = decoder.layers[1].mlp.down_proj, plain.layers[1].mlp.down_proj
    torch.testing.assert_close(adapted(x), merged(x))
    with switched_off():
        torch.testing.assert_close(adapted(x), x @ adapted.weight.T)


def test_master_weights_collect_updates_too_small_for_bfloat16():
    live = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    master = precision.Master(([live], 1.0), weight_decay=0.0)
    for _ in range(20):
        live.grad = torch.ones_like(live)
        master.step(1e-3)
    assert live.item() == pytest.approx(0.98, abs=0.005)


def test_a_stage_goes_on_where_it_was_saved(tmp_path):
    linear = nn.Linear(2, 2)
    first = budget.Stage(tmp_path, "stage", 10, {"linear": linear})
    first.advance()
    first.save()
    other = nn.Linear(2, 2)
    second = budget.Stage(tmp_path, "stage", 10, {"linear": other})
    assert second.step == 1
    assert torch.equal(other.weight, linear.weight)
    assert not second.over


def test_a_stage_that_had_its_minutes_is_over_and_goes_on_when_given_more(tmp_path):
    state = {"linear": nn.Linear(2, 2)}
    stage = budget.Stage(tmp_path, "stage", 1e-6, state)
    time.sleep(0.01)
    assert stage.over
    stage.save()
    assert budget.Stage(tmp_path, "stage", 1e-6, state).over
    assert not budget.Stage(tmp_path, "stage", 10, state).over
