"""Published checkpoints as models that are ready to answer."""

from __future__ import annotations

import torch
from torch import nn

from quant_engine.formats.gguf_files import GgufFiles, model_folder
from quant_engine.formats.packed_files import PackedFiles
from quant_engine.formats.published import Published
from quant_engine.kernels.linear import HalfEmbedding, QuantEmbedding, QuantLinear, StoredLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import ModelCard
from quant_engine.models.context import CONFIG
from quant_engine.models.load import Loaded, Skeleton
from quant_engine.spec import UserError
from quant_engine.weights.half import Half
from quant_engine.weights.ledger import Ledger

DENSE_BITS = 16


def skeleton_of(published: Published, card: ModelCard, dtype: str, device: str) -> Skeleton:
    """A published checkpoint's model, to be filled from its files; `card` is that of its base model.

    Raises UserError, one sentence, for files that contradict each other or the configuration.
    """
    if not published.gguf:
        files = PackedFiles(published.folder, published.format, published.quantization)
        return Skeleton(card, published.folder, getattr(torch, dtype), device, files=files, in_halves=True)
    files = GgufFiles(published.gguf, published.config)
    folder, path = model_folder(published), str(published.gguf.path)
    try:
        return Skeleton(card, folder, getattr(torch, dtype), device, files=files, in_halves=True)
    except UserError as error:  # of the folder that was written for transformers: it says what the file does
        words = str(error).replace(str(folder / CONFIG), path).replace(str(folder), path)
        words = words.replace("its config.json", "its metadata").removesuffix(".")
        raise UserError(f"{words.rpartition(': ')[0] or words}: fetch it again, or give another file.") from None


def load_published(published: Published, card: ModelCard, dtype: str, device: str) -> Loaded:
    """The model with its weights packed as they are in the files, computing in `dtype` on `device`.

    Raises UserError as `skeleton_of` does, and for weights that can't be what their format says.
    """
    skeleton = skeleton_of(published, card, dtype, device)
    skeleton.fill_outside_blocks()
    for index in range(len(skeleton.blocks)):
        skeleton.fill_block(index)
    return skeleton.finish(linears_ledger(skeleton.blocks).bits_per_weight)


def linears_ledger(blocks: nn.ModuleList) -> Ledger:
    """The ledger of the linears in decoder blocks; those that were left as they were count 16 bits a weight."""
    return Ledger.sum(_ledger(block.get_submodule(name)) for block in blocks for name in LINEARS)


def model_ledger(model: nn.Module) -> Ledger:
    """The ledger of all of a language model's matrices, embedding and output head included; a matrix that serves as
    both counts once."""
    kinds = StoredLinear | QuantEmbedding | HalfEmbedding | nn.Linear | nn.Embedding
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return Ledger.sum(_ledger(layer) for layer in {id(layer.weight): layer for layer in layers}.values())


def _ledger(layer: nn.Module) -> Ledger:
    if isinstance(layer, QuantLinear | QuantEmbedding):
        return layer.weight.ledger()
    half = isinstance(layer.weight, Half)
    weights = layer.weight.ledger().weights if half else layer.weight.numel()
    return Ledger(weights, {"unquantized": DENSE_BITS * weights})
