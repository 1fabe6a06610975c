"""GGUF files of the tiny llama model, written byte by byte from the description of the format."""

import json
import struct

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "IQ4_NL": 20, "BF16": 30}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(value):
    """A value with its type: whole numbers (in a list, with their sign), floats, texts and lists of these."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        items = [struct.pack("<Ii", 5, item) if isinstance(item, int) else field(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", 8)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def file(fields, tensors, starts=()):
    """The bytes of a file; `tensors` are names, shapes, types by number and data. `starts` are where the header says
    that the data of some begin, by number, in place of where they do."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(text(name) + field(value) for name, value in fields.items())
    offset, data = 0, b""
    for number, (name, shape, kind, content) in enumerate(tensors):
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape[::-1])
        head += struct.pack("<IQ", kind, dict(starts).get(number, offset))
        content += bytes(-len(content) % 32)
        data, offset = data + content, offset + len(content)
    return head + bytes(-len(head) % 32) + data


def theirs(name):
    if name.startswith("model.layers."):
        _, _, block, *rest, leaf = name.split(".")
        return f"blk.{block}.{NAMES['.'.join(rest)]}.{leaf}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[name[:-7]] + ".weight"


def their_rows(weight, heads):
    """Rows of a query or key projection as GGUF has them."""
    size = len(weight) // heads
    order = [h * size + j * size // 2 + i for h in range(heads) for i in range(size // 2) for j in range(2)]
    return weight[order]


def encode(weight, kind):
    """A tensor's bytes, and the values that they stand for by the gguf package."""
    array = weight.numpy()
    if kind == "IQ4_NL":  # the package only reads it
        random = np.random.default_rng(len(array))
        data = random.integers(0, 256, (array.size // 32, 18), dtype=np.uint8)
        data[:, 1] = 0x20
    else:
        data = gguf.quantize(array, gguf.GGMLQuantizationType[kind])
    values = gguf.dequantize(data.reshape(len(array), -1), gguf.GGMLQuantizationType[kind]).reshape(array.shape)
    return data.tobytes(), torch.from_numpy(values.astype(np.float32))


def merges(tokenizer):
    return [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def fields(config, tokenizer):
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    return {
        "general.architecture": "llama",
        "general.file_type": 2,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in tokenizer.all_special_tokens else 1 for token in tokens],
        "tokenizer.ggml.merges": merges(tokenizer),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def model(base, made, kinds, path, embedding="Q8_0"):
    """Writes the tiny model of folder `base` with linears of these kinds in turn. Returns the dense values by name."""
    config, dense, tensors, number = made.model.config, {}, [], 0
    for name, weight in load_file(base / "model.safetensors").items():
        weight = weight.float()
        kind = "F32"
        if weight.dim() == 2:
            kind = embedding if "layers" not in name else kinds[number % len(kinds)]
            number += "layers" in name
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        rows = their_rows(weight, heads) if heads else weight
        data, values = encode(rows.contiguous(), kind)
        if heads:  # back: where each of our rows went
            places = their_rows(torch.arange(len(weight)), heads)
            values = values[places.argsort()]
        dense[name] = values
        tensors.append((theirs(name), tuple(weight.shape), NUMBERS[kind], data))
    path.write_bytes(file(fields(config, made.tokenizer), tensors))
    return dense
