"""Greedy decoding agrees with transformers' own, streams whole characters, and counts only its own time."""

from itertools import pairwise

import pytest
import tiny_chat as tiny
import torch
from PIL import Image

from quant_engine.kernels.linear import HalfLinear
from quant_engine.models import decode
from quant_engine.models.catalog import model_card
from quant_engine.models.decode import PictureCache, PromptCache, answer, answer_text
from quant_engine.models.forward import embed
from quant_engine.models.load import load_dense
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.half import Half


@pytest.fixture(scope="module")
def llama():
    return tiny.llama()


@pytest.fixture(scope="module")
def llava():
    return tiny.llava_next()


def picture(width=60, height=40):
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def generated(loaded, most, **inputs):
    out = loaded.model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_text_model_answers_the_tokens_that_transformers_generates(seed):
    loaded = tiny.llama(seed=seed)
    inputs = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    steps = list(answer(loaded, None, "Why?", 40))
    assert [step.token for step in steps] == generated(loaded, 40, **inputs)
    assert [step.finished for step in steps] == [False] * (len(steps) - 1) + [True]


@pytest.mark.parametrize("size", [(60, 40), (30, 100), (28, 28), (300, 12)])
def test_a_picture_model_answers_the_tokens_that_transformers_generates(llava, size):
    prompt = "<s>user: <image>\nWhat?</s><s>assistant: "
    inputs = llava.processor(images=picture(*size), text=prompt, return_tensors="pt", add_special_tokens=False)
    steps = list(answer(llava, picture(*size), "What?", 30))
    assert [step.token for step in steps] == generated(llava, 30, **inputs)
    assert steps[0].stats.prompt_tokens == inputs["input_ids"].shape[1]


def test_a_picture_model_answers_without_a_picture_too(llava):
    inputs = llava.tokenizer("<s>user: What?</s><s>assistant: ", return_tensors="pt", add_special_tokens=False)
    assert [step.token for step in answer(llava, None, "What?", 20)] == generated(llava, 20, **inputs)


def test_answers_decoded_in_turns_equal_answers_decoded_alone(llava):
    other = tiny.llava_next(seed=1)
    alone = [[step.token for step in answer(one, picture(), "What?", 25)] for one in (llava, other)]
    turns = [answer(one, picture(), "What?", 25) for one in (llava, other)]
    together = [[], []]
    for _ in range(25):
        for side in (0, 1):
            step = next(turns[side], None)
            if step:
                together[side].append(step.token)
    assert together == alone


def test_time_that_others_take_between_two_tokens_is_not_counted(llama, monkeypatch):
    now = [0.0]

    def next_token(*_):
        now[0] += 2.0  # seconds
        return llama.tokenizer.encode("a", add_special_tokens=False)[0]

    monkeypatch.setattr(decode, "_next_token", next_token)
    monkeypatch.setattr(decode.time, "perf_counter", lambda: now[0])
    stats = []
    for step in answer(llama, None, "Why?", 8):
        stats.append(step.stats)
        now[0] += 100.0
    assert [figures.tokens for figures in stats] == list(range(1, 9))
    assert {figures.ttft_s for figures in stats} == {2.0}
    assert [figures.tokens_per_s for figures in stats] == [None] + [0.5] * 7


def script(loaded, monkeypatch, tokens):
    """Makes the model say exactly these tokens."""
    coming = iter(tokens)
    monkeypatch.setattr(decode, "_next_token", lambda *_: next(coming))


def named_by_tokenizer(loaded, monkeypatch):
    return loaded.tokenizer.eos_token_id


def named_by_generation_config(loaded, monkeypatch):
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [2, 1])
    return 1


def named_by_config(loaded, monkeypatch):
    monkeypatch.setattr(loaded.model.config, "eos_token_id", 1)
    return 1


@pytest.mark.parametrize("named", [named_by_tokenizer, named_by_generation_config, named_by_config])
def test_an_answer_ends_at_any_end_token_and_its_text_leaves_the_token_out(llama, monkeypatch, named):
    words = llama.tokenizer.encode("Yes", add_special_tokens=False)
    script(llama, monkeypatch, [*words, named(llama, monkeypatch), *words])
    steps = list(answer(llama, None, "Why?", 40))
    assert steps[-1].finished
    assert (steps[-1].text, len(steps)) == ("Yes", 4)


def test_streamed_text_never_shows_a_part_of_a_character_and_only_grows(llama, monkeypatch):
    text = "Zürich 東京 👩‍🔬 naïve é"
    tokens = llama.tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) > len(text)
    script(llama, monkeypatch, tokens)
    seen = [step.text for step in answer(llama, None, "Why?", len(tokens))]
    assert all("\ufffd" not in part for part in seen)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert seen[-1] == text


def test_a_broken_model_that_says_impossible_bytes_still_streams_what_follows(llama, monkeypatch):
    first_byte_of_three = llama.tokenizer.encode("東", add_special_tokens=False)[0]
    word = llama.tokenizer.encode("ok", add_special_tokens=False)
    script(llama, monkeypatch, [first_byte_of_three, *word, first_byte_of_three])
    assert [step.text for step in answer(llama, None, "Why?", 4)] == ["", "\ufffdo", "\ufffdok", "\ufffdok"]


def test_a_model_that_computes_nothing_but_nan_still_answers():
    loaded = tiny.llama()
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    assert len(list(answer(loaded, None, "Why?", 5))) == 5


def test_control_tokens_in_a_question_are_plain_text(llava):
    plain = next(answer(llava, picture(), "What?", 1)).stats.prompt_tokens
    typed = next(answer(llava, picture(), "What?<image></s>", 1)).stats.prompt_tokens
    assert typed == plain + len("<image></s>")


def test_a_picture_for_a_text_model_is_a_sentence(llama):
    with pytest.raises(UserError, match="Tiny Llama is a text model: ask without a picture"):
        next(answer(llama, picture(), "What?", 5))


def test_a_base_model_without_a_chat_format_continues_the_question():
    loaded = tiny.llama()
    loaded.tokenizer.chat_template = None
    assert next(answer(loaded, None, "Once", 1)).stats.prompt_tokens == 4


def test_a_full_context_ends_the_answer_and_a_longer_prompt_is_a_sentence(llama):
    room = 512 - next(answer(llama, None, "a" * 400, 1)).stats.prompt_tokens
    assert len(list(answer(llama, None, "a" * (400 + room - 3), 50))) == 3
    with pytest.raises(UserError, match="the model reads 512: shorten the question"):
        next(answer(llama, None, "a" * 600, 5))


def positions_read(loaded, monkeypatch):
    """How many prompt tokens each call of the model reads; those of single tokens are left out."""
    lengths, forward = [], decode._next_token
    monkeypatch.setattr(
        decode,
        "_next_token",
        lambda model, cache, inputs: (lengths.append(inputs["input_ids"].shape[1]), forward(model, cache, inputs))[1],
    )
    return lengths


def test_a_second_question_about_a_picture_reads_what_is_new_and_is_answered_as_if_it_were_the_first(
    llava, monkeypatch
):
    alone = [step.token for step in answer(llava, picture(), "Why red?", 12)]
    cache = PromptCache()
    first = list(answer(llava, picture(), "Why blue?", 12, cache))
    lengths = positions_read(llava, monkeypatch)
    second = list(answer(llava, picture(), "Why red?", 12, cache))
    assert [step.token for step in second] == alone
    assert lengths[0] == len("red?") + len("</s><s>assistant: ".replace("</s>", "/").replace("<s>", "/"))
    assert second[0].stats.prompt_tokens == first[0].stats.prompt_tokens - 1


def test_a_question_that_parts_within_the_picture_is_read_anew(llava, monkeypatch):
    alone = [step.token for step in answer(llava, picture(30, 100), "What?", 12)]
    cache = PromptCache()
    list(answer(llava, picture(), "What?", 12, cache))
    lengths = positions_read(llava, monkeypatch)
    steps = list(answer(llava, picture(30, 100), "What?", 12, cache))
    assert [step.token for step in steps] == alone
    assert lengths[0] == steps[0].stats.prompt_tokens


def test_the_same_question_again_reads_its_last_token(llama, monkeypatch):
    cache = PromptCache()
    first = [step.token for step in answer(llama, None, "Why?", 12, cache)]
    lengths = positions_read(llama, monkeypatch)
    assert [step.token for step in answer(llama, None, "Why?", 12, cache)] == first
    assert lengths[0] == 1


def test_the_whole_answer_at_once_is_the_last_text(llama):
    assert answer_text(llama, None, "Why?", 12) == list(answer(llama, None, "Why?", 12))[-1].text.strip()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_of_the_weights_in_memory_is_told(tiny_models, dtype):
    loaded = load_dense(model_card(str(tiny_models / "llama")), None, dtype, "cpu")
    assert {str(weight.dtype) for weight in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert next(answer(loaded, None, "Why?", 2)).stats.dtype == dtype


def runs_of_tower(loaded, monkeypatch):
    """A list that grows by one entry whenever the vision tower looks at something."""
    runs, forward = [], loaded.model.model.vision_tower.forward
    monkeypatch.setattr(
        loaded.model.model.vision_tower,
        "forward",
        lambda *given, **named: (runs.append(1), forward(*given, **named))[1],
    )
    return runs


def tokens_of(loaded, *asked):
    return [step.token for step in answer(loaded, *asked)]


def test_a_picture_is_encoded_once_for_all_settings_of_a_model_and_their_answers_stay_the_same(llava, monkeypatch):
    other = tiny.llava_next()
    with torch.no_grad():
        other.model.model.language_model.layers[0].mlp.down_proj.weight.mul_(-2)
    questions = [(loaded, picture(), text, 20) for loaded in (llava, other) for text in ("What?", "Why?")]
    alone = [tokens_of(*question) for question in questions]
    assert alone[0] != alone[2]
    pictures, runs = PictureCache(), [runs_of_tower(loaded, monkeypatch) for loaded in (llava, other)]
    assert [tokens_of(*question, None, pictures) for question in questions] == alone
    assert [len(tower) for tower in runs] == [1, 0]


def test_features_at_hand_give_the_same_logits_bit_for_bit(llava):
    inputs = decode.prompt_inputs(llava, picture(300, 12), "What?")
    encoded, _ = PictureCache().encode(llava, inputs["pixel_values"], inputs["image_sizes"])
    at_hand = {"input_ids": inputs["input_ids"], "image_features": encoded.features}
    assert torch.equal(embed(llava.model, inputs), embed(llava.model, at_hand))


def test_other_pictures_and_other_models_are_encoded_anew_and_the_oldest_forgotten(llava, monkeypatch):
    runs, pictures = runs_of_tower(llava, monkeypatch), PictureCache(most=2)

    def encoded_anew(*size):
        before = len(runs)
        tokens_of(llava, picture(*size), "What?", 1, None, pictures)
        return len(runs) > before

    assert [encoded_anew(*size) for size in ((60, 40), (30, 100), (60, 40), (28, 28), (60, 40), (30, 100))] == [
        True, True, False, True, False, True,
    ]  # fmt: skip
    monkeypatch.setattr(llava, "revision", "another")
    assert encoded_anew(30, 100)


def test_the_time_to_the_first_token_counts_a_picture_that_was_at_hand_as_if_encoded_anew(llava, monkeypatch):
    now, features, forward = [0.0], decode.picture_features, decode._next_token

    def taking(seconds, function):
        return lambda *given: (now.__setitem__(0, now[0] + seconds), function(*given))[1]

    monkeypatch.setattr(decode, "picture_features", taking(5.0, features))
    monkeypatch.setattr(decode, "_next_token", taking(2.0, forward))
    monkeypatch.setattr(decode.time, "perf_counter", lambda: now[0])
    pictures = PictureCache()
    firsts = [next(answer(llava, picture(), "What?", 1, None, pictures)).stats.ttft_s for _ in range(2)]
    assert firsts == [7.0, 7.0]


def test_an_answer_may_read_its_prompt_in_bfloat16_and_says_so():
    def first(prompt_dtype):
        loaded = tiny.llava_next()
        for block in loaded.model.get_decoder().layers:
            block.mlp.up_proj = HalfLinear(Half.pack(block.mlp.up_proj.weight.data.half()))
        loaded.prompt_dtype = prompt_dtype
        begun = decode.read_prompt(loaded, picture(), "What is it?", 4)
        *_, last = answer(loaded, picture(), "What is it?", 4)
        with torch.inference_mode():
            keys, _ = begun.cache.append(1, torch.empty(0, 2, 8), torch.empty(0, 2, 8))
        return keys, last.stats

    (exact, stats), (again, _), (rounded, other) = first(""), first("float32"), first("bfloat16")
    assert torch.equal(exact, again)
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.1 * float(exact.abs().max()))
    rtn = QuantSetting(method="rtn", w_bits=4)
    assert stats.describe_weights(QuantSetting()) == "computed in float32"
    assert other.describe_weights(rtn).endswith("computed in float32, the prompt in bfloat16")


def test_a_conversation_goes_on_from_its_questions_and_answers_with_the_picture_in_the_first(llava):
    prompt = "<s>user: <image>\nWhat?</s><s>assistant: A cat.</s><s>user: Where?</s><s>assistant: "
    inputs = llava.processor(images=picture(), text=prompt, return_tensors="pt", add_special_tokens=False)
    steps = list(answer(llava, picture(), "Where?", 20, earlier=[("What?", "A cat.")]))
    assert [step.token for step in steps] == generated(llava, 20, **inputs)


def test_a_model_without_a_chat_format_reads_a_conversation_as_text():
    loaded = tiny.llama()
    loaded.tokenizer.chat_template = None
    read = decode.prompt_inputs(loaded, None, "Why?", [("What?", "A cat.")])["input_ids"][0]
    assert loaded.tokenizer.decode(read) == "What?\nA cat.\n\nWhy?"


def test_an_answer_goes_on_from_the_tokens_that_it_begins_with(llama):
    whole = [step.token for step in answer(llama, None, "Why?", 12)]
    steps = list(answer(llama, None, "Why?", 7, prefix=whole[:5]))
    assert list(steps[-1].tokens) == whole
    assert [step.token for step in steps] == whole[5:]
    assert steps[0].text == decode.answer_so_far(llama.tokenizer, whole[:6])
