"""Training pieces: labels, packing and masking, checkpoints that resume, adapter and its merge, on tiny models."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from quant_engine.data.drawn.drawing import LARGEST, Canvas, Drawing
from quant_engine.data.drawn.pictures import picture
from quant_engine.demo import model
from quant_engine.demo_training import budget, labels, lessons, precision, tower
from quant_engine.demo_training.adapter import Adapter, switched_off
from quant_engine.demo_training.symbols import Symbols


def test_labels_name_the_characters_where_they_were_drawn():
    drawing = picture("form", "test", 1).drawing
    _, parts = labels.grids(drawing)
    for glyph in drawing.glyphs:
        cell = parts[int(glyph.y // labels.PATCH), int(glyph.x // labels.PATCH), : labels.SLOTS]
        assert glyph.character in {labels.CHARACTERS[code - 1] for code in cell if code}


def one_word(text, x):
    canvas = Canvas(random.Random(3), 2 * labels.TILE, labels.TILE)
    canvas.text(x, 72, text, 20)
    glyphs = tuple(canvas.glyphs)
    return Drawing(canvas.image, glyphs, (), np.zeros((labels.TILE, 2 * labels.TILE), np.uint8))


def words_of(drawing):
    named = labels.grids(drawing)[1][72 // labels.PATCH, :, labels.WORD]
    return {
        int(i): "..." if named[i] == labels.CONTINUED else labels.WORDS[named[i] - 1] for i in np.flatnonzero(named)
    }


def test_a_known_word_is_named_where_it_starts_and_its_rest_is_its_continuation():
    named = words_of(one_word("Coffee:", 20))
    assert named[1] == "Coffee"
    assert len(named) > 2
    assert set(named.values()) == {"Coffee", "..."}
    assert sorted(named) == list(range(1, 1 + len(named)))


def test_numbers_and_unknown_words_are_not_named():
    assert words_of(one_word("483", 20)) == {}
    assert words_of(one_word("Zubaki", 20)) == {}


def test_a_word_that_a_tile_cuts_is_named_only_where_most_of_it_lies():
    assert "Coffee" in words_of(one_word("Coffee", labels.TILE - 60)).values()
    assert max(words_of(one_word("Coffee", labels.TILE - 60))) < labels.SIDE
    assert words_of(one_word("Coffee", labels.TILE - 24)) == {}


def test_a_label_tells_where_its_value_stands_and_the_value_where_its_label_stands():
    canvas = Canvas(random.Random(3), labels.TILE, labels.TILE)
    label, value = canvas.text(100, 260, "Coffee", 18, anchor="m"), canvas.text(100, 40, "483", 18, anchor="m")
    canvas.link(label, value)
    blank = np.zeros((labels.TILE, labels.TILE), np.uint8)
    _, parts = labels.grids(Drawing(canvas.image, tuple(canvas.glyphs), (), blank, tuple(canvas.links)))
    column, upper, lower = 100 // labels.PATCH, 40 // labels.PATCH, 260 // labels.PATCH
    places = {lower: (labels.TO, labels.FROM, upper), upper: (labels.FROM, labels.TO, lower)}
    for row, (here, other, where) in places.items():
        written = parts[row][parts[row, :, 0] > 0]
        assert set(written[:, labels.CENTRE]) == {1 + column}
        assert {tuple(one) for one in written[:, here]} == {(1 + where, 1 + column)}
        assert not written[:, other].any()
    said = parts[lower][1 + np.flatnonzero(parts[lower, :, labels.WORD])[0]]
    assert said[labels.WORD] == labels.CONTINUED, "a known word's second patch says what it leads to"
    assert "".join(labels.CHARACTERS[c - 1] for c in said[labels.LINKED] if c) == "483"
    said = parts[upper][1 + np.flatnonzero(parts[upper, :, 0])[-1]]
    assert labels.WORDS[said[labels.LINKED_WORD] - 1] == "Coffee", "the patch behind a number says what leads to it"
    assert tuple(said[labels.FROM]) == (1 + lower, 1 + column)


def test_a_box_between_two_arrows_says_what_it_leads_to_and_then_what_leads_to_it():
    canvas = Canvas(random.Random(3), labels.TILE, labels.TILE)
    runs = [canvas.text(40, y, word, 18) for y, word in ((40, "Start"), (140, "Sun"), (240, "D"))]
    links = ((runs[0], runs[1]), (runs[1], runs[2]))
    blank = np.zeros((labels.TILE, labels.TILE), np.uint8)
    _, parts = labels.grids(Drawing(canvas.image, tuple(canvas.glyphs), (), blank, links))
    middle = parts[140 // labels.PATCH]
    at = np.flatnonzero(middle[:, labels.WORD])[0]
    after, before = middle[at + 1], middle[at + 2]
    assert labels.CHARACTERS[after[labels.LINKED.start] - 1] == "D"
    assert after[labels.TO].all()
    assert not after[labels.FROM].any()
    assert labels.WORDS[before[labels.LINKED_WORD] - 1] == "Start"
    assert before[labels.FROM].all()
    assert not before[labels.TO].any()


def test_a_role_is_told_behind_what_is_linked_and_what_there_is_to_count_in_the_first_patch():
    canvas = Canvas(random.Random(3), labels.TILE, labels.TILE)
    label, value = canvas.text(40, 260, "Tea", 18), canvas.text(40, 40, "48", 18)
    canvas.link(label, value)
    canvas.link(LARGEST, label)
    blank = np.zeros((labels.TILE, labels.TILE), np.uint8)
    drawing = Drawing(canvas.image, tuple(canvas.glyphs), (), blank, tuple(canvas.links), 4)
    whole, parts = labels.grids(drawing)
    row = parts[260 // labels.PATCH]
    number, role = row[np.flatnonzero(row[:, labels.WORD])[0] :][1:3]
    assert labels.CHARACTERS[number[labels.LINKED.start] - 1] == "4"
    assert role[labels.LINKED_WORD] == 1 + len(labels.WORDS) + labels.ROLES.index("largest")
    assert whole[0, 0, labels.COUNT] == parts[0, 0, labels.COUNT] == 4
    wide = Drawing(canvas.image.resize((2 * labels.TILE, labels.TILE)), (), (), np.tile(blank, (1, 2)), (), 4)
    whole, parts = labels.grids(wide)
    assert whole[0, 0, labels.COUNT] == 4
    assert not parts[..., labels.COUNT].any(), "a tile that shows a part can't know"


def test_what_stands_right_behind_a_text_is_not_overwritten_by_what_it_leads_to():
    canvas = Canvas(random.Random(3), labels.TILE, labels.TILE)
    label, value = canvas.text(20, 260, "Q", 18), canvas.text(20, 40, "7", 18)
    canvas.text(20 + labels.PATCH, 260, "XYZ", 18)
    blank = np.zeros((labels.TILE, labels.TILE), np.uint8)
    _, parts = labels.grids(Drawing(canvas.image, tuple(canvas.glyphs), (), blank, ((label, value),)))
    assert not parts[260 // labels.PATCH, :, labels.LINKED].any()


def test_what_leads_to_two_places_tells_none():
    canvas = Canvas(random.Random(3), labels.TILE, labels.TILE)
    runs = [canvas.text(40, y, word, 18) for y, word in ((40, "Start"), (140, "Plan"), (240, "Draw"))]
    links = ((runs[0], runs[1]), (runs[0], runs[2]))
    blank = np.zeros((labels.TILE, labels.TILE), np.uint8)
    _, parts = labels.grids(Drawing(canvas.image, tuple(canvas.glyphs), (), blank, links))
    assert not parts[..., labels.TO].any()
    assert (parts[..., labels.FROM] > 0).any()


class Whole:
    """A tokenizer for which every text is one token, numbered by its length."""

    def __call__(self, text, **_):
        return {"input_ids": [len(text)]}


def test_a_patch_where_a_word_starts_is_coded_as_that_word_and_nothing_else():
    torch.manual_seed(0)
    coded = Symbols(Whole(), torch.randn(40, 24))
    seen = np.zeros((labels.SIDE, labels.SIDE, len(labels.FIELDS)), np.int64)
    plain = coded.exact(torch.from_numpy(seen))
    word = labels.WORDS.index("Coffee")
    seen[2, 3, : labels.CENTRE] = (5, 6, 7, 0, 4, 1 + word)
    seen[2, 4, : labels.CENTRE] = (8, 0, 0, 0, 0, labels.CONTINUED)
    seen[5, 5, 0] = 9
    code = coded.exact(torch.from_numpy(seen)) - plain
    torch.testing.assert_close(code[2, 3], coded.tables[labels.WORD][1 + word])
    torch.testing.assert_close(code[5, 5], coded.tables[0][9])
    code[2, 3] = code[5, 5] = 0
    torch.testing.assert_close(code, torch.zeros_like(code))


def test_a_text_is_coded_at_the_column_of_its_centre_and_what_it_leads_to_replaces_what_is_drawn():
    torch.manual_seed(0)
    coded = Symbols(Whole(), torch.randn(40, 24))
    seen = np.zeros((labels.SIDE, labels.SIDE, len(labels.FIELDS)), np.int64)
    plain = coded.exact(torch.from_numpy(seen))
    seen[2, 3, labels.CENTRE] = 1 + 5
    seen[2, 3, labels.TO] = (1 + 9, 1 + 7)
    code = (coded.exact(torch.from_numpy(seen)) - plain)[2, 3]
    wanted = coded.columns[5] - coded.columns[3]
    torch.testing.assert_close(code, wanted)
    seen[2, 3, labels.MARK], seen[2, 3, labels.LINKED.start] = 4, 9
    code = (coded.exact(torch.from_numpy(seen)) - plain)[2, 3]
    torch.testing.assert_close(code, wanted + coded.linked[0][9] + coded.ways[0])
    seen[2, 3, labels.TO], seen[2, 3, labels.FROM] = (0, 0), (1 + 9, 1 + 7)
    code = (coded.exact(torch.from_numpy(seen)) - plain)[2, 3]
    torch.testing.assert_close(code, wanted + coded.linked[0][9] + coded.ways[1])


def test_what_an_exact_code_tells_is_read_from_it_as_the_nearest_code():
    torch.manual_seed(0)
    coded = Symbols(Whole(), torch.randn(40, 400))
    for name, table in coded.named_parameters():
        if name.startswith(("tables", "linked")):
            table.data[1:] = torch.randn_like(table[1:])  # this tokenizer gives all words of a length one code
    seen = np.zeros((labels.SIDE, labels.SIDE, len(labels.FIELDS)), np.int64)
    seen[0, 0, labels.COUNT] = 4
    seen[2, 3, : labels.CENTRE] = (5, 6, 7, 2, 4, 9)
    seen[2, 4, : labels.CENTRE] = (8, 0, 0, 0, 3, labels.CONTINUED)
    seen[2, 4, labels.LINKED] = (11, 12, 0, 0)
    seen[5, 5, : labels.COLOUR + 1] = (3, 0, 0, 0, 2)
    seen = torch.from_numpy(seen)
    told = coded.coded(seen)
    assert told[2, 3, : labels.CENTRE].tolist() == [0, 0, 0, 2, 0, 9], "a word replaces its characters"
    assert told[2, 4].nonzero().flatten().tolist() == [labels.LINKED.start, labels.LINKED.start + 1]
    assert told[5, 5].nonzero().flatten().tolist() == [0], "a character replaces a colour"
    read = coded.read(coded.exact(seen).flatten(0, 1)[None])
    told = told.flatten(0, 1)[None]
    for field, logits in read.items():
        there = told[..., field] > 0
        assert torch.equal(logits.argmax(-1)[there], told[..., field][there]), field


def test_what_a_sure_tower_believes_is_coded_like_the_labels():
    torch.manual_seed(0)
    coded = Symbols(Whole(), torch.randn(40, 24))
    seen = torch.from_numpy(labels.cut_views(picture("chart", "test", 3).drawing).whole.astype(np.int64))
    sure = [
        50.0 * torch.nn.functional.one_hot(seen[..., f], n).flatten(0, 1)[None] for f, n in enumerate(labels.FIELDS)
    ]
    torch.testing.assert_close(coded.expected(sure)[0], coded.exact(seen).flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_both_views_of_a_picture_have_the_tiles_that_the_architecture_cuts():
    seen = labels.cut_views(picture("chart", "test", 3).drawing)
    rows, columns, _ = seen.parts.shape
    assert len(seen.tiles) == 1 + rows * columns // labels.SIDE**2
    assert seen.tile_labels().shape == (len(seen.tiles), labels.SIDE, labels.SIDE, len(labels.FIELDS))
    assert np.array_equal(seen.tile_labels()[1], seen.parts[: labels.SIDE, : labels.SIDE])


def test_a_grid_of_tiles_is_laid_out_as_the_labels_are():
    seen = labels.cut_views(picture("scene", "test", 3).drawing)
    rows, columns, _ = seen.parts.shape
    tiles = torch.from_numpy(seen.tile_labels()[1:].astype(int)).flatten(1, 2)
    assert torch.equal(lessons.grid(tiles, rows, columns), torch.from_numpy(seen.parts.astype(int)))


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


def test_lessons_in_letters_name_the_option_or_say_the_fact_and_are_answered_by_its_letter():
    for number in (0, 1):
        one = lessons.lesson_in_letters(Letters(), number)
        batch = lessons.collate([one])
        assert one.segments.count(0) > 40 if number else one.segments.count(0) < 20
        for turn in range(1, 1 + len(one.kinds)):
            own = [i for i, segment in enumerate(one.segments) if segment == turn]
            text = "".join(chr(one.ids[i]) for i in own)
            answer = "".join(chr(one.targets[i]) for i in own if one.targets[i] != lessons.IGNORED)
            letter = answer.removesuffix("<|im_end|>")
            option = text.split(f"\n{letter}. ")[1].split("\n")[0]
            told = "".join(map(chr, one.ids[: one.segments.count(0)])) if number else text.split("\nA. ")[0]
            assert option in told
        assert batch.ids.shape[1] == len(one.ids)


def test_a_brief_lesson_keeps_the_positions_of_what_it_keeps():
    shown = picture("chart", "train", 0)
    whole = lessons.lesson(Letters(), shown, random.Random(0), 2, share=1.0)
    brief = lessons.lesson(Letters(), shown, random.Random(0), 2, share=0.0)
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
