"""Answers that are decoded together are, token for token, those that each question gets by itself."""

from functools import partial

import pytest
import tiny_chat as tiny
import torch
from PIL import Image
from transformers import MistralConfig, MistralForCausalLM

from quant_engine.kernels.linear import QuantLinear
from quant_engine.models import batch
from quant_engine.models.batch import Asked, answers
from quant_engine.models.decode import answer
from quant_engine.progress import Stopped
from quant_engine.spec import UserError
from quant_engine.weights.int_activations import IntActivations, quantize_rows

QUESTIONS = ("What?", "Why is it so, and not otherwise?", "a", "How many are there? Say it in a word.")
SIZES = ((60, 40), (30, 100), (28, 28), (300, 12), (41, 41))


def picture(size, angle=0):
    return Image.linear_gradient("L").rotate(angle).resize(size).convert("RGB")


def asked(groups, most=24):
    """Of (size, questions) of each picture."""
    result, count = [], 0
    for number, (size, questions) in enumerate(groups):
        indices = list(range(count, count + len(questions)))
        drawn = partial(picture, size, 90 * number)
        result.append(Asked(drawn, questions, indices, [most] * len(questions)))
        count += len(questions)
    return result


def mixed(per_picture, most=24):
    groups = [(size, [f"{q} {n}" for q in QUESTIONS[: per_picture(n)]]) for n, size in enumerate(SIZES)]
    return asked(groups, most)


def without(group, skipped):
    """A picture without its questions before this index."""
    indices, questions, most = zip(*(each for each in group.each if each[0] >= skipped), strict=True)
    return Asked(group.picture, questions, indices, most)


def alone(loaded, groups):
    return {
        index: [step.token for step in answer(loaded, group.picture(), question, most)]
        for group in groups
        for index, question, most in group.each
    }


def together(loaded, groups):
    return {answered.index: answered.tokens for answered in answers(loaded, groups)}


@pytest.fixture
def redone(monkeypatch):
    """The answers that were decoded anew by themselves."""
    rows, real = [], batch._answer_alone
    monkeypatch.setattr(batch, "_answer_alone", lambda loaded, row, *rest: rows.append(row) or real(loaded, row, *rest))
    return rows


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_are_those_of_each_question_alone(rows, seed, monkeypatch, redone):
    loaded = tiny.llava_next(seed)
    monkeypatch.setattr(batch, "ROWS", rows)
    monkeypatch.setattr(batch, "PICTURE_TOKENS", 20 * rows)
    groups = mixed(lambda number: 1 + number % 4)
    expected = alone(loaded, groups)
    assert together(loaded, groups) == expected
    assert len(redone) < len(expected) / 2
    assert len({tuple(tokens) for tokens in expected.values()}) > len(expected) / 2


def test_early_ends_make_room_for_others(monkeypatch, redone):
    loaded = tiny.llava_next()
    groups = mixed(lambda number: 3)
    tokens = [token for answer_tokens in alone(loaded, groups).values() for token in answer_tokens]
    ends = sorted(set(tokens), key=tokens.count)[-4:]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(batch, "ROWS", 4)
    expected = alone(loaded, groups)
    assert len({len(tokens) for tokens in expected.values()}) > 3
    assert together(loaded, groups) == expected


def test_questions_about_one_picture_may_have_answers_of_different_lengths():
    loaded = tiny.llava_next()
    (group,) = asked([((60, 40), QUESTIONS)])
    lengths = [3, 9, 1, 20]
    groups = [Asked(group.picture, group.questions, group.indices, lengths)]
    expected = alone(loaded, groups)
    assert [len(tokens) for tokens in expected.values()] == lengths
    assert together(loaded, groups) == expected


def test_an_answer_comes_as_its_text_with_what_the_head_got_for_it():
    loaded = tiny.llava_next()
    for answered in answers(loaded, mixed(lambda number: 2, 6)):
        assert loaded.model.lm_head(answered.states).argmax(-1).tolist() == answered.tokens
    (group,) = asked([((60, 40), ["What?"])], 12)
    (answered,) = answers(loaded, [group])
    *_, last = answer(loaded, group.picture(), "What?", 12)
    assert answered.text == last.text.strip()


def test_a_full_context_ends_an_answer_and_a_longer_prompt_is_a_sentence():
    loaded = tiny.llava_next()
    prompt_tokens = next(answer(loaded, picture((60, 40)), "", 1)).stats.prompt_tokens
    groups = asked([((60, 40), ["a" * (512 - prompt_tokens - room) for room in (3, 9)]), ((28, 28), ["What?"])], 20)
    expected = alone(loaded, groups)
    assert [len(tokens) for tokens in expected.values()] == [3, 9, 20]
    assert together(loaded, groups) == expected
    with pytest.raises(UserError, match="the model reads 512: shorten the question"):
        together(loaded, asked([((60, 40), ["a" * 600])]))


def test_where_two_tokens_are_as_likely_answers_are_decoded_alone(redone):
    loaded = tiny.llava_next()
    with torch.no_grad():
        loaded.model.lm_head.weight[100:200] = loaded.model.lm_head.weight[:100]
    groups = mixed(lambda number: 2, 12)
    assert together(loaded, groups) == alone(loaded, groups)
    assert len(redone) > 5


def test_a_model_of_nothing_but_nan_answers_as_alone():
    loaded = tiny.llava_next()
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    groups = mixed(lambda number: 1, 4)
    assert together(loaded, groups) == alone(loaded, groups)


def test_what_was_asked_before_changes_nothing():
    loaded = tiny.llava_next()
    groups = mixed(lambda number: 3, 12)
    expected = together(loaded, groups)
    for skipped in (1, 4, 7):
        rest = [without(group, skipped) for group in groups if group.indices[-1] >= skipped]
        assert together(loaded, rest) == {index: expected[index] for index in expected if index >= skipped}


def test_work_can_stop_before_any_token_and_has_given_what_was_finished(monkeypatch):
    loaded, calls, finished = tiny.llava_next(), [], []
    monkeypatch.setattr(batch, "ROWS", 2)

    def check_stop():
        calls.append(None)
        if len(calls) > 30:
            raise Stopped

    running = answers(loaded, mixed(lambda number: 2, 12), check_stop)
    with pytest.raises(Stopped):
        finished.extend(answered.index for answered in running)
    assert 0 < len(finished) < 10


def test_answers_that_rounding_could_change_share_no_batch_and_do_not_depend_on_what_was_asked_before(monkeypatch):
    loaded = tiny.llava_next()
    loaded.model.to(torch.bfloat16)
    assert not batch.is_reproducible(loaded)
    widths, step = set(), batch._step
    monkeypatch.setattr(batch, "_step", lambda loaded, rows, ends: widths.add(len(rows)) or step(loaded, rows, ends))
    groups = mixed(lambda number: 2, 6)[:3]
    whole = together(loaded, groups)
    assert widths == {1}
    (first, *rest) = groups
    left = [without(first, 1), *rest]
    assert together(loaded, left) == {index: tokens for index, tokens in whole.items() if index}


def test_activations_that_are_rounded_to_integers_share_no_batch():
    loaded = tiny.llava_next()
    assert batch.is_reproducible(loaded)
    mlp = loaded.model.get_decoder().layers[1].mlp
    codes, scales = quantize_rows(mlp.up_proj.weight, 8)
    mlp.up_proj = QuantLinear(IntActivations.pack(codes, scales, 8, 8, False))
    assert not batch.is_reproducible(loaded)


def test_a_decoder_of_another_type_answers_too(monkeypatch):
    loaded = tiny.llava_next()
    text = loaded.model.config.text_config
    config = MistralConfig(**{**tiny_sizes(text), "sliding_window": 64})
    torch.manual_seed(0)
    mistral = MistralForCausalLM(config).eval()
    loaded.model.model.language_model = mistral.model
    groups = mixed(lambda number: 1, 6)
    assert together(loaded, groups) == alone(loaded, groups)


def tiny_sizes(config):
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "pad_token_id",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}


def test_where_texts_take_much_memory_fewer_are_decoded_together(monkeypatch):
    loaded = tiny.llava_next()
    widths, step = [], batch._step
    monkeypatch.setattr(batch, "_step", lambda loaded, rows, ends: widths.append(len(rows)) or step(loaded, rows, ends))
    token_bytes = 2 * 2 * 2 * 8 * 4  # blocks, keys and values, heads, head_dim, float32
    monkeypatch.setitem(batch.CACHE_BYTES, "cpu", 3 * 120 * token_bytes)
    groups = mixed(lambda number: 2, 8)
    assert together(loaded, groups) == alone(loaded, groups)
    assert 1 < max(widths) < 10
