"""The forward pass for decoding gives the numbers of the model's own, for texts together and piece by piece."""

import pytest
import tiny_chat as tiny
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from quant_engine.models.decode import PromptCache, prompt_inputs
from quant_engine.models.forward import Piece, embed, is_supported, last_states
from quant_engine.models.key_values import KeyValues

SIZES = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5,
}  # fmt: skip
LLAMA3_ROTARY = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()


def mistral(**changes):
    return MistralForCausalLM(MistralConfig(**SIZES | {"sliding_window": None} | changes)).eval()


def qwen2(**changes):
    return Qwen2ForCausalLM(Qwen2Config(**SIZES | changes)).eval()


MODELS = {
    "llama": llama,
    "heads of another size": lambda: llama(head_dim=16),
    "a key head for each": lambda: llama(num_key_value_heads=4),
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "scaled rotary": lambda: llama(rope_parameters=LLAMA3_ROTARY),
    "mistral": mistral,
    "qwen2": qwen2,
}


@torch.no_grad()
def expected(model, ids):
    """Logits behind the last token, by the model's own forward of the whole text."""
    return model(input_ids=ids[None], use_cache=False).logits[0, -1]


@torch.no_grad()
def logits(model, pieces):
    return model.get_output_embeddings()(last_states(model.get_decoder(), pieces))


def embedded(model, ids):
    return embed(model, {"input_ids": ids[None]})


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_any_lengths_in_pieces_get_what_they_get_alone(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    assert is_supported(model.get_decoder())
    texts = [torch.randint(60, (length,)) for length in (41, 9, 1, 20)]
    caches, read = [KeyValues(model.get_decoder()) for _ in texts], [0] * len(texts)
    for counts in ((30, 0, 1, 5), (1, 7, 0, 1), (9, 1, 0, 13), (1, 1, 0, 1)):  # beginnings, questions, tokens, mixed
        rows = [row for row, count in enumerate(counts) if count]
        pieces = [Piece(embedded(model, texts[row][read[row] : read[row] + counts[row]]), caches[row]) for row in rows]
        found = logits(model, pieces)
        for row, values in zip(rows, found, strict=True):
            read[row] += counts[row]
            torch.testing.assert_close(values, expected(model, texts[row][: read[row]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(60, 40), (30, 100), (28, 28)])
def test_a_prompt_with_a_picture_gets_what_the_model_gives_it(size):
    loaded = tiny.llava_next()
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    inputs = prompt_inputs(loaded, picture, "What?")
    cache = KeyValues(loaded.model.get_decoder())
    found = logits(loaded.model, [Piece(embed(loaded.model, inputs), cache)])
    with torch.no_grad():
        whole = loaded.model(**inputs).logits[0, -1]
    torch.testing.assert_close(found[0], whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_its_roundings():
    torch.manual_seed(0)
    model = llama().to(torch.bfloat16)
    ids = torch.randint(60, (20,))
    found = logits(model, [Piece(embedded(model, ids), KeyValues(model.get_decoder()))])
    torch.testing.assert_close(found[0], expected(model, ids), rtol=0.05, atol=0.3)


def test_a_branch_goes_on_by_itself_and_a_cropped_text_anew():
    torch.manual_seed(0)
    model, ids = llama(), torch.randint(60, (24,))
    cache = KeyValues(model.get_decoder())
    logits(model, [Piece(embedded(model, ids[:10]), cache)])
    branch = cache.branch(4)
    logits(model, [Piece(embedded(model, ids[10:20]), cache)])
    other = logits(model, [Piece(embedded(model, ids[20:24]), branch)])
    torch.testing.assert_close(other[0], expected(model, torch.cat([ids[:10], ids[20:]])), rtol=1e-4, atol=1e-4)
    cache.crop(-10)
    again = logits(model, [Piece(embedded(model, ids[20:24]), cache)])
    torch.testing.assert_close(again, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        lambda: mistral(sliding_window=8),
        lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ],
)
def test_other_decoders_are_left_to_themselves(model):
    decoder = model().get_decoder()
    assert not is_supported(decoder)
    cache, _ = PromptCache().start(model(), torch.tensor([[1]]))
    assert not isinstance(cache, KeyValues)
