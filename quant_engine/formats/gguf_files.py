"""A GGUF file read as a model's files, and the folder with its configuration and tokenizer that transformers reads."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from transformers import AutoTokenizer

from quant_engine import disk, folders
from quant_engine.demo.base import quiet
from quant_engine.formats import gguf
from quant_engine.formats.gguf_header import TYPES, GgufFile
from quant_engine.formats.published import Published
from quant_engine.models.check import StoredTensor, read_json, reason
from quant_engine.models.files import ModelFiles, check_finite
from quant_engine.spec import UserError, quoted
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.packing import parts

_DENSE = {"f32": ("F32", torch.float32), "f16": ("F16", torch.float16), "bf16": ("BF16", torch.bfloat16)}
_MOST_ITEMS, _FEW_ITEMS = 16, 1000
"""Items of all lists for each token, where a type, a score and two or three merges are usual; and some for the rest."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class GgufFiles(ModelFiles):
    """The tensors of a GGUF file under our names. Raises UserError for tensors that the model has no place for."""

    def __init__(self, file: GgufFile, config: dict) -> None:
        self._file, self._config, self.where = file, config, file.path
        self._theirs: dict[str, str] = {}
        self.stored, self.packed = {}, {}
        for theirs, tensor in file.tensors.items():
            name = gguf.our_name(theirs)
            if name is None:
                raise UserError(
                    f"{file.path} holds {theirs}, which a model of the LLaMA type has no place for: fetch it again, or "
                    "give another model."
                )
            self._theirs[name] = theirs
            dense = tensor.type in _DENSE
            if not dense and len(tensor.shape) != 2:
                raise UserError(
                    f"{file.path} holds {theirs} {list(tensor.shape)}, which should be a matrix: fetch it again."
                )
            self.stored[name] = StoredTensor(file.path.name, _DENSE[tensor.type][0] if dense else "F16", tensor.shape)
            if not dense:
                self.packed[name] = cache(partial(self._weight, theirs))
        if _EMBEDDING in self.packed and _HEAD not in self.stored:  # the head is the embedding, packed
            self.stored[_HEAD], self.packed[_HEAD] = self.stored[_EMBEDDING], self.packed[_EMBEDDING]

    def described(self, name: str) -> str:
        return super().described(self._theirs[name])

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        tensors = {}
        for name in names:
            theirs = self._theirs[name]
            tensor = self._file.tensors[theirs]
            value = self._bytes(theirs).view(_DENSE[tensor.type][1]).view(tensor.shape)
            tensors[name] = self._in_our_order(theirs, value)
            check_finite(tensors[name], theirs, self._file.path)
        return tensors

    def _weight(self, theirs: str) -> StoredWeight:
        tensor = self._file.tensors[theirs]
        blocks = self._bytes(theirs).view(tensor.shape[0], -1)
        size = _BLOCK_BYTES[tensor.type]
        weight = gguf.packed(self._in_our_order(theirs, blocks).unflatten(1, (-1, size)).contiguous(), tensor.type)
        for rows in parts(*tensor.shape):
            check_finite(weight.dequantize(rows.start, min(rows.stop, tensor.shape[0])), theirs, self._file.path)
        return weight

    def _bytes(self, theirs: str) -> torch.Tensor:
        tensor = self._file.tensors[theirs]
        count = tensor.end - tensor.start
        data = bytearray(count)
        try:
            with self._file.path.open("rb") as file:
                file.seek(tensor.start)
                if file.readinto(data) == count:
                    return torch.frombuffer(data, dtype=torch.uint8)
        except OSError:
            pass
        raise UserError(f"The GGUF file {self._file.path} is missing or damaged: fetch it again.")

    def _in_our_order(self, theirs: str, rows: torch.Tensor) -> torch.Tensor:
        heads = gguf.rotary_heads(theirs, self._config)
        if heads is None:
            return rows
        if len(rows) % (2 * heads):
            raise UserError(
                f"{self._file.path} holds {theirs} with {len(rows)} rows, which are not {heads} heads: fetch it again."
            )
        return gguf.our_order(rows, heads)


_BLOCK_BYTES = {name: size for name, _, size in TYPES.values()}


def model_folder(published: Published) -> Path:
    """The folder with config.json and the tokenizer of a GGUF file, made when it is first asked for.

    Raises UserError if the file's tokenizer can't be made one of transformers.
    """
    file = published.gguf
    folder = folders.home() / "gguf" / f"{published.source.revision}"
    if (folder / "config.json").is_file():
        return folder
    _check_tokenizer(file)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                file.path.parent, gguf_file=file.path.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever transformers raises at a damaged file
            why = reason(error).removesuffix(".")
            raise UserError(
                f"The tokenizer in {file.path} can't be read ({why}): fetch it again, or give another file."
            ) from None
        with disk.replacing_folder(folder) as aside:
            tokenizer.save_pretrained(aside)
            _remove_invented(aside, set(file.fields["tokenizer.ggml.tokens"]))
            disk.write_json(aside / "config.json", published.config)
    return folder


def _remove_invented(folder: Path, tokens: set[str]) -> None:
    """Takes special tokens that transformers adds of its own, such as <|endoftext|>, out of a saved tokenizer: the
    model has no embedding for them."""
    content = read_json(folder / "tokenizer.json")
    invented = {added["content"] for added in content["added_tokens"]} - tokens
    content["added_tokens"] = [added for added in content["added_tokens"] if added["content"] in tokens]
    settings = read_json(folder / "tokenizer_config.json")
    named = {name for name, value in settings.items() if isinstance(value, str) and value in invented}
    disk.write_json(folder / "tokenizer.json", content)
    disk.write_json(folder / "tokenizer_config.json", {n: v for n, v in settings.items() if n not in named})


def _check_tokenizer(file: GgufFile) -> None:
    """Raises UserError unless the lists of a tokenizer fit each other."""
    tokens = file.fields.get("tokenizer.ggml.tokens")
    rows = file.tensors["token_embd.weight"].shape[0]
    if not isinstance(tokens, list) or not tokens or len(tokens) > rows or not all(isinstance(t, str) for t in tokens):
        raise UserError(f"{file.path} has no tokens for its {rows} embeddings: give a file with its tokenizer.")
    items = sum(len(value) for value in file.fields.values() if isinstance(value, list))
    if items > _MOST_ITEMS * len(tokens) + _FEW_ITEMS:  # transformers takes some 300 bytes for each
        raise UserError(f"{file.path} has lists of {items:,} items for its {len(tokens)} tokens: fetch it again.")
    for name in ("scores", "token_type"):
        listed = file.fields.get(f"tokenizer.ggml.{name}")
        if listed is not None and (not isinstance(listed, list) or len(listed) != len(tokens)):
            raise UserError(f"{file.path} has {name} that don't fit its {len(tokens)} tokens: fetch it again.")
    for name in ("bos", "eos", "unknown", "padding"):
        number = file.fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and (not isinstance(number, int) or not 0 <= number < len(tokens)):
            raise UserError(
                f"{file.path} has the {name} token {quoted(number)}, which is not among its tokens: fetch it again."
            )
