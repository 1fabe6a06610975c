"""Drawn pictures: the same for the same seed, different across splits, with labels where the ink is."""

import subprocess
import sys

import numpy as np
import pytest

from quant_engine.data.drawn.pictures import FAMILIES, SPLITS, picture, seed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_the_same_at_every_call(family):
    first, second = picture(family, "test", 7), picture(family, "test", 7)
    assert np.array_equal(np.asarray(first.drawing.image), np.asarray(second.drawing.image))
    assert first.questions == second.questions
    assert first.drawing.glyphs == second.drawing.glyphs


def test_questions_are_the_same_in_every_process():
    """Python orders sets of strings anew in each process."""
    code = "from quant_engine.data.drawn.pictures import FAMILIES, picture\n"
    code += "print([picture(family, 'test', n).questions for family in FAMILIES for n in range(3)])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_picture(family):
    pixels = {(split, n): picture(family, split, n).drawing.image.tobytes() for split in SPLITS for n in range(12)}
    assert len(set(pixels.values())) == len(pixels)


def test_splits_share_no_seed():
    seeds = [seed(split, family, n) for split in SPLITS for family in FAMILIES for n in range(500)]
    assert len(set(seeds)) == len(seeds)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, val, test, shifted"):
        picture("chart", "exam", 0)


@pytest.mark.parametrize("family", ["form", "chart", "diagram"])
def test_each_glyph_lies_on_ink(family):
    """The recorded centre of a letter is close to pixels that differ from what surrounds them."""
    for number in range(8):
        drawing = picture(family, "test", number).drawing
        gray = np.asarray(drawing.image.convert("L")).astype(int)
        for glyph in drawing.glyphs:
            if not glyph.character.isalnum():
                continue
            reach = max(4, round(glyph.size / 2))
            x, y = round(glyph.x), round(glyph.y)
            around = gray[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
            assert around.max() - around.min() > 40, (number, glyph)


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_are_answerable_and_well_formed(family):
    for number in range(30):
        shown = picture(family, "val", number)
        assert shown.questions
        for question in shown.questions:
            assert question.text.strip() == question.text
            assert question.answer
            assert question.answer not in question.wrong
        by_link = {}
        for question in shown.questions:
            if question.link:
                by_link.setdefault(question.link, []).append(question.answer)
        assert all(sorted(answers) == ["No", "Yes"] for answers in by_link.values())


def test_chart_answers_come_from_the_chart():
    """The highest label has the highest value, and the values asked for are written in the picture."""
    for number in range(20):
        shown = picture("chart", "test", number)
        values = {(*q.wrong, q.answer) for q in shown.questions if q.kind == "extreme value"}
        written = "".join(g.character for g in shown.drawing.glyphs)
        for group in values:
            for value in group:
                assert value in written


def test_pictures_are_drawn_on_whole_tiles():
    from quant_engine.data.drawn.drawing import SIZES
    from quant_engine.demo.model import TILE

    assert all(width % TILE == 0 and height % TILE == 0 for width, height in SIZES)
