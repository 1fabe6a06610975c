"""Models in GGUF files of the llama architecture: what llama.cpp and Ollama run. Loads no torch until weights are read.

The configuration, the tokenizer and all weights are in the file. Tensors have names of their own, and the rows of query
and key projections are in another order: of each head of size d, row 2 i + j of the file is row j d / 2 + i of ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quant_engine.deferred import deferred
from quant_engine.formats.gguf_header import GgufFile
from quant_engine.spec import QuantSetting, UserError, quoted

torch = deferred("torch")
gguf_blocks = deferred("quant_engine.weights.gguf_blocks")
grouped = deferred("quant_engine.weights.grouped")

if TYPE_CHECKING:
    from quant_engine.weights.form import StoredWeight

ARCHITECTURE = "llama"
FILE_TYPES = (
    {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s"}
    | {12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k"}
    | {21: "q2_k_s", 25: "iq4_nl", 32: "bf16"}
)
"""The names of the mixtures of tensor types, as general.file_type numbers them."""
UNQUANTIZED = ("f32", "f16", "bf16")
GROUPED = {"q4_0": 4, "q5_0": 5, "q8_0": 8}
"""Types that are symmetric grouped integers, and their bits."""
GROUP = 32
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_NUMBER = (int, float)


def setting(file: GgufFile) -> QuantSetting:
    """The mixture that the file says it is, with the width in its name; FP16 for one that is not quantized."""
    inside = (tensor for name, tensor in file.tensors.items() if _BLOCK.fullmatch(name))
    types = Counter(tensor.type for tensor in inside if len(tensor.shape) == 2)
    if not types:
        raise UserError(f"{file.path} has no linear layers: give a file with a whole model.")
    if set(types) <= set(UNQUANTIZED):
        return QuantSetting()
    main = next(name for name, _ in types.most_common() if name not in UNQUANTIZED)
    number = file.fields.get("general.file_type")
    stated = FILE_TYPES.get(number, main) if isinstance(number, int) else main
    name = main if stated in UNQUANTIZED else stated
    return QuantSetting(method=f"gguf:{name}", w_bits=int(re.search(r"\d", name)[0]))


def config(file: GgufFile) -> dict[str, Any]:
    """The model's config.json. Raises UserError for another architecture, and for what LLaMA-type models here lack."""
    fields = file.fields
    if fields.get("general.architecture") != ARCHITECTURE:
        found = quoted(fields.get("general.architecture"))
        raise UserError(f"{file.path} holds a {found} model; of GGUF files those of {ARCHITECTURE} are read.")
    if "rope_freqs.weight" in file.tensors or fields.get("llama.rope.scaling.type", "none") != "none":
        raise UserError(
            f"{file.path} has scaled rotary embeddings, which are not read from GGUF files: give the model in another "
            "format."
        )
    if fields.get("llama.expert_count"):
        raise UserError(f"{file.path} holds a mixture of experts, which is not of the LLaMA type: give another model.")
    heads = _field(file, "attention.head_count", int)
    hidden = _field(file, "embedding_length", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path} lacks token_embd.weight: fetch it again.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _field(file, "feed_forward_length", int),
        "num_hidden_layers": _field(file, "block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(file, "attention.head_count_kv", int, heads),
        "head_dim": _field(file, "attention.key_length", int, hidden // heads if heads else 0),
        "rms_norm_eps": _field(file, "attention.layer_norm_rms_epsilon", _NUMBER),
        "rope_parameters": {"rope_type": "default", "rope_theta": _field(file, "rope.freq_base", _NUMBER, 10000.0)},
        "max_position_embeddings": _field(file, "context_length", int),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }


def _field(file: GgufFile, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = file.fields.get(f"{ARCHITECTURE}.{name}", default)
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < 2**31:
        raise UserError(
            f"{file.path} says {ARCHITECTURE}.{name} {quoted(value)}, where a number above 0 belongs: fetch it again."
        )
    return value


def our_name(name: str) -> str | None:
    """The name that a tensor of a file has in the model; None for one that the model has no place for."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = _BLOCK.fullmatch(name)
    if not found or found[2] not in _INSIDE:
        return None
    return f"model.layers.{found[1]}.{_INSIDE[found[2]]}.{found[3]}"


def rotary_heads(name: str, config: Mapping[str, Any]) -> int | None:
    """The heads of a tensor whose rows are in GGUF's order; None for any other."""
    part = name.split(".")[-2]
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part)


def their_name(name: str) -> str:
    """The name that a parameter of the model has in a file."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    if name in outside:
        return outside[name]
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    _, _, block, path = name.split(".", 3)
    path, _, leaf = path.rpartition(".")
    return f"blk.{block}.{inside[path]}.{leaf}"


def their_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [m, ...] of a query or key projection in GGUF's order."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def our_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [m, ...] of a query or key projection in our order."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def packed(blocks: torch.Tensor, kind: str) -> StoredWeight:
    """A weight of the bytes of its blocks, uint8 [m, blocks of a row, bytes of a block]."""
    if kind not in GROUPED:
        return gguf_blocks.GgufBlocks.pack(blocks, kind)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    if kind == "q8_0":
        codes = blocks[..., 2:] ^ 128  # signed bytes: the middle becomes 128
    else:
        nibbles = blocks[..., -16:]
        codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
        if kind == "q5_0":
            codes = codes | gguf_blocks.bits_of_words(blocks, 2) << 4
    return grouped.GroupedInt.pack(codes.flatten(1), scales, None, GROUPED[kind], GROUP)


def blocks(values: torch.Tensor, scales: torch.Tensor, kind: str) -> torch.Tensor:
    """The bytes uint8 [m, blocks of a row, bytes of a block] of a GROUPED type, for whole numbers `values` [m, n] times
    float16 `scales` [m, n / 32]."""
    values = values.unflatten(1, (-1, GROUP))
    parts = [scales[..., None].contiguous().view(torch.uint8)]
    if kind == "q8_0":
        return torch.cat([*parts, values.to(torch.int8).view(torch.uint8)], -1)
    codes = (values + 2 ** (GROUPED[kind] - 1)).to(torch.uint8)
    if kind == "q5_0":
        high = (codes >> 4).unflatten(-1, (-1, 8))
        parts.append(sum(high[..., bit] << bit for bit in range(8)))
    return torch.cat([*parts, codes[..., :16] & 15 | codes[..., 16:] << 4], -1)
