"""A picture made worse step by step, and whose answer changes first."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image, ImageChops, ImageStat

from leaderboard import requests, stress
from leaderboard.stress import STRESSES
from leaderboard.ui.ask_tab import AskTab
from quant_engine.answers.examples import read_examples
from quant_engine.answers.messages import AnswerEvent

PICTURE = read_examples()[0].picture
ANSWERS = {
    "FP16": ["The total is 7.", "the total is 7", "Total is 7!", "Nine."],
    "RTN W4": ["Seven. It is so.", "Seven. Or not.", None, "Seven"],
    "RTN W2": ["Six", "Five", "Six", "Five"],
    "RTN W1": [None, "Five"],
}


@pytest.mark.parametrize("name", STRESSES)
def test_each_strength_leaves_less_of_the_picture(name):
    original = Image.open(PICTURE).convert("RGB")
    worse = [STRESSES[name].apply(original, strength) for strength in STRESSES[name].strengths]
    assert 4 <= len(worse) <= 5
    assert {picture.mode for picture in worse} == {"RGB"}
    if name == "crop":
        areas = [picture.width * picture.height for picture in (original, *worse)]
        assert areas == sorted(areas, reverse=True)
    else:
        assert {picture.size for picture in worse} == {original.size}
        lost = [sum(ImageStat.Stat(ImageChops.difference(original, picture)).mean) for picture in worse]
        assert lost == sorted(lost)
        assert lost[0] > 0
    assert len(set(STRESSES[name].labels)) == 1 + len(worse)
    assert STRESSES[name].apply(Image.new("RGB", (3, 90)), STRESSES[name].strengths[-1]).size


def test_an_answer_changes_where_its_first_sentence_does():
    changes = [stress.first_change(texts) for texts in ANSWERS.values()]
    assert changes == [3, None, 1, None]
    assert stress.first_change([]) is None


def test_the_finding_names_who_changes_first_and_who_holds():
    blur = STRESSES["blur"]
    assert stress.finding(blur, ANSWERS) == ("Blur: RTN W2 changes its short answer first, at 0.25%; RTN W4 keeps its.")
    same = {"FP16": ["a", "a"], "RTN W4": ["b", "b"]}
    assert stress.finding(blur, same) == "Blur: no setting changes its short answer up to 0.25%."
    assert stress.finding(blur, {"FP16": ["a"]}) == ""


def test_the_figure_has_a_line_as_far_as_an_answer_holds_and_no_html_of_answers():
    figure = stress.figure(STRESSES["blur"], ANSWERS | {"RTN W2": ["<b>Six</b>", "Five", "Six", "Five"]})
    json.dumps(figure.data, allow_nan=False)
    lines = {trace["y"][0]: trace["x"] for trace in figure.data if trace["mode"] == "lines"}
    assert lines == {
        "FP16": ["untouched", "0.25%", "0.5%"],
        "RTN W4": ["untouched", "0.25%", "0.5%", "1%"],
        "RTN W2": ["untouched"],
    }
    same, other = figure.data[-2:]
    assert list(zip(other["y"], other["x"], strict=True)) == [
        ("FP16", "1%"), ("RTN W2", "0.25%"), ("RTN W2", "0.5%"), ("RTN W2", "1%")
    ]  # fmt: skip
    assert "&lt;b&gt;Six&lt;/b&gt;" in same["text"]
    assert figure.table.shape == (4, 7)


class Service:
    """Quantized sides answer otherwise from the third picture on; notes the pictures that it is asked about."""

    def __init__(self):
        self.pictures, self.sizes, self.lengths, self.cancelled = [], [], [], set()

    def ask(self, request):
        self.pictures.append(request.image)
        self.lengths.append(request.max_new_tokens)
        with Image.open(request.image) as picture:
            self.sizes.append(picture.size)
        for side, setting in enumerate(request.sides):
            fields = {"request_id": request.request_id, "side": side}
            yield AnswerEvent(kind="status", message="Reading", **fields)
            if request.request_id in self.cancelled:
                yield AnswerEvent(kind="error", message="Stopped.", **fields)
                continue
            late = setting.w_bits < 16 and len(self.pictures) > 2
            yield AnswerEvent(kind="done", text="Mug." if late else "Fish.", tokens=(1,), **fields)

    def cancel(self, request_id):
        self.cancelled.add(request_id)


@pytest.fixture
def stressing(monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    service = Service()
    with gr.Blocks():
        part = AskTab(SimpleNamespace(answers=service, votes=None)).stress
    form = ["What?", "demo", 256, (True, False, True), "rtn", "3", None, "64", *["rtn", "2", None, "64"] * 2]
    return part, service, form


def left_over():
    return list(Path(tempfile.gettempdir()).glob("lowbit-stress-*"))


def test_every_strength_is_asked_about_a_picture_that_is_deleted(stressing):
    part, service, form = stressing
    before = left_over()
    begun, problem, *_ = part._prepare("crop", str(PICTURE), *form)
    assert problem == ""
    steps = list(part._answer(begun))
    assert len(service.pictures) == 6
    assert service.sizes == sorted(service.sizes, reverse=True)
    assert not any(picture.exists() for picture in service.pictures)
    assert left_over() == before
    assert PICTURE.exists()
    assert max(service.lengths) <= 64
    charts = [chart for _, chart in steps if isinstance(chart, str) and chart]
    assert len(charts) == 5
    changed = "RTN W3A16 g64 and RTN W2A16 g64 change their short answer first, at 85%; FP16 keeps its."
    assert changed in charts[-1]
    assert "Asking" not in steps[-1][0]
    assert steps[-1][0].count("<figure>") == 6
    assert part.questions.stage(begun.request) is None


def test_stopping_ends_it_with_the_strength_that_is_being_asked(stressing):
    part, service, form = stressing
    begun = part._prepare("blur", str(PICTURE), *form)[0]
    steps = part._answer(begun)
    for _ in range(3):
        next(steps)
    part._halt(begun)
    rest = list(steps)
    assert len(service.pictures) == 2
    assert rest[-1][0].count("<figure>") == 2
    assert not any(picture.exists() for picture in service.pictures)


def test_a_visitor_who_leaves_leaves_no_pictures(stressing):
    part, _, form = stressing
    before = left_over()
    steps = part._answer(part._prepare("jpeg", str(PICTURE), *form)[0])
    next(steps)
    next(steps)
    steps.close()
    assert left_over() == before


def test_what_can_not_be_asked_is_a_sentence(stressing):
    part, service, form = stressing
    assert "Give a picture" in part._prepare("blur", None, *form)[1]
    assert "from the list" in part._prepare("magic", str(PICTURE), *form)[1]
    assert list(part._answer(None)) == [[gr.skip(), gr.skip()]]
    assert not service.pictures
