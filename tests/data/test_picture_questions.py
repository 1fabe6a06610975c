"""The folder of pictures with questions that a user calibrates on: read as it was written, or one sentence."""

import json

import pytest
from PIL import Image

from quant_engine.data import pictures
from quant_engine.spec import UserError

ROW = {"image": "a.png", "question": "What is it?", "answer": "noise"}


@pytest.fixture
def folder(tmp_path):
    Image.effect_noise((20, 20), 80).save(tmp_path / "a.png")
    return tmp_path


def turns(folder, content):
    """The questions and answers of a questions.jsonl, each once."""
    (folder / "questions.jsonl").write_bytes(content)
    source = pictures.pin(f"pictures:{folder}")
    drawn = pictures.turns(source, 0)
    count = len(pictures._lines(folder))
    return sorted((turn.question, turn.answer) for turn in (next(drawn) for _ in range(count)))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\u00a0", "\ufeff"])
def test_a_line_ends_at_a_newline_and_nowhere_else(folder, character):
    question = f"First{character}second?"
    line = json.dumps(ROW | {"question": question}, ensure_ascii=False).encode()
    for content in (line, line + b"\r\n\r\n", b"\xef\xbb\xbf" + line + b"\n"):
        assert turns(folder, content) == [(question, "noise")]


def test_a_byte_order_mark_or_other_newlines_are_the_same_questions(folder):
    lines = [json.dumps(row).encode() for row in (ROW, ROW, ROW | {"answer": 42}, ROW | {"answer": None})]
    expected = turns(folder, b"\n".join(lines))
    pinned = pictures.pin(f"pictures:{folder}")
    assert [answer for _, answer in expected] == ["", "42", "noise", "noise"]
    for content in (b"\xef\xbb\xbf" + b"\r\n".join(lines), b"[" + b",\n".join(lines) + b"]"):
        assert turns(folder, content) == expected
        assert pictures.pin(pinned) == pinned


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"[1]", "row 1 is no JSON object"),
        (b"a.png", "line 2 is no JSON object"),
        (b'"a.png"', "line 2 is no JSON object"),
        (b"\xff", "line 2 is not UTF-8 text"),
        (json.dumps(ROW | {"image": "no.png"}).encode(), "line 2 names the picture 'no.png', which can't be read"),
        (json.dumps(ROW | {"image": "\0"}).encode(), "line 2 names the picture .*, which can't be read"),
        (json.dumps(ROW | {"image": "text.png"}).encode(), "line 2 names the picture 'text.png', which can't be read"),
        (json.dumps(ROW | {"image": "."}).encode(), "line 2 names the picture '.', which can't be read"),
        (json.dumps(ROW | {"question": ["What?"]}).encode(), "line 2: question is a list, where text or a number"),
        (json.dumps(ROW | {"question": " "}).encode(), "line 2: question is empty"),
        (json.dumps({"question": "What?"}).encode(), "line 2: image is missing"),
        (json.dumps(ROW | {"answer": "\ud800"}).encode(), "line 2: answer holds half of a surrogate pair"),
    ],
)
def test_a_line_that_can_not_be_asked_is_one_sentence(folder, line, sentence):
    (folder / "text.png").write_text("no picture")
    first = b"" if line.startswith(b"[") else json.dumps(ROW).encode() + b"\n"
    (folder / "questions.jsonl").write_bytes(first + line + b"\n")
    with pytest.raises(UserError, match=f"questions.jsonl, {sentence}"):
        pictures.pin(f"pictures:{folder}")


def test_a_picture_that_turns_out_damaged_is_said_with_its_line(folder):
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"questions.jsonl, line 1: The picture 'a.png' is damaged"):
        turns(folder, json.dumps(ROW).encode())
