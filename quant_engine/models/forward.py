"""The language model's forward pass: texts of any lengths together, none of them padded.

The linears multiply the tokens of all texts at once, and each text attends to its own keys and values, which lie in
memory that is allocated ahead. It calls the modules of a decoder's blocks, as the decoder itself does, without what a
token does not need: masks, copies of the cache, outputs that nobody reads. Its results are those of the model's own
forward up to the order in which sums are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaModel, MistralModel, Qwen2Model

from quant_engine.models.key_values import KeyValues
from quant_engine.models.step import step_of

_DECODERS = (LlamaModel, MistralModel, Qwen2Model)
_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Types of rotary embedding whose frequencies depend on the length of the text."""


def is_supported(decoder: nn.Module) -> bool:
    """Whether a text decoder's blocks are of the plain LLaMA type that `last_states` computes."""
    config = decoder.config
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    whole_text = not getattr(config, "sliding_window", None)
    return type(decoder) in _DECODERS and whole_text and rotary not in _LENGTH_DEPENDENT


@dataclass(frozen=True)
class Piece:
    """The next tokens of a text, as embeddings [tokens, hidden], and the keys and values of what stands before them."""

    embeddings: torch.Tensor
    cache: KeyValues


@dataclass(frozen=True)
class PackedText:
    """Several texts as one: its token ids, their positions, and which tokens [tokens, tokens] each of them sees; None
    for those before it and itself."""

    ids: Sequence[int]
    positions: Sequence[int]
    visible: torch.Tensor | None


@torch.inference_mode()
def last_states(decoder: nn.Module, pieces: Sequence[Piece]) -> torch.Tensor:
    """What the output head gets at the last token of each piece [pieces, hidden]; the caches are extended."""
    counts = [len(piece.embeddings) for piece in pieces]
    step = step_of(decoder) if counts.count(1) == len(counts) else None
    if step:
        return step(torch.cat([piece.embeddings for piece in pieces]), [piece.cache for piece in pieces])
    x = torch.cat([piece.embeddings for piece in pieces])
    positions = torch.cat([torch.arange(p.cache.length, p.cache.length + len(p.embeddings)) for p in pieces])
    masks = [_mask(piece, decoder) for piece in pieces]
    for piece, count in zip(pieces, counts, strict=True):
        piece.cache.reserve(count)

    def attend(index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> list:
        outputs, start = [], 0
        for piece, count, mask in zip(pieces, counts, masks, strict=True):
            new = slice(start, start + count)
            all_keys, all_values = piece.cache.append(index, keys[new], values[new])
            outputs.append(_attend(queries[new], all_keys, all_values, mask, scale))
            start += count
        return outputs

    states = _states(decoder, x, positions, attend, torch.tensor(counts).cumsum(0) - 1)
    for piece, count in zip(pieces, counts, strict=True):
        piece.cache.length += count
    return states


@torch.inference_mode()
def states_at(decoder: nn.Module, texts: Sequence[PackedText], wanted: torch.Tensor) -> torch.Tensor:
    """What the output head gets at the `wanted` tokens of whole texts, counted through all of them
    [wanted tokens, hidden]."""
    device = decoder.norm.weight.device
    ids = torch.tensor([token for text in texts for token in text.ids], device=device)
    positions = torch.tensor([position for text in texts for position in text.positions])
    masks = [None if text.visible is None else _additive(text.visible, decoder) for text in texts]

    def attend(index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> list:
        outputs, start = [], 0
        for text, mask in zip(texts, masks, strict=True):
            own = slice(start, start + len(text.ids))
            outputs.append(_attend(queries[own], keys[own].transpose(0, 1), values[own].transpose(0, 1), mask, scale))
            start = own.stop
        return outputs

    return _states(decoder, decoder.embed_tokens(ids), positions, attend, wanted.to(device))


def _states(
    decoder: nn.Module,
    x: torch.Tensor,
    positions: torch.Tensor,
    attend: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], list[torch.Tensor]],
    wanted: torch.Tensor,
) -> torch.Tensor:
    """What the output head gets at the `wanted` of the tokens embedded in `x` [tokens, hidden].

    `attend` gets a block's index, its queries, keys and values [tokens, heads, head_dim] and their scale, and gives
    what each text's tokens attend to [tokens, heads * head_dim].
    """
    cos, sin = (t[0, :, None] for t in decoder.rotary_emb(x, positions[None].to(x.device)))
    last = len(decoder.layers) - 1
    for index, block in enumerate(decoder.layers):
        attention = block.self_attn
        y = _norm(block.input_layernorm, x)
        queries, keys, values = (
            linear(y).view(len(y), -1, attention.head_dim)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads = queries.shape[1]
        rotated = _rotate(torch.cat([queries, keys], 1), cos, sin)
        outputs = attend(index, rotated[:, :heads], rotated[:, heads:], values, attention.scaling)
        attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if index == last and len(x) > len(wanted):  # nothing else is asked of the other tokens
            x, attended = x[wanted], attended[wanted]
        x += attention.o_proj(attended)
        x += block.mlp(_norm(block.post_attention_layernorm, x))
    return _norm(decoder.norm, x)


def _mask(piece: Piece, decoder: nn.Module) -> torch.Tensor | None:
    """The mask of a piece's tokens; None where each sees all before it and itself."""
    count, before = len(piece.embeddings), piece.cache.length
    if count == 1 or before == 0:
        return None
    return _additive(torch.ones(count, before + count, dtype=torch.bool).tril(before), decoder)


def _additive(visible: torch.Tensor, decoder: nn.Module) -> torch.Tensor:
    """A mask for the heads that share a key head [heads * tokens, all tokens] of which tokens each token sees."""
    weight, config = decoder.norm.weight, decoder.config
    mask = torch.zeros(visible.shape, dtype=weight.dtype).masked_fill_(~visible, -torch.inf)
    return mask.repeat(config.num_attention_heads // config.num_key_value_heads, 1).to(weight.device)


def _norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32:
        return module(x)
    return rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `x` [tokens, heads, head_dim]; `cos` and `sin` are [tokens, 1, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention of one text's new tokens: [new tokens, heads * head_dim].

    `queries` are [new tokens, heads, head_dim], `keys` and `values` [key heads, tokens, head_dim]. The heads that share
    a key head are queries of one head, so keys and values are never repeated; but for the text's beginning, where the
    faster causal attention needs them.
    """
    count, heads, head_dim = queries.shape
    shared = heads // len(keys)
    keys, values = keys[None], values[None]
    if count > 1 and mask is None:
        by_head = queries.transpose(0, 1)[None]
        output = scaled_dot_product_attention(by_head, keys, values, is_causal=True, scale=scale, enable_gqa=shared > 1)
        return output[0].transpose(0, 1).reshape(count, -1)
    grouped = queries.view(count, -1, shared, head_dim).permute(1, 2, 0, 3).reshape(1, -1, shared * count, head_dim)
    output = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return output.view(-1, shared, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)


def embed(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The embeddings [tokens, hidden] of one prompt's tokens, with the features of its picture in their place.

    The picture is among the inputs as `pixel_values`, or as `image_features` [tokens, hidden] that were made before.
    """
    with torch.inference_mode():
        ids = inputs["input_ids"]
        embeddings = model.get_input_embeddings()(ids)
        features = inputs.get("image_features")
        if features is None and "pixel_values" in inputs:
            features = picture_features(model, inputs)
        if features is not None:
            embeddings[ids == model.config.image_token_id] = features.to(embeddings)
        return embeddings[0]


@torch.inference_mode()
def picture_features(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the vision tower and the projector make of a prompt's picture [tokens, hidden]."""
    encoded = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    return torch.cat(list(encoded.pooler_output))
