"""Load LLaMA-type and LLaVA-NeXT models, whole or decoder block by decoder block.

A model starts as a skeleton: transformers' own modules with no weights in the decoder blocks. Blocks are filled from
the files one at a time, dense or quantized, so that a model larger than memory can be quantized.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

from quant_engine.kernels.linear import HalfEmbedding, HalfLinear, QuantEmbedding, QuantLinear, StoredLinear
from quant_engine.kernels.matmul import warm_up
from quant_engine.kernels.threads import parallel_kernels
from quant_engine.models.architecture import LINEARS, check_sizes, empty_model
from quant_engine.models.catalog import ModelCard
from quant_engine.models.check import DENSE, TOKENIZERS, StoredTensor, reason
from quant_engine.models.files import ModelFiles, TensorFiles, all_finite, folder_of
from quant_engine.models.processor import load_processor
from quant_engine.models.step import step_of
from quant_engine.models.transformers_log import warnings_held_back
from quant_engine.spec import UserError
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.half import Half
from quant_engine.weights.packing import parts

_UNREAD = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Names of tensors that older releases stored, and that are computed: transformers passes over them, too."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HALVES = (torch.float16, torch.bfloat16)
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "model.")


# transformers warns of texts longer than the context, which perplexity cuts into windows anyway.
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


@dataclass
class Loaded:
    """A model ready to answer, dense or quantized.

    `stored_bits` is per weight of the linears in decoder blocks; `picture_problem` says why there is no `processor`;
    `revision` identifies the files that it was read from, where somebody asked; `prompt_dtype` is the type that the
    products of a prompt are computed in, if not the model's.
    """

    card: ModelCard
    model: nn.Module
    tokenizer: Any
    processor: Any | None
    stored_bits: float
    folder: Path
    picture_problem: str = ""
    revision: str = ""
    prompt_dtype: str = ""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """The type that the model computes in ("float32" …)."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def storages(self) -> dict[int, int]:
        """Bytes of each piece of memory that the model's weights lie in, by its address."""
        storages = [tensor.untyped_storage() for tensor in (*self.model.parameters(), *self.model.buffers())]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything the model holds in memory, tied weights counted once."""
        return sum(self.storages.values())


class Skeleton:
    """A model whose weights are filled in piece by piece from its files, with its tokenizer.

    With `in_halves`, a model that computes in float32 on a CPU holds what 16 bits hold exactly in these, whatever type
    its files have: the embedding, the output head, and the linears of blocks that are filled here.

    Making one holds files, configuration and tokenizer against each other: raises UserError, one sentence, for a
    folder whose model would not be what transformers makes of it. A `sibling` is the same model loaded in another
    setting: what both have in common is then held once, on the sibling's device. `files` are the folder's own, if they
    hold no quantized weights. A model that reads nothing does without tokenizer: reading it takes a second.
    """

    @warnings_held_back()
    def __init__(
        self,
        card: ModelCard,
        folder: Path,
        dtype: torch.dtype,
        device: str,
        sibling: Loaded | None = None,
        *,
        files: ModelFiles | None = None,
        in_halves: bool = False,
        with_tokenizer: bool = True,
    ) -> None:
        self.card, self.folder, self.dtype, self.device, self._sibling = card, folder, dtype, device, sibling
        self._in_halves = in_halves and device == "cpu" and dtype == torch.float32
        self._files = files or TensorFiles(folder)
        check_sizes(folder, self._files.stored)
        self.model = empty_model(card, folder, dtype)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device), persistent=False)
        self.blocks: nn.ModuleList = self.decoder.layers
        self._file_name = self._file_names()
        self._check_tensors()
        self.tokenizer = sibling.tokenizer if sibling else None
        if with_tokenizer and not sibling:
            self.tokenizer = load_tokenizer(folder, self.decoder.embed_tokens.num_embeddings)

    @property
    def decoder(self) -> nn.Module:
        """The text decoder: embed_tokens, layers, norm, rotary_emb."""
        return self.model.model.language_model if self.card.pictures else self.model.model

    def _file_names(self) -> dict[str, str]:
        """The name in the files of each parameter; older releases of transformers named some otherwise."""
        parameters = self.model.state_dict()
        if self._files.stored.keys() <= parameters.keys():
            return {name: name for name in self._files.stored}
        renamings = get_model_conversion_mapping(self.model)
        unread = re.compile("|".join([*_UNREAD, *(self.model._keys_to_ignore_on_load_unexpected or ())]))
        names: dict[str, str] = {}
        for file_name, stored in self._files.stored.items():
            name, _ = rename_source_key(file_name, renamings, [], self.model.base_model_prefix, parameters)
            if name in names:
                raise UserError(
                    f"The weights in {self.folder} hold {name} twice, as {names[name]} and {file_name}: fetch the "
                    "model again."
                )
            if name in parameters:
                names[name] = file_name
            elif not unread.search(file_name):
                raise UserError(self._superfluous(file_name, stored, parameters))
        return names

    def _superfluous(self, name: str, stored: StoredTensor, parameters: Mapping[str, torch.Tensor]) -> str:
        """Why a tensor has no place in the model, in a sentence."""
        if "lora_" in name:
            return f"The weights in {self.folder} hold adapters ({name}): merge them into the model first."
        prefix = next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None)
        if prefix and name.removeprefix(prefix) in parameters:
            return (
                f"The tensors in {self.folder} are named with the prefix {prefix!r}, as in {name}: save the model "
                "without its wrapper."
            )
        return (
            f"The weights in {self.folder} hold {name} {list(stored.shape)}, which the model of its config.json has no "
            "place for: give the files and the config.json of one model."
        )

    def _check_tensors(self) -> None:
        """Raises UserError unless the files hold each parameter in its shape, as numbers that are not codes."""
        tied = self.model.all_tied_weights_keys
        stored_elsewhere = {a for pair in tied.items() for a, b in (pair, pair[::-1]) if b in self._file_name}
        for name, parameter in self.model.state_dict().items():
            if name not in self._file_name:
                if name in stored_elsewhere:
                    continue
                raise UserError(
                    f"The weights in {self.folder} lack {name} {list(parameter.shape)}, which the model of its "
                    "config.json has: fetch the model again, or correct config.json."
                )
            file_name = self._file_name[name]
            stored = self._files.stored[file_name]
            if stored.dtype not in DENSE:
                raise UserError(
                    f"{self.folder} is quantized already ({file_name} is {stored.dtype}): give the unquantized model "
                    "that it was made from."
                )
            if stored.shape != tuple(parameter.shape):
                raise UserError(
                    f"The tensor {file_name} in {self.folder} is {list(stored.shape)}, and by its config.json "
                    f"it should be {list(parameter.shape)}: give the files and the config.json of one model."
                )

    def block_prefix(self, index: int) -> str:
        return f"{'model.language_model' if self.card.pictures else 'model'}.layers.{index}."

    def file_name(self, index: int, name: str) -> str:
        """The name that a parameter of block `index` has in the files."""
        return self._file_name[self.block_prefix(index) + name]

    def file_dtype(self, index: int, name: str) -> torch.dtype:
        """The type that it has there."""
        return _DTYPES[self._files.stored[self.file_name(index, name)].dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes that the dense model will hold at most; a weight that the files have under two names counts twice."""
        stored = {name: self._files.stored[file] for name, file in self._file_name.items()}
        weights = sum(
            math.prod(tensor.shape) * self._dtype_in_memory(name, _DTYPES[tensor.dtype]).itemsize
            for name, tensor in stored.items()
        )
        return weights + sum(buffer.nbytes for buffer in self.model.buffers())

    @property
    def parameter_names(self) -> dict[str, str]:
        """The parameter of each name in the files."""
        return {file_name: name for name, file_name in self._file_name.items()}

    def tensors_outside_blocks(self) -> dict[str, torch.Tensor]:
        """What lies outside of the decoder blocks, as the files have it: their names, types and values."""
        blocks = self.block_prefix(0).removesuffix("0.")
        return self._files.read([file for name, file in self._file_name.items() if not name.startswith(blocks)])

    def _fill(self, names: list[str]) -> None:
        packed = [name for name in names if self._is_packed(name)]
        for name in packed:
            self._set_packed(name, self._files.packed[self._file_name[name]]().to(self.device))
        names = [name for name in names if name not in packed]
        tensors = self._files.read([self._file_name[name] for name in names])
        for name in names:
            value = tensors[self._file_name[name]]
            value = value.to(self.device, narrowest(value) if self._may_be_half(name) else self.dtype)
            if not all_finite(value):
                tensor = self._files.described(self._file_name[name])
                largest = tensors[self._file_name[name]].abs().max().item()
                raise UserError(
                    f"The tensor {tensor} has values up to {largest:g}, too large for "
                    f"{str(self.dtype).removeprefix('torch.')}: compute in bfloat16 or float32."
                )
            self._set(name, nn.Parameter(value, requires_grad=False))

    def _dtype_in_memory(self, name: str, stored: torch.dtype) -> torch.dtype:
        return stored if stored in _HALVES and self._may_be_half(name) else self.dtype

    def _may_be_half(self, name: str) -> bool:
        """Whether a weight that 16 bits hold is computed with from these."""
        path, _, leaf = name.rpartition(".")
        in_block = name.startswith(self.block_prefix(0).removesuffix("0.")) and path.endswith(LINEARS)
        by_rows = leaf == "weight" and (in_block or self.model.get_submodule(path) in self._vocabulary)
        return self._in_halves and by_rows

    @property
    def _vocabulary(self) -> tuple[nn.Module, nn.Module]:
        return self.model.get_input_embeddings(), self.model.get_output_embeddings()

    def _set(self, name: str, parameter: nn.Parameter) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(path), leaf, parameter)

    def _is_packed(self, name: str) -> bool:
        return self._file_name.get(name) in self._files.packed

    def _set_packed(self, name: str, weight: StoredWeight) -> None:
        """Puts a layer that multiplies by a stored weight, or looks rows up in it, where the dense one was."""
        path, _, leaf = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        dense = self.model.get_submodule(path)
        if leaf != "weight" or not isinstance(dense, nn.Linear | nn.Embedding):
            tensor = self._files.described(self._file_name[name])
            raise UserError(f"{tensor} is quantized, and only linear layers and embeddings can be.")
        embeds = isinstance(dense, nn.Embedding)
        layer = QuantEmbedding(weight, self.dtype) if embeds else QuantLinear(weight, dense.bias)
        setattr(self.model.get_submodule(parent), child, layer)

    def fill_outside_blocks(self) -> None:
        """Fill embedding, output head, norm, and the vision side of a multimodal model."""
        blocks = self.block_prefix(0).removesuffix("0.")
        names = [name for name in self.model.state_dict() if not name.startswith(blocks) and name in self._file_name]
        parameters = self._sibling.model.named_parameters() if self._sibling else ()
        common = {name: parameter for name, parameter in parameters if parameter.dtype == self.dtype}
        for name in names:
            if name in common:
                self._set(name, common[name])
        self._fill([name for name in names if name not in common])
        for target, source in list(self.model.all_tied_weights_keys.items()):
            self._tie(target, source)
        if self._in_halves:
            self._hold_vocabulary()

    def _hold_vocabulary(self) -> None:
        """Puts layers that compute from halves in place of embedding and output head, where those are halves."""
        embedding, head = self._vocabulary
        if self._sibling:
            others = self._sibling.model.get_input_embeddings(), self._sibling.model.get_output_embeddings()
        else:
            others = embedding, head
        if isinstance(embedding, nn.Embedding) and embedding.weight.dtype != self.dtype:
            shared = isinstance(others[0], HalfEmbedding)
            self.model.set_input_embeddings(others[0] if shared else HalfEmbedding(Half.pack(embedding.weight.data)))
        if isinstance(head, nn.Linear) and head.weight.dtype != self.dtype:
            tied = head.weight is embedding.weight
            weight = self.model.get_input_embeddings().weight if tied else Half.pack(head.weight.data)
            shared = isinstance(others[1], HalfLinear)
            self.model.set_output_embeddings(others[1] if shared else HalfLinear(weight, head.bias))

    def release_outside_blocks(self) -> None:
        """Drop the weights outside of blocks."""
        blocks = self.block_prefix(0).removesuffix("0.")
        for name in self.model.state_dict():
            if not name.startswith(blocks):
                self._set(name, nn.Parameter(self.model.get_parameter(name).to("meta"), requires_grad=False))

    def _tie(self, target: str, source: str) -> None:
        """One tensor for both names, as transformers decides: where the files have both with different values, they
        stay two, whatever config.json says. Packed ones are as the files have them."""
        if self._is_packed(target) or self._is_packed(source):
            return
        target_weight, source_weight = self.model.get_parameter(target), self.model.get_parameter(source)
        if source not in self._file_name:
            target, source_weight = source, target_weight
        elif target in self._file_name and not _equal(target_weight, source_weight):
            self.model.all_tied_weights_keys.pop(target)
            for config in (self.model.config, self.model.config.get_text_config()):
                config.tie_word_embeddings = False
            return
        self._set(target, source_weight)

    def fill_block(self, index: int) -> nn.Module:
        """Fill block `index` with its dense weights, in the skeleton's type and on its device, and return it."""
        prefix = self.block_prefix(index)
        block = self.blocks[index]
        self._fill([prefix + name for name, _ in block.named_parameters()])
        for path in LINEARS if self._in_halves else ():
            linear = block.get_submodule(path)
            if isinstance(linear, nn.Linear) and linear.weight.dtype != self.dtype:
                parent, _, leaf = path.rpartition(".")
                setattr(block.get_submodule(parent), leaf, HalfLinear(Half.pack(linear.weight.data), linear.bias))
        return block

    def release_block(self, index: int) -> None:
        """Drop the block's weights."""
        self.blocks[index].to_empty(device="meta")

    def load_processor(self) -> Any:
        """What makes the model's inputs of pictures. Raises UserError if it takes none, or if that can't be used."""
        if not self.card.pictures:
            raise UserError(f"{self.card.title} is a text model: ask without a picture, or choose another model.")
        return load_processor(self.folder, self.model.config, self.tokenizer)

    def finish(self, stored_bits: float) -> Loaded:
        """The model with tokenizer and processor. All weights must be filled."""
        processor, problem = None, ""
        if self._sibling:
            processor, problem = self._sibling.processor, self._sibling.picture_problem
        else:
            try:
                processor = self.load_processor()
            except UserError as refusal:  # texts can be asked about all the same
                problem = str(refusal)
        return Loaded(self.card, self.model, self.tokenizer, processor, stored_bits, self.folder, problem)


def narrowest(values: torch.Tensor) -> torch.dtype:
    """The type of 16 bits that holds all `values` [m, n], or float32: some programs write in that what was half."""
    if values.dtype in _HALVES:
        return values.dtype
    for half in _HALVES:
        if all(torch.equal(values[rows].to(half).to(values.dtype), values[rows]) for rows in parts(*values.shape)):
            return half
    return torch.float32


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def load_tokenizer(folder: Path, embeddings: int | None = None) -> Any:
    """The tokenizer of a model folder. Raises UserError if there is none, or if it makes tokens that a model with
    `embeddings` rows has no embedding for; a padding token is never made of a text."""
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise UserError(f"{folder} has no tokenizer: put the model's tokenizer.json or tokenizer.model there.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises at a damaged file
        why = reason(error).removesuffix(".")
        raise UserError(f"The tokenizer in {folder} can't be read ({why}): fetch its files again.") from None
    vocabulary = tokenizer.get_vocab()
    beyond = [
        id for token, id in vocabulary.items() if embeddings and id >= embeddings and token != tokenizer.pad_token
    ]
    if beyond:
        raise UserError(
            f"The tokenizer in {folder} has tokens up to number {max(beyond)}, and the model's embedding has "
            f"{embeddings} rows: give the tokenizer that belongs to the model."
        )
    return tokenizer


def load_dense(
    card: ModelCard,
    revision: str | None,
    dtype: str,
    device: str,
    sibling: Loaded | None = None,
    *,
    in_halves: bool = False,
) -> Loaded:
    """The unquantized model, computing in `dtype` ("float32" …) on `device` ("cpu", "cuda"). What it has in common
    with a `sibling`, the same model in another setting, is held once. A model to be asked and measured, and not
    trained, takes less memory and time `in_halves` (see `Skeleton`).

    Raises UserError if its files can't be had or are damaged.
    """
    folder = folder_of(card, revision)
    skeleton = Skeleton(card, folder, getattr(torch, dtype), device, sibling, in_halves=in_halves)
    skeleton.fill_outside_blocks()
    for index in range(len(skeleton.blocks)):
        skeleton.fill_block(index)
    return skeleton.finish(stored_bits=16.0)


@torch.inference_mode()
def get_ready(loaded: Loaded) -> None:
    """Lays all stored weights of a model as kernels read them and compiles the kernels, so that no answer waits.

    Without it each is done when it is first needed.
    """
    linears = (module for module in loaded.model.modules() if isinstance(module, StoredLinear))
    warm_up((linear.weight for linear in linears), getattr(torch, loaded.dtype))
    step = step_of(loaded.model.get_decoder())
    if step:
        with parallel_kernels():  # nobody else holds this step's own lock: the model is new
            step.warm_up()


def check_pictures(card: ModelCard, revision: str | None) -> None:
    """Raises UserError, before any work, if questions about pictures can't be put to a model."""
    Skeleton(card, folder_of(card, revision), torch.float32, "cpu").load_processor()
