"""The demo LLaVA-NeXT: its architecture, and how it is composed from SmolLM2 and our own trained parts.

A picture is squeezed whole into one tile of 288 x 288 pixels and cut into one or two such tiles at full size; a tile
has 256 patches of 18 pixels. A square picture becomes 256 + 16 x 17 = 528 tokens, a wide one of two tiles 784
and an upright one 800.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerBase,
)

from quant_engine import disk
from quant_engine.demo.base import quiet

TILE, PATCH = 288, 18
PINPOINTS = [[288, 288], [288, 576], [576, 288]]  # height, width
LAYERS = 10
READING_LAYERS = 8  # of the tower: they name what a patch holds, the others turn that into what the projector needs
FEATURE_LAYER = -1
RANK = 32
ADAPTED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
TOWER_FILE, PROJECTOR_FILE, ADAPTER_FILE = "vision_tower.safetensors", "projector.safetensors", "adapter.safetensors"

IMAGE_TOKEN = "<image>"
SPARE_TOKEN = "<reponame>"  # an unused token of SmolLM2, renamed: the vocabulary, and so each weight, keeps its size
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOTE = (
    "A small LLaVA-NeXT: the vision tower, the projector and a low-rank adapter were trained by this project on "
    "pictures that it draws (shapes, charts, forms, diagrams); its model card is assets/demo/README.md. The language "
    "model is SmolLM2-135M-Instruct with the adapter merged in; unless it was taken from the Hub its weights come from "
    "a 4-bit file (GGUF Q4_1), so FP16 here means that file's values without further loss."
)


def vision_config() -> CLIPVisionConfig:
    """A small CLIP-type tower: 8.2 million weights."""
    return CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        hidden_act="gelu",
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=256,
    )


def blank(language_folder: Path) -> LlavaNextForConditionalGeneration:
    """The model with SmolLM2's weights and untrained vision side, in float32."""
    language = LlamaForCausalLM.from_pretrained(language_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(language_folder)
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(SPARE_TOKEN),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaNextForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = language.generation_config
    return model


def write_processor(language_folder: Path, folder: Path) -> LlavaNextProcessor:
    """The processor, written into `folder` too: tokenizer with an image token, chat template, picture processor."""
    tokenizer = _with_image_token(AutoTokenizer.from_pretrained(language_folder), folder)
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return processor


def _with_image_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with the spare token renamed to the image token, through its files."""
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_renamed(content), ensure_ascii=False), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _renamed(value: object) -> object:
    if isinstance(value, dict):
        return {_renamed(key): _renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return IMAGE_TOKEN if value == SPARE_TOKEN else value


@quiet()
def compose(language_folder: Path, parts: Path, folder: Path) -> None:
    """Write the whole model into `folder` (float16), from SmolLM2 and the parts that ship."""
    model = blank(language_folder)
    model.model.vision_tower.load_state_dict(_float(load_file(parts / TOWER_FILE)))
    projector = _float(load_file(parts / PROJECTOR_FILE))
    with torch.no_grad():
        model.model.image_newline.copy_(projector.pop("image_newline"))
        model.model.multi_modal_projector.load_state_dict(projector)
        merge(model.model.language_model, _float(load_file(parts / ADAPTER_FILE)))
    write_processor(language_folder, folder)
    model.to(torch.float16).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read


@torch.no_grad()
def merge(decoder: torch.nn.Module, adapter: dict[str, Tensor]) -> None:
    """Add each linear's B A to its weight. Raises KeyError if the adapter lacks one of them."""
    for index in range(len(decoder.layers)):
        for name in ADAPTED:
            key = f"layers.{index}.{name}"
            decoder.get_submodule(key).weight += adapter[f"{key}.B"] @ adapter[f"{key}.A"]


def write_parts(
    parts: Path, tower: dict[str, Tensor], projector: dict[str, Tensor], adapter: dict[str, Tensor]
) -> None:
    """Write the three parts that ship, in float16. `projector` holds image_newline beside the two linears."""
    for name, tensors in ((TOWER_FILE, tower), (PROJECTOR_FILE, projector), (ADAPTER_FILE, adapter)):
        half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in tensors.items()}
        with disk.replacing(parts / name) as aside:
            save_file(half, aside, metadata={"format": "pt"})


def _float(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() for key, value in tensors.items()}
