"""Where answers part, in words."""

import pytest

from quant_engine.answers.parting import parting, short_answer
from quant_engine.results import TokenShift


def shifts(*agreements):
    return [
        TokenShift(text="a", p=0.9, q=0.5, divergence=0.1 * number, choice="b", choice_q=0.5, agrees=agrees)
        for number, agrees in enumerate(agreements, 1)
    ]


@pytest.mark.parametrize(
    ("reference", "answer", "agreements", "fork", "words"),
    [
        ("It is 3.", "It is 3. ", (True, True), None, "Same answer; mean KL 0.15 nats"),
        ("It is 3.", "it is 3! And red.", (True, False), 1, "Same short answer; mean KL 0.15 nats"),
        ("It is 3.", "It is 4.", (True, True, False), 2, "Parted at token 3; mean KL 0.2 nats"),
        ("It is 3.", "It is 4.", (True, True), None, "Parted; mean KL 0.15 nats"),
        ("", "?", (False,), 0, "Parted at token 1; mean KL 0.1 nats"),
    ],
)
def test_how_answers_part_is_said_in_a_line(reference, answer, agreements, fork, words):
    found = parting(reference, answer, shifts(*agreements))
    assert (found.fork, found.words) == (fork, words)


def test_a_short_answer_is_the_first_sentence_without_case_punctuation_and_articles():
    assert short_answer("The total is 101.00. It is due.") == "total is 101.00"
    assert short_answer('"A Cat,"\nI think') == "cat"
    assert short_answer(" . ") == ""
