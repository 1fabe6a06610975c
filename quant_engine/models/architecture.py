"""The model that a folder's config.json describes, without weights: what its files are held against and filled into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, LlamaForCausalLM, LlavaNextForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quant_engine.failures import memory_ran_out
from quant_engine.models.catalog import ModelCard
from quant_engine.models.check import StoredTensor, read_json, reason
from quant_engine.spec import MOST_QUOTED, UserError, quoted

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

_SIZES = ("hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads", "num_key_value_heads")
_SIZES += ("image_size", "patch_size")
"""Fields of a config.json that are dimensions of tensors, or no larger than these."""
_CLIP = {"image_size": 224, "patch_size": 32}
"""What a vision tower has that doesn't say it."""
_FAR = 16

_CLASSES = {"llama": LlamaForCausalLM, "llava_next": LlavaNextForConditionalGeneration}
_WRONG_TYPE = re.compile(r"Field '(?P<field>\w+)' expected (?P<type>\w+), got \w+ \(value: (?P<value>.*?)\)")


def empty_model(card: ModelCard, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder's config.json without weights. Raises UserError for a configuration that makes none
    of the LLaMA type."""
    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            part.return_dict, part.output_hidden_states, part.output_attentions = True, False, False
        config.dtype = dtype
        text_config = config.get_text_config()
        _check_rotary(path, text_config.rope_parameters or {})
        if not 0 <= (text_config.pad_token_id or 0) < text_config.vocab_size:
            text_config.pad_token_id = None  # nothing is ever padded here
        # Buffers (rotary frequencies, positions) are computed, not stored: they are real from the start.
        # Starting values for parameters that hold nothing would take seconds.
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = _CLASSES[card.family](config)
    except UserError:
        raise
    except Exception as error:  # whatever transformers raises at a field that makes no sense
        if memory_ran_out(error):
            raise
        why = _wrong_field(path, error).removesuffix(".")
        raise UserError(f"{path} makes no model ({why}): correct that file, or fetch it again.") from None
    _check_blocks(path, text_config, model.get_decoder().layers)
    model.generation_config.eos_token_id = _end_tokens(folder) or model.generation_config.eos_token_id
    return model.requires_grad_(False).eval()


def check_sizes(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raises UserError if the config.json of a folder describes a model that is far larger than its tensors, which are
    `stored`: before anything is built, of which a size may be any number."""
    path = folder / "config.json"
    config = read_json(path)
    dimensions = [size for tensor in stored.values() if 0 not in tensor.shape for size in tensor.shape]
    largest = _FAR * max(dimensions, default=0)  # what is closer is built, and held against each tensor
    most = dict.fromkeys(_SIZES, largest) | {"num_hidden_layers": len(stored)}
    for part in (config, config.get("text_config"), config.get("vision_config")):
        for name, limit in most.items() if isinstance(part, dict) else ():
            value = part.get(name)
            if isinstance(value, int | float) and value > limit:
                raise UserError(
                    f"{path} says {name} {quoted(value)}, which is more than the tensors in its files have: correct "
                    "that file, or fetch it again."
                )
    vision = config.get("vision_config")
    image, patch = (vision.get(name, size) for name, size in _CLIP.items()) if isinstance(vision, dict) else (0, 1)
    if type(image) is int and type(patch) is int and patch > 0 and (image // patch) ** 2 > largest:
        raise UserError(
            f"{path} says image_size {image} and patch_size {patch}, and no tensor has that many positions: correct "
            "that file, or fetch it again."
        )


def _end_tokens(folder: Path) -> list[int]:
    """The tokens that end an answer by generation_config.json; none where that doesn't say."""
    path = folder / "generation_config.json"
    stated = read_json(path).get("eos_token_id") if path.exists() else None
    tokens = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(isinstance(token, int) for token in tokens):
        raise UserError(
            f"{path} has the eos_token_id {quoted(stated)}, where a number or a list of numbers belongs: correct that "
            "file, or fetch it again."
        )
    return tokens


def _check_rotary(path: Path, settings: Mapping[str, Any]) -> None:
    known = ("default", *ROPE_INIT_FUNCTIONS)
    for name, value in settings.items():
        if name in ("rope_type", "type"):
            if value not in known:
                raise UserError(f"{path} has the {name} {quoted(value)}; those that are known are: {', '.join(known)}.")
        elif not all(isinstance(number, int | float) for number in (value if isinstance(value, list) else [value])):
            raise UserError(
                f"{path} has {name} {quoted(value)} among its rotary settings, where a number belongs: correct that "
                "file, or fetch it again."
            )


def _check_blocks(path: Path, config: Any, blocks: nn.ModuleList) -> None:
    if config.num_key_value_heads < 1 or config.num_attention_heads % config.num_key_value_heads:
        raise UserError(
            f"{path} has {config.num_attention_heads} attention heads and {config.num_key_value_heads} for keys and "
            "values, which don't divide them: correct num_key_value_heads."
        )
    if not len(blocks):
        raise UserError(f"{path} has no decoder block: correct num_hidden_layers.")
    names = {name for name, module in blocks[0].named_modules() if isinstance(module, nn.Linear)}
    if names != set(LINEARS):
        raise UserError(
            f"The language model of {path} ({config.model_type}) is not of the LLaMA type: its blocks have the linears "
            f"{', '.join(sorted(names))}."
        )


def _wrong_field(path: Path, error: Exception) -> str:
    """The field of config.json that transformers stumbled on, in a sentence, as far as its error says."""
    typed = _WRONG_TYPE.search(str(error))
    if typed:
        value = typed["value"]
        value = value if len(value) <= MOST_QUOTED else f"{value[:MOST_QUOTED]} …"
        return f"{typed['field']} is {value}, and should be of type {typed['type']}."
    if isinstance(error, KeyError):  # a name that is looked up, such as that of an activation
        config = read_json(path)
        fields = [name for part in (config, *config.values()) if isinstance(part, dict) for name in part]
        values = [part[name] for part in (config, *config.values()) if isinstance(part, dict) for name in part]
        named = [name for name, value in zip(fields, values, strict=True) if value == error.args[0]]
        says = f", which {' or '.join(dict.fromkeys(named))} says." if named else "."
        return f"there is no {quoted(error.args[0])}{says}"
    return reason(error)
