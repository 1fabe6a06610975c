"""Random models in the shapes of LLaMA3-8B and LLaVA-Next-8B, made on the device, and tiny ones of the same kind.

What a product or an answer takes hangs on shapes and not on values, so no model is fetched. Weights are small enough
that nothing overflows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.initialization import no_init_weights

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from models import tiny_chat

from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.shapes import Shape, shapes
from quant_engine.weights.form import StoredWeight

SPREAD = 0.02
TINY = Shape(hidden=32, intermediate=64, layers=2, key_width=16, vocabulary=320)
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GRID = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""How many tiles high and wide a picture of LLaVA-NeXT may be."""

MakeWeight = Callable[[int, int], StoredWeight]
"""Makes a stored weight of so many rows and columns."""


def shape(dry: bool) -> Shape:
    """LLaMA3-8B's, or a tiny one."""
    return TINY if dry else shapes()["LLaMA3-8B"]


def text_config(of: Shape) -> LlamaConfig:
    """Heads of 128 numbers, in a tiny model of 8."""
    head = 128 if of.hidden > 128 else 8
    return LlamaConfig(
        vocab_size=of.vocabulary, hidden_size=of.hidden, intermediate_size=of.intermediate, num_hidden_layers=of.layers,
        num_attention_heads=of.hidden // head, num_key_value_heads=of.key_width // head, head_dim=head,
        max_position_embeddings=8192, rope_theta=500000.0, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip


def random_parameter(name: str, size: torch.Size, device: str, dtype: torch.dtype) -> nn.Parameter:
    """Ones for norms, else small random numbers."""
    if len(size) == 1 and "norm" in name and name.endswith("weight"):
        return nn.Parameter(torch.ones(size, dtype=dtype, device=device), requires_grad=False)
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device).normal_(0, SPREAD), requires_grad=False)


def empty(config: LlamaConfig | LlavaNextConfig) -> nn.Module:
    """A model without weights."""
    kind = LlamaForCausalLM if isinstance(config, LlamaConfig) else LlavaNextForConditionalGeneration
    with init_empty_weights(include_buffers=False), no_init_weights():
        return kind(config).requires_grad_(False).eval()


def language_model(of: Shape, device: str, dtype: torch.dtype, make: MakeWeight | None = None) -> nn.Module:
    """A random LLaMA on a device; with `make`, the linears of its blocks keep such weights and are never dense."""
    model = empty(text_config(of))
    for name, buffer in list(model.named_buffers()):
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path).register_buffer(leaf, buffer.to(device), persistent=False)
    if make:
        for block in model.model.layers:
            for path in LINEARS:
                dense, (parent, _, leaf) = block.get_submodule(path), path.rpartition(".")
                with torch.device(device):
                    weight = make(dense.out_features, dense.in_features)
                setattr(block.get_submodule(parent), leaf, QuantLinear(weight))
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, random_parameter(name, parameter.shape, device, dtype))
    return model


def filled(weight: StoredWeight, **given: torch.Tensor) -> StoredWeight:
    """`weight` with random codes and small scales in its buffers, but for those that are `given`."""
    bits = getattr(weight, "bits", 1)
    for name, buffer in weight.named_buffers():
        if name in given:
            buffer.copy_(given[name])
        elif buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1).mul_(SPREAD / 2 ** (bits - 1))
        else:
            least, most = torch.iinfo(buffer.dtype).min, torch.iinfo(buffer.dtype).max
            buffer.random_(least, most)
    return weight


def write_folder(folder: Path, of: Shape, device: str, *, pictures: bool = False) -> Path:
    """A folder with such a model in bfloat16, a file for each block, and a tokenizer of bytes; with `pictures`, a
    LLaVA-NeXT around it and its processor."""
    folder.mkdir(parents=True, exist_ok=True)
    config, words = text_config(of), tiny_chat.tokenizer()
    if pictures:
        config, processor = _picture_config(config), _processor(words, of)
        processor.save_pretrained(folder)
    else:
        words.save_pretrained(folder)
    config.architectures = ["LlavaNextForConditionalGeneration" if pictures else "LlamaForCausalLM"]
    config.save_pretrained(folder)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in empty(config).state_dict().items():
        block = name.partition(".layers.")[2].partition(".")[0] if "vision" not in name else ""
        files.setdefault(f"model-{int(block):03}.safetensors" if block else "model-rest.safetensors", {})[name] = (
            parameter.shape
        )
    for file, sizes in files.items():
        tensors = {name: random_parameter(name, size, device, torch.bfloat16).cpu() for name, size in sizes.items()}
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, sizes in files.items() for name in sizes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _sides(of: Shape) -> tuple[int, list[list[int]]]:
    """The side of a tile in pixels, and the sizes of pictures that are cut into tiles."""
    tile = 336 if of.hidden > 128 else 28
    return tile, [[height * tile, width * tile] for height, width in GRID]


def _picture_config(text: LlamaConfig) -> LlavaNextConfig:
    large = text.hidden_size > 128
    tile = 336 if large else 28
    vision = CLIPVisionConfig(
        **(VISION if large else TINY_VISION),
        image_size=tile,
        patch_size=14,
        projection_dim=768 if large else 32,
    )
    return LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tiny_chat.SPECIAL.index("<image>"),
        image_grid_pinpoints=[[height * tile, width * tile] for height, width in GRID],
        image_seq_length=(tile // 14) ** 2,
        tie_word_embeddings=False,
    )


def _processor(words: object, of: Shape) -> LlavaNextProcessor:
    tile, grid = _sides(of)
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=grid
        ),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=tiny_chat.PICTURE_TEMPLATE,
    )
