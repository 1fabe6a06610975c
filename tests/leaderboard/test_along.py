"""FP16's answer as a quantized model sees it, as HTML."""

import re

from leaderboard.ui.along import along_html, describe
from leaderboard.ui.answer_pane import Side, pane
from quant_engine.answers.messages import AnswerEvent
from quant_engine.answers.parting import parting
from quant_engine.results import TokenShift
from quant_engine.spec import QuantSetting

SHIFTS = (
    TokenShift(text="<b>", p=0.9, q=0.8, divergence=0.1, choice="<b>", choice_q=0.8, agrees=True),
    TokenShift(text=" is", p=0.971, q=0.352, divergence=0.42, choice=" was", choice_q=0.51, agrees=False),
    TokenShift(text=None, p=0.3, q=0.6, divergence=0.2, choice=None, choice_q=0.6, agrees=True),
)


def test_a_token_says_its_probabilities_and_the_first_choice():
    assert describe(SHIFTS[0]) == "“<b>”: 90.0% → 80.0%; KL 0.1 nats; its first choice too"
    assert describe(SHIFTS[1]) == "“is”: 97.1% → 35.2%; KL 0.42 nats; its own first choice is “was” (51.0%)"
    assert describe(SHIFTS[2]).startswith("the end: 30.0% → 60.0%")


def test_tokens_are_shaded_by_the_drop_in_probability_and_the_first_fork_is_marked():
    found = along_html(parting("<b> is", "<b> was", SHIFTS), SHIFTS, can_go_on=True)
    assert re.findall(r"--s:([\d.]+)", found) == ["0.100", "0.619", "0.000"]
    assert re.findall(r"<span class=\"([^\"]*)\"", found) == ["token", "token fork", "token end"]
    assert re.findall(r'tabindex="(-?\d)"', found) == ["0", "-1", "-1"]
    assert "<b>" not in found
    assert "Parted at token 2; mean KL 0.24 nats" in found
    assert "data-fork" in found
    assert "data-fork" not in along_html(parting("a", "a", SHIFTS[:1]), SHIFTS[:1], can_go_on=True)


def test_a_pane_shows_what_a_side_finds_and_how_it_goes_on():
    side = Side(QuantSetting(method="rtn", w_bits=3)).after(
        AnswerEvent(request_id="a", side=1, kind="done", text="<b> was", tokens=(1, 2))
    )
    reading = AnswerEvent(request_id="a", side=1, kind="status", message="Reading FP16's answer")
    assert "Reading FP16&#x27;s answer" in pane(side.after_reading(reading, "<b> is"))
    found = pane(side.after_reading(AnswerEvent(request_id="a", side=1, kind="done", shifts=SHIFTS), "<b> is"))
    assert "Parted at token 2" in found
