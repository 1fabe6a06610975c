"""Our quantized weights as a GGUF file, for llama.cpp and Ollama: the same values, wherever GGUF has blocks for them.

Grouped integers are scale * (code - zero) with a float16 scale. GGUF's q4_1 has a float16 minimum in place of the zero,
which can't hold most products -scale * zero. What holds every such weight exactly is a symmetric type whose whole
numbers reach from the smallest code - zero to the largest: q4_0 from -8 to 7, q5_0 from -16 to 15, q8_0 from -128 to
127. So symmetric weights keep their width where GGUF has it, and those with zeros become one bit wider.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import torch

from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.formats import gguf
from quant_engine.formats.contract import LayoutError, integers
from quant_engine.formats.gguf_header import GgufFile, read_header
from quant_engine.models.architecture import LINEARS
from quant_engine.models.load import Skeleton
from quant_engine.weights.form import StoredWeight

FILE = "model.gguf"
DENSE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
SPLITS = {
    "gpt-2": [GPT2_SPLIT],
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT2_SPLIT],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
        {**GPT2_SPLIT, "use_regex": False},
    ],
}
"""llama.cpp's names for how a text is split before its bytes are merged, and a tokenizer.json's words for the same."""


def write(checkpoint: Checkpoint, skeleton: Skeleton, folder: Path, like: Path | None = None) -> None:
    """Writes FILE into `folder`: a finished checkpoint with the configuration of its base model, and its tokenizer, or
    that of `like`, a GGUF file of the same model.

    Raises LayoutError, the end of a sentence, for what a GGUF file of the llama architecture can't say or `like` says
    otherwise, and UserError where `like` can't be read.
    """
    tokenizer = _tokenizer_of(read_header(like), skeleton) if like else {}
    writer = library.GGUFWriter(folder / FILE, gguf.ARCHITECTURE)
    outside = skeleton.tensors_outside_blocks()
    tensors = {skeleton.parameter_names[name]: tensor for name, tensor in outside.items()}
    types = _types(checkpoint, skeleton)
    try:
        _add_configuration(writer, skeleton, types)
        if like:
            _add_fields(writer, tokenizer)
        else:
            _add_tokenizer(writer, skeleton)
        for name, tensor in tensors.items():
            _describe(writer, name, _dense_type(tensor), tuple(tensor.shape))
        for name, (kind, shape) in types.items():
            _describe(writer, name, kind, shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            writer.write_tensor_data(_bytes(tensor, _dense_type(tensor)))
        for index in range(len(skeleton.blocks)):
            for data in _block(checkpoint, skeleton, index, types):
                writer.write_tensor_data(data)
    finally:
        writer.close()


def _types(checkpoint: Checkpoint, skeleton: Skeleton) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of every tensor in decoder blocks, in the order in which they are written."""
    types = {}
    for index, block in enumerate(skeleton.blocks):
        prefix = skeleton.block_prefix(index)
        configs = checkpoint.linears(index)
        for path in LINEARS:
            config = configs[path]
            kind, shape = _type_of(config), (config["out_features"], config["in_features"])
            types[f"{prefix}{path}.weight"] = kind, shape
        for name, parameter in block.named_parameters():
            if name.removesuffix(".weight") not in LINEARS:
                types[prefix + name] = "f32", tuple(parameter.shape)
    return types


def _type_of(config: dict[str, Any]) -> str:
    """The narrowest type that holds a linear's weights, by what a checkpoint says of it."""
    if config["form"] != "grouped_int":
        raise LayoutError(f"its weights are stored as {config['form'].replace('_', ' ')}, which GGUF can't say")
    if config["ordered"]:
        raise LayoutError("its columns are in an order of their own (act-order), which GGUF can't say: export to gptq")
    group, columns = min(config["group"], config["in_features"]), config["in_features"]
    if group % gguf.GROUP or columns % gguf.GROUP:
        raise LayoutError(f"its groups have {group} of {columns} columns, and GGUF's blocks {gguf.GROUP}")
    needed = config["bits"] + (not config["symmetric"])
    return next((kind for kind, bits in gguf.GROUPED.items() if bits >= needed), "q8_0")


def _dense_type(tensor: torch.Tensor) -> str:
    """The type that a tensor has outside of blocks: its own, or float32 for norms, as llama.cpp wants them."""
    return "f32" if tensor.dim() == 1 else DENSE.get(tensor.dtype, "f32")


def _describe(writer: library.GGUFWriter, name: str, kind: str, shape: tuple[int, ...]) -> None:
    number = library.GGMLQuantizationType[kind.upper()]
    in_bytes = library.quant_shape_to_byte_shape(shape, number)
    size = int(np.prod(in_bytes))
    writer.add_tensor_info(gguf.their_name(name), in_bytes, np.dtype(np.uint8), size, number)


def _bytes(tensor: torch.Tensor, kind: str) -> np.ndarray:
    dtype = next(dtype for dtype, name in DENSE.items() if name == kind)
    return tensor.to(dtype).contiguous().view(torch.uint8).numpy()


def _block(
    checkpoint: Checkpoint, skeleton: Skeleton, index: int, types: dict[str, tuple[str, tuple[int, ...]]]
) -> Iterator[np.ndarray]:
    """The bytes of a block's tensors, in the order of `types`."""
    block, prefix = skeleton.blocks[index], skeleton.block_prefix(index)
    checkpoint.fill_block(index, block, "cpu", skeleton.dtype)
    dense = dict(block.named_parameters())
    for name, (kind, _) in types.items():
        if not name.startswith(prefix):
            continue
        inside = name.removeprefix(prefix)
        heads = gguf.rotary_heads(gguf.their_name(name), skeleton.model.config.to_dict())
        if inside in dense:
            tensor = dense[inside].data
            yield _bytes(gguf.their_order(tensor, heads) if heads else tensor, kind)
        else:
            blocks = _blocks(block.get_submodule(inside), kind)
            yield (gguf.their_order(blocks, heads) if heads else blocks).contiguous().numpy()
    skeleton.release_block(index)


def _blocks(weight: StoredWeight, kind: str) -> torch.Tensor:
    weight, codes, zeros = integers(weight, "GGUF files")
    group_of = torch.arange(weight.in_features // gguf.GROUP) * gguf.GROUP // weight.group
    zeros = zeros[:, group_of].to(torch.int16).repeat_interleave(gguf.GROUP, 1)
    values = codes.to(torch.int16).sub_(zeros)
    if int(values.min()) < -128 or int(values.max()) > 127:
        raise LayoutError(f"its zero points take codes of {weight.bits} bits out of what GGUF's q8_0 holds")
    return gguf.blocks(values, weight.scales[:, group_of], kind)


def _add_configuration(
    writer: library.GGUFWriter, skeleton: Skeleton, types: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    config = skeleton.model.config
    rotary = config.rope_parameters or {}
    if rotary.get("rope_type", "default") != "default":
        raise LayoutError(f"its rotary embeddings are scaled ({rotary['rope_type']}), which is not written to GGUF")
    main = Counter(kind for kind, shape in types.values() if len(shape) == 2).most_common(1)[0][0]
    writer.add_type(library.GGUFType.MODEL)
    writer.add_name(skeleton.card.title)
    writer.add_file_type(next(number for number, name in gguf.FILE_TYPES.items() if name == main))
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(rotary.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: library.GGUFWriter, skeleton: Skeleton) -> None:
    rows = skeleton.model.config.vocab_size
    content = json.loads(skeleton.tokenizer.backend_tokenizer.to_str())
    if content["model"].get("byte_fallback"):
        _add_pieces(writer, skeleton.folder, rows)
        special = library.SpecialVocab(skeleton.folder, n_vocab=rows)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(content))
        tokens = {number: token for token, number in skeleton.tokenizer.get_vocab().items() if number < rows}
        added = {token["id"]: token["special"] for token in content["added_tokens"]}
        kinds = library.TokenType
        types = [
            kinds.UNUSED if number not in tokens
            else kinds.NORMAL if number not in added
            else kinds.CONTROL if added[number] else kinds.USER_DEFINED
            for number in range(rows)
        ]  # fmt: skip
        writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(rows)])
        writer.add_token_types(types)
        special = library.SpecialVocab(skeleton.folder, load_merges=True, n_vocab=rows)
    ids = skeleton.tokenizer("a")["input_ids"]
    first, last = skeleton.tokenizer.bos_token_id, skeleton.tokenizer.eos_token_id
    special.add_special_token = {"bos": ids[0] == first, "eos": ids[-1] == last}
    special.add_to_gguf(writer, quiet=True)


def _tokenizer_of(file: GgufFile, skeleton: Skeleton) -> dict[str, Any]:
    """What a GGUF file says of its tokenizer, which must give all texts of the model's tokenizer the same numbers."""
    fields = {name: value for name, value in file.fields.items() if name.startswith("tokenizer.")}
    tokens, rows = fields.get("tokenizer.ggml.tokens"), skeleton.model.config.vocab_size
    if not isinstance(tokens, list) or len(tokens) != rows:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise LayoutError(f"{file.path} has {count} tokens, where the model has {rows}")
    for token, number in sorted(skeleton.tokenizer.get_vocab().items(), key=itemgetter(1)):
        if number < rows and tokens[number] != token:
            raise LayoutError(f"token {number} of {file.path} is {tokens[number]!r}, where the model's is {token!r}")
    return fields


def _add_fields(writer: library.GGUFWriter, fields: dict[str, Any]) -> None:
    """Fields as they were read. Whole numbers are of no sign, as llama.cpp asks for them."""
    for name, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)


def _split(content: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer of this tokenizer.json splits a text."""
    pre = content["pre_tokenizer"] or {}
    steps = [
        {name: value for name, value in step.items() if name != "trim_offsets"}
        for step in pre.get("pretokenizers", [pre])
    ]
    found = next((name for name, known in SPLITS.items() if steps == known), None)
    if content["model"]["type"] != "BPE" or content["normalizer"] or found is None:
        names = ", ".join(SPLITS)
        raise LayoutError(f"its tokenizer splits texts in a way that is not among those written to GGUF ({names})")
    return found


def _add_pieces(writer: library.GGUFWriter, folder: Path, rows: int) -> None:
    """The pieces of a SentencePiece model, with the scores by which they are merged."""
    if not (folder / "tokenizer.model").is_file():
        raise LayoutError(f"a GGUF file needs the scores of its tokenizer: put the model's tokenizer.model in {folder}")
    tokens, scores, types = zip(*library.SentencePieceVocab(folder).all_tokens(), strict=True)
    short = range(len(tokens), rows)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"[PAD{number}]".encode() for number in short)][:rows])
    writer.add_token_scores([*scores, *(-1000.0 for _ in short)][:rows])
    writer.add_token_types([*types, *(library.TokenType.UNUSED for _ in short)][:rows])
