"""The blind vote's own steps, with a stand-in for the answering process."""

import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image

from leaderboard import requests
from leaderboard.ui.ask_tab import AskTab
from leaderboard.ui.blind_part import blind_html, surprise
from leaderboard.votes import Votes
from quant_engine.answers.messages import AnswerEvent
from quant_engine.methods import METHODS
from quant_engine.results import AnswerStats
from quant_engine.spec import QuantSetting, UserError

RTN3 = QuantSetting(method="rtn", w_bits=3, group_size=64)
STATS = AnswerStats(
    ttft_s=1, tokens_per_s=9.5, tokens=3, prompt_tokens=9, weight_bytes=149_000_000, stored_bits=4.3125, dtype="float32"
)


class Service:
    """FP16 says "A red bar", others what they are; `quick` is the side that ends first, `broken` one that fails."""

    def __init__(self):
        self.words, self.quick, self.broken, self.cancelled = "A {bits:g} bar", 0, None, []

    def ask(self, request):
        for side in (self.quick, 1 - self.quick):
            setting, fields = request.sides[side], {"request_id": request.request_id, "side": side}
            yield AnswerEvent(kind="status", message=f"Loading {setting.label}", **fields)
            text = self.words.format(bits=setting.w_bits)
            yield AnswerEvent(kind="token", text=text[:3], stats=STATS, **fields)
            if side == self.broken:
                yield AnswerEvent(kind="error", message="Memory ran out.", **fields)
            else:
                yield AnswerEvent(kind="done", text=text, stats=STATS, message="Answered before.", **fields)

    def cancel(self, request_id):
        self.cancelled.append(request_id)


class Visitor:
    """The part as somebody uses it: what `ask` and `vote` leave is the state of the next step."""

    def __init__(self, part, picture: str, session: str):
        self.part, self.picture, self.session = part, picture, session
        self.blind, self.problem, self.shown, self.voter = None, "", "", None

    def ask(self, question="What?", setting=("rtn", "3", None, "64"), until_finished=True) -> list[str]:
        """Asks, and gives what was shown while both answers were on their way."""
        return self._begin(self.part._prepare(self.blind, "demo", self.picture, question, 32, *setting), until_finished)

    def ask_surprise(self) -> list[str]:
        return self._begin(self.part._prepare_surprise(self.blind, "demo", self.picture, "What?", 32), True)

    def _begin(self, updates, until_finished) -> list[str]:
        blind, self.problem, shown, *_ = updates
        if blind == gr.skip():
            return []
        self.blind, seen = blind, [shown]
        if until_finished:
            *steps, (self.shown, self.blind) = self.part._answer(blind)
            seen += [step for step, _ in steps]
        return seen

    def vote(self, vote, keep=False, named=(None, None)) -> str:
        event, request = SimpleNamespace(_data={"vote": vote}), SimpleNamespace(session_hash=self.session)
        blind, self.problem, shown, _, voter = self.part._vote(event, request, self.blind, keep, self.voter, *named)
        if blind != gr.skip():
            self.blind, self.shown, self.voter = blind, shown, voter
        return self.problem

    @property
    def right(self) -> str:
        return "AB"[self.blind.order.index(1)]

    @property
    def wrong(self) -> str:
        return "AB"[self.blind.order.index(0)]


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def box(tmp_path) -> Votes:
    return Votes(tmp_path / "votes.sqlite")


@pytest.fixture
def tab(monkeypatch, service, box):
    monkeypatch.setattr(requests, "available", lambda card: True)
    with gr.Blocks():
        return AskTab(SimpleNamespace(answers=service, votes=box))


@pytest.fixture
def visitor(tab):
    return Visitor(tab.blind, str(tab.picture.examples[0].picture), "session a")


def rate(box):
    return box.rate("demo", RTN3)


def masked(html: str) -> str:
    """What is shown without the question, letters and answers: all that could give a side away."""
    return re.sub(r"A (3|16) bar|Answer [AB]|\b[AB] is|>[AB]<|data-vote=\"[AB]\"", "", html)


def test_two_answers_without_names_are_voted_on_and_then_revealed(visitor, box):
    waiting = visitor.ask()
    assert all("bar" not in html for html in waiting)
    assert {"A 3 bar", "A 16 bar"} <= {*re.findall(r"A \d+ bar", visitor.shown)}
    hidden = masked(visitor.shown)
    assert not re.search(r"RTN|FP16|149|4\.31|9\.5|float32|before|bits", hidden.replace("quantized", ""))
    assert hidden.count("<article") == 2
    assert box.tally().rates == ()
    assert visitor.vote(visitor.right) == ""
    assert (
        f"Right: {visitor.right} is RTN W3A16 g64.</b> Counted. Told apart so far: 100% of 1 blind vote"
        in visitor.shown
    )
    assert all(text in visitor.shown for text in ("FP16", "149 MB", "4.31"))
    assert "data-vote" not in visitor.shown
    assert (rate(box).votes, rate(box).right) == (1, 1)


@pytest.mark.parametrize("quick", [0, 1])
def test_what_is_shown_does_not_depend_on_which_side_is_which(visitor, service, quick):
    service.quick = quick
    waiting = visitor.ask()
    shown = {order: blind_html(replace(visitor.blind, order=order)) for order in ((0, 1), (1, 0))}
    assert masked(shown[0, 1]) == masked(shown[1, 0])
    first, second = (re.search(r'aria-label="Answer A".*?A (\d+) bar', html)[1] for html in shown.values())
    assert (first, second) == ("16", "3")
    assert all(before != after for before, after in pairwise(waiting))  # drawn anew only when that changes something


def test_the_order_is_random(visitor):
    orders = set()
    for _ in range(40):
        visitor.ask()
        orders.add(visitor.blind.order)
    assert orders == {(0, 1), (1, 0)}


def test_wrong_votes_and_guesses_are_counted_as_they_are_and_all_sides_are_revealed(visitor, tab, box):
    visitor.ask()
    visitor.vote(visitor.wrong)
    assert f"Not so: {visitor.right} is RTN" in visitor.shown
    other = Visitor(tab.blind, visitor.picture, "session b")
    other.ask()
    assert "Counts as half a right vote" in other.shown
    other.vote("unsure")
    assert f"Now you know: {other.right} is RTN" in other.shown
    assert (rate(box).votes, rate(box).right) == (2, 0.5)


def test_same_answers_are_said_and_nothing_is_counted(visitor, service, box):
    service.words = " The same\n bar "
    visitor.ask()
    assert "Both gave the same answer" in visitor.shown
    assert "data-vote" not in visitor.shown
    assert "wait for both answers" in visitor.vote("A")
    assert box.tally().rates == ()


def test_a_question_counts_once_and_not_after_fp16s_answer_was_seen(visitor, tab, box):
    visitor.ask()
    visitor.vote(visitor.right)
    for setting in (("rtn", "3", None, "64"), ("rtn", "2", None, "64")):
        visitor.ask(setting=setting)
        visitor.vote(visitor.right)
        assert "Not counted: FP16&#x27;s answer to this question was shown" in visitor.shown
    visitor.ask("Where?")
    visitor.vote(visitor.right)
    assert "Counted." in visitor.shown
    again = Visitor(tab.blind, visitor.picture, visitor.session)  # another tab's state with the same session
    again.ask("Where?")
    again.vote(again.wrong)
    assert "Not counted: you have voted on this question before." in again.shown
    assert (rate(box).votes, rate(box).right) == (2, 2)


@pytest.mark.parametrize(
    ("forged", "counted"), [(None, True), ("session a", False), ("", True), (3, True), ("x" * 65, True)]
)
def test_a_page_that_was_opened_anew_votes_as_its_browser_did_before(visitor, tab, box, forged, counted):
    visitor.ask()
    visitor.vote(visitor.right)
    assert visitor.voter == "session a"
    anew = Visitor(tab.blind, visitor.picture, "session b")
    anew.voter = forged
    anew.ask()
    anew.vote(anew.right)
    assert rate(box).votes == 1 + counted
    assert anew.voter == ("session b" if counted else "session a")


def test_a_question_that_was_answered_under_names_on_the_page_is_not_counted(visitor, box):
    visitor.ask()
    request = visitor.blind.request
    for named in ((SimpleNamespace(request=request), None), (None, request)):
        visitor.ask()
        visitor.vote(visitor.right, named=named)
        assert "Not counted" in visitor.shown
        assert "FP16" in visitor.shown
        visitor.blind = None
    other = request.model_copy(update={"question": "Where?"})
    visitor.ask()
    visitor.vote(visitor.right, named=(other, other))
    assert "Counted." in visitor.shown
    assert rate(box).votes == 1


@pytest.mark.parametrize("keep", [True, False, "yes", 1, None])
def test_words_are_stored_where_the_box_is_ticked(visitor, box, keep):
    visitor.ask("A secret?")
    visitor.vote(visitor.right, keep=keep)
    assert (b"A secret?" in box.path.read_bytes()) == (keep is True)


@pytest.mark.parametrize("forged", ["C", "", "AB", None, 3, ["A"], {"a": 1}, "\ud800", "<b>"])
def test_forged_votes_are_a_sentence_and_change_nothing(visitor, box, forged):
    visitor.ask()
    before = visitor.shown
    assert "Vote for A or B" in visitor.vote(forged)
    assert visitor.shown == before
    assert box.tally().rates == ()
    assert visitor.vote(visitor.right) == ""


def test_a_vote_without_a_finished_question_or_a_session_is_a_sentence(visitor, box):
    assert "Ask a question first" in visitor.vote("A")
    visitor.ask(until_finished=False)
    assert "wait for both answers" in visitor.vote("A")
    visitor.ask()
    visitor.session = None
    assert "reload the page" in visitor.vote("A")
    visitor.session = "session a"
    visitor.vote(visitor.right)
    assert "wait for both answers" in visitor.vote(visitor.right)
    assert rate(box).votes == 1


def test_a_vote_that_cannot_be_stored_reveals_nothing_and_can_be_cast_again(visitor, box):
    visitor.ask()
    before = visitor.shown
    box.path.write_bytes(b"this is no database" * 100)
    assert "is damaged: move the file away" in visitor.vote("A")
    assert visitor.shown == before
    box.path.unlink()
    visitor.vote(visitor.right)
    assert "Counted." in visitor.shown


def test_an_answer_that_fails_is_said_without_a_vote(visitor, service, box):
    service.broken = 1
    visitor.ask()
    assert "No vote: RTN W3A16 g64: Memory ran out." in visitor.shown
    assert "bar" not in visitor.shown
    assert "wait for both answers" in visitor.vote("A")
    assert visitor.part._stand(visitor.blind)[1] == gr.update(visible=True)


def test_a_process_that_cannot_be_started_is_said(visitor, service, monkeypatch):
    def refuse(request):
        raise UserError("The answering process can't be started: free memory.")
        yield

    monkeypatch.setattr(service, "ask", refuse)
    visitor.ask()
    assert "can&#x27;t be started" in visitor.shown
    assert visitor.part.questions.stage(visitor.blind.request) is None


def test_a_refused_question_is_a_sentence_and_leaves_the_one_before(visitor):
    visitor.ask()
    before = visitor.blind
    visitor.ask(" ")
    assert "Type a question" in visitor.problem
    visitor.ask(setting=("rtn", "9", None, "64"))
    assert "from 1 to 8" in visitor.problem
    visitor.picture = None
    visitor.ask()
    assert "Give a picture" in visitor.problem
    assert visitor.blind is before
    assert visitor.part._stand(before)[0] == gr.update(visible=True)


def test_a_picture_that_is_gone_is_a_sentence(visitor, tmp_path):
    visitor.picture = str(tmp_path / "gone.png")
    visitor.ask()
    assert "no longer there" in visitor.problem


def test_the_same_picture_in_another_file_is_the_same_question(visitor, tmp_path, box):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "teal").save(tmp_path / name)
        visitor.picture, visitor.blind = str(tmp_path / name), None
        visitor.ask()
        visitor.vote(visitor.right)
    assert "you have voted on this question before" in visitor.shown
    assert rate(box).votes == 1


def test_another_question_replaces_an_open_one(visitor, service):
    visitor.ask(until_finished=False)
    before, steps = visitor.blind, visitor.part._answer(visitor.blind)
    next(steps)
    visitor.ask("Where?", until_finished=False)
    assert list(steps) == [[gr.skip(), gr.skip()]]
    assert before.request.request_id in service.cancelled
    *_, (shown, blind) = visitor.part._answer(visitor.blind)
    assert blind.finished
    assert "Where?" in shown


def test_a_surprise_is_named_when_it_is_revealed_and_not_before(visitor):
    waiting = visitor.ask_surprise()
    label = visitor.blind.setting.label
    assert any("Loading the quantized model" in html for html in waiting)
    assert all(label not in html for html in [*waiting, visitor.shown])
    visitor.vote("unsure")
    assert label in visitor.shown


def test_a_surprise_is_a_setting_that_answers_soon():
    seen = [surprise() for _ in range(200)]
    assert len({setting.method for setting in seen}) > 5
    assert not any(METHODS[setting.method].train or METHODS[setting.method].fine_tunes for setting in seen)
    assert {setting.w_bits for setting in seen if setting.method == "rtn"} <= {2, 3, 4}


def test_what_answers_hold_is_no_html(visitor, service):
    service.words = "<b>{bits:g}</b>"
    visitor.ask("<i>What?</i>")
    visitor.vote("A")
    assert "<b>3" not in visitor.shown
    assert "<i>What" not in visitor.shown
