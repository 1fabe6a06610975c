"""The picture suite: well-formed items, the same at every call, drawn without torch."""

import subprocess
import sys

import pytest
from PIL import Image

from quant_engine.data.drawn import suite
from quant_engine.spec import UserError


@pytest.mark.parametrize("task", suite.TASKS)
def test_items_are_the_same_at_every_call_and_differ_between_splits(task):
    assert suite.items(task, 12) == suite.items(task, 12)
    assert [i.question for i in suite.items(task, 12)] != [i.question for i in suite.items(task, 12, "val")]
    assert suite.items(task, 24)[:12] == suite.items(task, 12)[:12]


@pytest.mark.parametrize("task", suite.TASKS)
def test_items_are_well_formed(task):
    items = suite.items(task, 40)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.question
        assert item.answers
        assert item.category
        if item.options:
            assert len(set(item.options)) == len(item.options) >= 3
            assert 0 <= "ABCDE".index(item.answers[0]) < len(item.options)


def test_an_item_draws_its_picture():
    image = suite.items("demo-chartqa", 1)[0].image()
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"


def test_rotations_of_a_circular_item_share_the_right_option():
    items = suite.items("demo-mmbench", 10)
    by_link = {}
    for item in items:
        by_link.setdefault(item.link, []).append(item)
    assert len(by_link) == 10
    for rotations in by_link.values():
        right = {i.options["ABCDE".index(i.answers[0])] for i in rotations}
        assert len(right) == 1
        assert len(rotations) == len(rotations[0].options)
        assert len({i.answers[0] for i in rotations}) == len(rotations)


def test_pairs_have_one_yes_and_one_no():
    items = suite.items("demo-mme", 20)
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first.link == second.link
        assert {first.answers[0], second.answers[0]} == {"Yes", "No"}
        assert first.category == second.category


def test_an_unknown_task_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="demo-docvqa"):
        suite.items("demo-poetry")


def test_the_suite_needs_no_torch():
    code = "import sys; from quant_engine.data.drawn import suite; suite.items('demo-docvqa', 2)[0].image(); "
    code += "suite.revision('demo-chartqa'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
