"""The Ask tab's own steps, with a stand-in for the answering process."""

from types import SimpleNamespace

import gradio as gr
import pytest

from leaderboard import requests
from leaderboard.ui.ask_tab import AskTab
from leaderboard.view import Asked, read_address
from quant_engine.answers.messages import AnswerEvent
from quant_engine.results import TokenShift

ASKED = Asked(settings="rtn-3-g64,gptq-2", question="What?", example=1, tokens=32)


class Service:
    """Every side says its bits; a quantized one parts at its second token and goes on from there. Keeps requests."""

    def __init__(self):
        self.requests, self.cancelled = [], []

    def ask(self, request):
        self.requests.append(request)
        for side, setting in enumerate(request.sides):
            fields = {"request_id": request.request_id, "side": side}
            yield AnswerEvent(kind="status", message="Reading", **fields)
            if request.along:
                yield AnswerEvent(kind="done", shifts=tuple(shift(side == 0 or not k) for k in range(3)), **fields)
            else:
                yield AnswerEvent(kind="done", text=f"It is {setting.w_bits:g}", tokens=(5, 6, 7), **fields)

    def cancel(self, request_id):
        self.cancelled.append(request_id)


def shift(agrees):
    return TokenShift(text="It", p=0.5, q=0.25, divergence=0.5, choice="b", choice_q=0.5, agrees=agrees)


NOTHING = [gr.skip()] * 5


def shown(updates):
    """What is there and can be pressed: Ask, Stop, Follow up, Add a setting."""
    return [update.get("visible", update.get("interactive")) for update in updates]


@pytest.fixture
def asking(monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    service = Service()
    with gr.Blocks():
        tab = AskTab(SimpleNamespace(answers=service, votes=None))
    picture = str(tab.picture.examples[0].picture)
    form = [picture, "What?", "demo", 32, (True, False, True), "rtn", "3", None, "64", *["rtn", "2", None, "64"] * 2]
    return tab, service, form


def test_answers_come_column_by_column_and_are_held_against_fp16s(asking):
    tab, service, form = asking
    begun, problem, link, *_ = tab.question._prepare(None, None, *form)
    assert problem == ""
    assert read_address(link).asked == Asked(
        model="demo", settings="rtn-3-g64,rtn-2-g64", question="What?", example=1, tokens=32
    )
    *steps, (*_, answered) = tab.question._answer(begun)
    assert shown(tab.question._stand(begun, answered, (True, False, True))) == [True, True, True, True]
    *more, (*_, answered) = tab.question._read_along(begun, answered)
    assert shown(tab.question._stand(begun, answered, (True, True, True))) == [True, False, True, False]
    steps += more
    changed = [[column for column, pane in enumerate(step[:4]) if isinstance(pane, str)] for step in steps]
    assert changed == [[0], [0], [1], [1], [3], [3]] * 2
    assert "It is 2" in steps[5][3]
    assert "Parted at token 2" in steps[-1][3]
    assert list(tab.question._answer(begun)) == list(tab.question._read_along(begun, answered)) == [NOTHING]
    assert [request.along for request in service.requests] == [(), (5, 6, 7)]
    assert answered.conversation.answers == ("It is 16", "It is 3", "It is 2")

    follow = tab.question._prepare_follow_up(begun, answered, *form)[0].request
    assert follow.earlier[0].answers == ("It is 16", "It is 3", "It is 2")
    other = [form[0], "Where?", "demo", 32, (True, False, False), *form[5:]]
    assert "begin a new one" in tab.question._prepare_follow_up(begun, answered, *other)[1]

    onward = tab.question._prepare_onward(3, begun, answered)[0]
    assert (onward.request.prefix, onward.request.sides) == ((5, 6), (answered.sides[2].setting,))
    *steps, (*_, after) = tab.question._answer(onward)
    assert "From the fork on" in steps[-1][3]
    assert after.request == answered.request
    assert list(tab.question._read_along(onward, after)) == [NOTHING]
    assert "no fork" in tab.question._prepare_onward(2, begun, answered)[1]


def test_a_question_that_is_stopped_before_it_is_on_its_way_stops_when_it_is(asking):
    tab, service, form = asking
    begun = tab.question._prepare(None, None, *form)[0]
    tab.question._halt(begun)
    *_, (*_, answered) = tab.question._answer(begun)
    assert set(service.cancelled) == {begun.request.request_id}
    assert len(service.cancelled) == 2
    list(tab.question._read_along(begun, answered))
    tab.question._halt(begun)  # it is at its end
    assert len(service.cancelled) == 2


@pytest.mark.parametrize("step", ["answers", "reading"])
def test_a_question_that_another_replaces_shows_nothing_more(asking, step):
    tab, service, form = asking
    before = tab.question._prepare(None, None, *form)[0]
    steps, answered = tab.question._answer(before), None
    if step == "reading":
        *_, (*_, answered) = steps
        steps = tab.question._read_along(before, answered)
    next(steps)
    assert shown(tab.question._stand(before, answered, (True, False, False))) == [
        step == "reading", True, step == "reading", step == "reading"
    ]  # fmt: skip
    begun, problem, *_ = tab.question._prepare(before, answered, *form)
    assert problem == ""
    assert list(steps) == [NOTHING]
    assert before.request.request_id in service.cancelled
    *_, (*_, after) = tab.question._answer(begun)
    assert after.request == begun.request


def test_a_refused_question_leaves_the_one_that_is_being_answered(asking):
    tab, _, form = asking
    begun = tab.question._prepare(None, None, *form)[0]
    steps = tab.question._answer(begun)
    next(steps)
    refused = tab.question._prepare(begun, None, form[0], " ", *form[2:])
    assert refused[0] == gr.skip()
    assert "Type a question" in refused[1]
    assert list(tab.question._answer(begun)) == [NOTHING]
    assert shown(tab.question._stand(begun, None, (True, False, False)))[:2] == [False, True]
    *_, (*_, answered) = steps
    assert answered.request == begun.request


def test_the_question_at_every_width_ends_with_files_to_save(asking):
    tab, _, form = asking
    begun, problem, row, *_ = tab.sweep._prepare("demo", form[0], "What?", 32, "rtn", 64)
    assert problem == ""
    assert row.count("Asking") == 6
    *_, last = tab.sweep._answer(begun)
    assert last.count("Parted at token 2") >= 5
    assert [f"sweep.{ending}" in last for ending in ("md", "csv", "png")] == [True] * 3
    assert "Give a picture" in tab.sweep._prepare("demo", None, "What?", 32, "rtn", 64)[1]


def test_a_link_fills_the_tab_and_one_that_asks_nothing_leaves_it(asking):
    tab, _, _ = asking
    filled = dict(zip(tab.outputs, tab.fill(ASKED), strict=True))
    assert filled[tab.question.columns.shown] == (True, True, False)
    assert filled[tab.question.question] == "What?"
    assert filled[tab.picture.path].endswith("chart-1.png")
    assert len(tab.fill(Asked())) == len(tab.outputs)


@pytest.mark.parametrize(("asked", "question"), [({"example": 2}, True), ({"example": 2, "question": "Why?"}, False)])
def test_a_link_to_an_example_alone_asks_its_question(asking, asked, question):
    tab, _, _ = asking
    example = tab.picture.examples[1]
    filled = dict(zip(tab.outputs, tab.fill(Asked(**asked)), strict=True))
    assert filled[tab.question.question] == (example.question if question else "Why?")
    assert filled[tab.picture.path] == str(example.picture)
