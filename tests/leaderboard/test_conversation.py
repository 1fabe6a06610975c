"""Conversations: what a follow-up question goes on from."""

from pathlib import Path

import pytest

from leaderboard.conversation import Conversation
from leaderboard.ui.answer_pane import first_sides, pane
from leaderboard.ui.ask_columns import read_settings
from quant_engine.answers.examples import read_examples
from quant_engine.answers.messages import AskRequest
from quant_engine.spec import QuantSetting, UserError

FP16, RTN = QuantSetting(), QuantSetting(method="rtn", w_bits=4)


def request(**more):
    asked = {"model": "demo", "image": Path("a.png"), "question": "What?", "sides": (FP16, RTN)}
    return AskRequest(**asked | more)


def test_a_follow_up_has_all_questions_and_answers_before_it():
    second = Conversation(request(question="Where?", earlier=Conversation(request(), ("A", "B")).turns), ("C", "D"))
    assert [(turn.question, turn.answers) for turn in second.turns] == [("What?", ("A", "B")), ("Where?", ("C", "D"))]
    assert request(earlier=second.turns).conversation(1) == (("What?", "B"), ("Where?", "D"))


@pytest.mark.parametrize(
    ("change", "what"),
    [({"model": "b"}, "model"), ({"image": Path("b.png")}, "picture"), ({"sides": (FP16,)}, "choice of settings")],
)
def test_a_follow_up_to_somebody_else_is_refused(change, what):
    conversation = Conversation(request(), ("A", "B"))
    conversation.check_follows(request(question="Where?"))
    with pytest.raises(UserError, match=f"Another {what}"):
        conversation.check_follows(request(**change))


def test_a_list_of_examples_that_cannot_be_read_is_no_list(tmp_path, caplog):
    (tmp_path / "examples.json").write_text('[{"image": 3}]')
    assert read_examples(tmp_path / "examples.json") == []
    assert "examples.json can't be read" in caplog.text
    assert len(read_examples()) == 6


def test_the_settings_of_a_link_are_those_that_can_be_understood_and_find_a_column():
    codes = "gptq-3-g64,fp16,nonsense,rtn-9,quip-4-g64,,rtn-4,awq-2-g32,rtn-3"
    assert [setting.code for setting in read_settings(codes)] == ["gptq-3-g64", "rtn-4", "awq-2-g32"]
    assert read_settings("") == []


def test_a_pane_shows_the_conversation_before_its_answer():
    earlier = Conversation(request(), ("<A>", "B")).turns
    first, second = first_sides(request(question="Where?", earlier=earlier))
    assert 'class="asked">What?</p><p class="before">&lt;A&gt;</p><p class="asked">Where?</p>' in pane(first)
    assert 'class="before">B</p>' in pane(second)
    assert "What?" not in pane(first_sides(request())[0])
