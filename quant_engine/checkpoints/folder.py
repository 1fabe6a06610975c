"""A quantized model on disk: what quantization changed, block by block. The rest is read from the base model.

    BLOCK.safetensors    block BLOCK (000, 001 …): stored weights and norms; its header's metadata say the storage form
                         of each linear ("linears") and what quantizing it cost ("layers", results.LayerRecord)
    quantization.json    written last: the weights' spec, how many blocks, versions. Without it the folder is
                         unfinished, and quantization goes on behind the last finished block.
    losses.json          what each linear lost, by BLOCK.LINEAR, where the method looked at no data: written when a run
                         first measures it

Every file is written aside and renamed, so a block is whole or not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quant_engine import checkpoint_files, disk
from quant_engine.checkpoint_files import FORMAT, LOSSES, block_file, block_metadata
from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import ModelCard, fingerprint, model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import Loaded, Skeleton
from quant_engine.results import LayerRecord
from quant_engine.spec import UserError, WeightSpec
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.ledger import Ledger

ABOUT = "quantization.json"


class Checkpoint:
    """One such folder, finished or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_complete(self) -> bool:
        return (self.path / ABOUT).exists()

    def about(self) -> dict[str, Any]:
        """The content of quantization.json. Raises UserError if it is damaged or of another version."""
        try:
            about = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
            version = about["format"]
        except (OSError, ValueError, KeyError, TypeError):
            raise self._damaged() from None
        if version != FORMAT:
            raise UserError(f"The quantized weights in {self.path} were made by another version: quantize them again.")
        return about

    def spec(self) -> WeightSpec:
        """What the weights were made from. Raises UserError if that can't be read."""
        try:
            return WeightSpec(**self.about()["weights"])
        except (KeyError, TypeError, ValidationError):
            raise self._damaged() from None

    def base_model(self) -> ModelCard:
        """The model that was quantized. Raises UserError if this machine has another version of it, or knows none."""
        spec = self.spec()
        card = model_card(spec.model)
        if fingerprint(card, spec.revision) != spec.revision:
            raise UserError(f"The weights in {self.path} were made from another version of {card.title}.")
        return card

    def finished_blocks(self) -> int:
        """How many blocks, from the first on, are whole."""
        return checkpoint_files.finished_blocks(self.path)

    def save_block(self, index: int, block: nn.Module, records: list[LayerRecord]) -> None:
        """Writes a quantized block, in one step also where it replaces an older one."""
        linears = {name: block.get_submodule(name).config() for name in LINEARS}
        metadata = {"linears": linears, "layers": [record.model_dump() for record in records]}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in block.state_dict().items()}
        with disk.replacing(self._block(index)) as aside:
            save_file(tensors, aside, {name: json.dumps(value) for name, value in metadata.items()})

    def finish(self, spec: WeightSpec, **about: Any) -> None:
        """Says that all blocks are there, and what they were made from."""
        head = {"format": FORMAT, "weights": spec.model_dump(mode="json"), "blocks": self.finished_blocks()}
        disk.write_json(self.path / ABOUT, head | about)

    def files(self) -> list[Path]:
        """The files of a finished checkpoint. Raises UserError if some are missing or unreadable."""
        blocks = self.about().get("blocks")
        if blocks != self.finished_blocks() or len(self.records()) != blocks * len(LINEARS):
            raise self._damaged()
        losses = self.path / LOSSES
        return [*map(self._block, range(blocks)), *([losses] if losses.exists() else []), self.path / ABOUT]

    def equals(self, other: Checkpoint) -> bool:
        """Whether two finished checkpoints hold the same weights, however long it took to make them."""
        blocks = self.about()["blocks"]
        return blocks == other.about()["blocks"] and all(
            self._metadata(index, "linears") == other._metadata(index, "linears")
            and _same_tensors(self._block(index), other._block(index))
            for index in range(blocks)
        )

    def fill_block(self, index: int, block: nn.Module, device: str, dtype: torch.dtype) -> None:
        """Puts the stored linears and norms into an empty block. Raises UserError if the files are damaged."""
        try:
            for name, config in self._metadata(index, "linears").items():
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, QuantLinear.from_config(config))
            tensors = load_file(self._block(index), device=device)
            names = dict.fromkeys(name for name, _ in block.named_parameters())
            tensors = {name: t.to(dtype) if name in names else t for name, t in tensors.items()}
            relaid = _relaid(block)
            # The file is mapped into memory, and let go when the last weight has been re-laid for multiplying.
            tensors = {name: t if name in relaid else t.clone() for name, t in tensors.items()}
            block.load_state_dict(tensors, assign=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
            raise self._damaged() from None
        block.requires_grad_(False)

    def linears(self, index: int) -> dict[str, dict[str, Any]]:
        """What is stored of each linear of a finished block, by its name: form, sizes, bits (`QuantLinear.config`)."""
        try:
            return self._metadata(index, "linears")
        except (OSError, ValueError, KeyError, SafetensorError):
            raise self._damaged() from None

    def save_losses(self, losses: dict[str, dict[str, Any]]) -> None:
        """Adds to the records what was measured afterwards: fields of theirs, by BLOCK.LINEAR."""
        disk.write_json(self.path / LOSSES, losses)

    def records(self) -> list[LayerRecord]:
        """What each linear cost, for all finished blocks. Raises UserError if the files are damaged."""
        return checkpoint_files.layer_records(self.path)

    def _block(self, index: int) -> Path:
        return block_file(self.path, index)

    def _metadata(self, index: int, name: str) -> Any:
        return block_metadata(self._block(index), name)

    def _damaged(self) -> UserError:
        return checkpoint_files.damaged(self.path)


def _relaid(block: nn.Module) -> set[str]:
    """The tensors of weights that may be interleaved."""
    return {
        f"{path}.{name}"
        for path, module in block.named_modules()
        if isinstance(module, StoredWeight) and module.by_rows
        for name, _ in module.named_buffers(recurse=False)
    }


def _same_tensors(first: Path, second: Path) -> bool:
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def ledger_of(model: nn.Module) -> Ledger:
    """The ledger of all quantized linears of a model or block."""
    return Ledger.sum(module.weight.ledger() for module in model.modules() if isinstance(module, QuantLinear))


def load_quantized(path: Path, dtype: str, device: str, sibling: Loaded | None = None) -> Loaded:
    """The quantized model of a finished checkpoint folder, its linears packed, all else in `dtype` on `device`. What it
    has in common with a `sibling`, the same model in another setting, is held once.

    Raises UserError if files are missing or damaged.
    """
    checkpoint = Checkpoint(path)
    card, revision = checkpoint.base_model(), checkpoint.spec().revision
    folder = folder_of(card, revision)
    skeleton = Skeleton(card, folder, getattr(torch, dtype), device, sibling, in_halves=True)
    skeleton.fill_outside_blocks()
    for index, block in enumerate(skeleton.blocks):
        checkpoint.fill_block(index, block, device, skeleton.dtype)
    return skeleton.finish(ledger_of(skeleton.model).bits_per_weight)
