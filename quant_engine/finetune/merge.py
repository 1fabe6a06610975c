"""A quantized model as a plain dense one: low-rank adapters merged into what the low-bit weights stand for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.models.architecture import LINEARS
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton
from quant_engine.spec import UserError


def merge(path: Path, target: Path, dtype: str | None = None) -> None:
    """Writes the finished checkpoint `path` as a model folder that any program loads, 16 or 32 bits per weight.

    Every weight is base + scale * B A, added in float32 and rounded once to `dtype` (None: the checkpoint's own).
    Raises UserError if the checkpoint is unfinished or damaged, or `target` is not empty.
    """
    checkpoint = Checkpoint(path)
    if not checkpoint.is_complete():
        raise UserError(f"{path} holds no finished quantized weights; make them with the command quantize.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; give a new folder to write to.")
    card, spec = checkpoint.base_model(), checkpoint.spec()
    torch_dtype = getattr(torch, dtype or spec.dtype)
    skeleton = Skeleton(card, folder_of(card, spec.revision), torch_dtype, "cpu")
    skeleton.fill_outside_blocks()
    for index, block in enumerate(skeleton.blocks):
        checkpoint.fill_block(index, block, "cpu", torch_dtype)
        for name in LINEARS:
            packed = block.get_submodule(name)
            dense = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(packed.weight.dequantize().to(torch_dtype), requires_grad=False)
            dense.bias = packed.bias
            parent, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(parent), leaf, dense)
    loaded = skeleton.finish(stored_bits=16.0)
    try:
        loaded.model.save_pretrained(target)
        (loaded.processor or loaded.tokenizer).save_pretrained(target)
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror}).") from None
