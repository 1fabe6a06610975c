"""Answers that join and leave while others go on: token for token what each is alone."""

import pytest
import tiny_chat
import torch
from PIL import Image

from quant_engine.models import open_answers
from quant_engine.models.decode import PictureCache, answer
from quant_engine.models.open_answers import OpenAnswers

QUESTIONS = ["Why?", "What is there, and where?", "How many?", "Which colour is it?", "Who?"]
MOST = 24


def alone(loaded, image=None):
    return [[step.token for step in answer(loaded, image, question, MOST)] for question in QUESTIONS]


def join_one_by_one(loaded, image=None):
    """The tokens of all questions when one joins after every third step."""
    batch, tokens, joined = OpenAnswers(loaded, PictureCache()), {}, {}
    for question in QUESTIONS:
        joined[question] = batch.join(image, question, MOST)
        tokens[question] = [joined[question].last.token]
        for _ in range(3):
            advance(batch, joined, tokens)
    while batch.answers:
        advance(batch, joined, tokens)
    return [tokens[question] for question in QUESTIONS]


def advance(batch, joined, tokens):
    questions = {row: question for question, row in joined.items()}
    for group in batch.groups():
        for row in batch.advance(group):
            tokens[questions[row]].append(row.last.token)


@pytest.mark.parametrize("lead", [1e-4, 0.02, 2.0])
def test_answers_that_join_at_any_step_are_those_of_one_by_one_however_seldom_a_token_leads(monkeypatch, lead):
    monkeypatch.setattr(open_answers, "LEAD", lead)
    loaded = tiny_chat.llama(seed=1)
    assert join_one_by_one(loaded) == alone(loaded)


def test_questions_about_a_picture_are_answered_together_too():
    loaded, image = tiny_chat.llava_next(), Image.new("RGB", (60, 40), "red")
    assert join_one_by_one(loaded, image) == alone(loaded, image)


def test_in_16_bits_and_where_the_forward_pass_is_the_models_own_each_answer_is_decoded_by_itself(monkeypatch):
    loaded = tiny_chat.llama(seed=1)
    loaded.model.to(torch.bfloat16)
    assert join_one_by_one(loaded) == alone(loaded)
    monkeypatch.setattr(open_answers, "is_supported", lambda decoder: False)
    assert join_one_by_one(loaded) == alone(loaded)


def test_who_leaves_takes_nobody_along():
    loaded = tiny_chat.llama(seed=1)
    batch = OpenAnswers(loaded, PictureCache())
    first, second = (batch.join(None, question, MOST) for question in QUESTIONS[:2])
    batch.advance(batch.groups()[0])
    batch.leave(first)
    while batch.answers:
        batch.advance(batch.groups()[0])
    assert [*second.tokens] == alone(loaded)[1]


def test_seconds_are_those_of_the_steps_that_an_answer_takes_part_in():
    batch = OpenAnswers(tiny_chat.llama(seed=1), PictureCache())
    first = batch.join(None, QUESTIONS[0], MOST)
    for _ in range(3):
        batch.advance(batch.groups()[0])
    second = batch.join(None, QUESTIONS[1], MOST)
    batch.advance(batch.groups()[0])
    assert second.decoding < first.decoding
    assert first.last.stats.tokens == 5
    assert second.last.stats.tokens == 2
