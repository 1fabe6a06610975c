"""Models of a few thousand random weights, a tokenizer with one token per byte, and a LLaVA-NeXT processor for both."""

from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from quant_engine.models.load import Loaded

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
TEXT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
PICTURE_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tokenizer():
    """Every byte is one token, so most characters outside ASCII take several."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = TEXT_TEMPLATE
    return made


def _language(words, layers=2):
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.5,  # wide, so that the random model's answers are varied
    )


def llama(layers=2, seed=0):
    torch.manual_seed(seed)
    words = tokenizer()
    return _loaded(LlamaForCausalLM(_language(words, layers)), words, None, "Tiny Llama")


def llava_next(seed=0):
    torch.manual_seed(seed)
    words = tokenizer()
    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        text_config=_language(words),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
            projection_dim=32,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=4,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
        ),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=PICTURE_TEMPLATE,
    )
    return _loaded(LlavaNextForConditionalGeneration(config), words, processor, "Tiny LLaVA-NeXT")


def _loaded(model, words, processor, title):
    return Loaded(
        model=model.eval(),
        tokenizer=words,
        processor=processor,
        card=SimpleNamespace(id=title, title=title, pictures=processor is not None),
        folder=Path("tiny"),
        picture_problem=f"{title} is a text model: ask without a picture, or choose another model.",
        stored_bits=32.0,
    )
