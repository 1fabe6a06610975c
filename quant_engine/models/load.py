"""Load LLaMA-type and LLaVA-NeXT models, whole or decoder block by decoder block.

A model starts as a skeleton: transformers' own modules with no weights in the decoder blocks. Blocks are filled from
the files one at a time, dense or quantized, so that a model larger than memory can be quantized.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

from quant_engine.models.catalog import ModelCard
from quant_engine.models.files import TensorFiles, folder_of
from quant_engine.spec import UserError

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linears of a decoder block that are quantized. Embedding, output head, norms and the vision side are not."""

SEQUENTIAL_SETS = (LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:])
"""The linears of a decoder block in the order in which it uses them; those of a set share their input."""

_CLASSES = {"llama": LlamaForCausalLM, "llava_next": LlavaNextForConditionalGeneration}

# transformers warns of texts longer than the context, which perplexity cuts into windows anyway.
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


@dataclass
class Loaded:
    """A model ready to answer, dense or quantized. `stored_bits` is per weight of the linears in decoder blocks."""

    card: ModelCard
    model: nn.Module
    tokenizer: Any
    processor: Any | None
    stored_bits: float
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """The type of the weights that are not quantized, as they are held in memory ("float32" …)."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything the model holds in memory, tied weights counted once."""
        storages = [tensor.untyped_storage() for tensor in (*self.model.parameters(), *self.model.buffers())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Skeleton:
    """A model whose weights are filled in piece by piece from its files."""

    def __init__(self, card: ModelCard, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.card, self.folder, self.dtype, self.device = card, folder, dtype, device
        self._files = TensorFiles(folder)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"The configuration in {folder} can't be read: {str(error).splitlines()[0]}") from None
        config.dtype = dtype
        # Buffers (rotary frequencies, positions) are computed, not stored: they are real from the start.
        with init_empty_weights(include_buffers=False):
            self.model = _CLASSES[card.family](config)
        self.model.requires_grad_(False).eval()
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device), persistent=False)
        self._file_name = self._file_names()
        self.blocks: nn.ModuleList = self.decoder.layers

    @property
    def decoder(self) -> nn.Module:
        """The text decoder: embed_tokens, layers, norm, rotary_emb."""
        return self.model.model.language_model if self.card.pictures else self.model.model

    def _file_names(self) -> dict[str, str]:
        """The name in the files of each parameter; older releases of transformers named some otherwise."""
        renamings = get_model_conversion_mapping(self.model)
        parameters = self.model.state_dict()
        names = {}
        for file_name in self._files.names():
            name, _ = rename_source_key(file_name, renamings, [], self.model.base_model_prefix, parameters)
            if name in parameters:
                names[name] = file_name
        return names

    def block_prefix(self, index: int) -> str:
        return f"{'model.language_model' if self.card.pictures else 'model'}.layers.{index}."

    def _fill(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self._file_name]
        if missing:
            raise UserError(f"The weights in {self.folder} lack {missing[0]}; fetch the model again.")
        tensors = self._files.read([self._file_name[name] for name in names])
        for name in names:
            path, _, leaf = name.rpartition(".")
            value = tensors[self._file_name[name]].to(self.device, self.dtype)
            setattr(self.model.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))

    def fill_outside_blocks(self) -> None:
        """Fill embedding, output head, norm, and the vision side of a multimodal model."""
        blocks = self.block_prefix(0).removesuffix("0.")
        names = [name for name, _ in self.model.named_parameters() if not name.startswith(blocks)]
        tied = self.model.config.get_text_config().tie_word_embeddings or self.model.config.tie_word_embeddings
        self._fill([name for name in names if not (tied and name == "lm_head.weight")])
        if tied:
            self.model.lm_head.weight = self.decoder.embed_tokens.weight

    def fill_block(self, index: int) -> nn.Module:
        """Fill block `index` with its dense weights, in the skeleton's type and on its device, and return it."""
        prefix = self.block_prefix(index)
        self._fill([prefix + name for name, _ in self.blocks[index].named_parameters()])
        return self.blocks[index]

    def release_block(self, index: int) -> None:
        """Drop the block's weights."""
        self.blocks[index].to_empty(device="meta")

    def finish(self, stored_bits: float) -> Loaded:
        """The model with tokenizer and processor. All weights must be filled. Raises UserError if files are missing."""
        empty = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if empty:
            raise UserError(f"The weights in {self.folder} lack {empty[0]}; fetch the model again.")
        tokenizer = load_tokenizer(self.folder)
        processor = load_processor(self.folder, tokenizer) if self.card.pictures else None
        return Loaded(self.card, self.model, tokenizer, processor, stored_bits, self.folder)


def load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer in {folder} can't be read: {str(error).splitlines()[0]}") from None


def load_processor(folder: Path, tokenizer: Any) -> LlavaNextProcessor:
    """What makes a LLaVA-NeXT model's inputs of pictures and texts."""
    return LlavaNextProcessor.from_pretrained(
        folder,
        image_processor=LlavaNextImageProcessorPil.from_pretrained(folder, local_files_only=True),
        tokenizer=tokenizer,
        local_files_only=True,
    )


def load_dense(card: ModelCard, revision: str | None, dtype: str, device: str) -> Loaded:
    """The unquantized model, computing in `dtype` ("float32" …) on `device` ("cpu", "cuda").

    Raises UserError if its files can't be had or are damaged.
    """
    skeleton = Skeleton(card, folder_of(card, revision), getattr(torch, dtype), device)
    skeleton.fill_outside_blocks()
    for index in range(len(skeleton.blocks)):
        skeleton.fill_block(index)
    return skeleton.finish(stored_bits=16.0)
