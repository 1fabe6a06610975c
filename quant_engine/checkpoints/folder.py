"""A quantized model on disk: what quantization changed, block by block. The rest is read from the base model.

    BLOCK.safetensors    block BLOCK (000, 001 …): stored weights and norms
    BLOCK.json           storage form of each linear, and what quantizing it cost (spec.LayerRecord)
    quantization.json    written last: model, setting, calibration, versions. Without it the folder is unfinished,
                         and quantization goes on behind the last finished block.

Every file is written aside and renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quant_engine.kernels.linear import QuantLinear
from quant_engine.kernels.matmul import warm_up
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import LINEARS, Loaded, Skeleton
from quant_engine.results import LayerRecord
from quant_engine.spec import UserError
from quant_engine.weights.ledger import Ledger

FORMAT = 1
"""Raised when older checkpoints can no longer be read: they are then quantized anew."""


class Checkpoint:
    """One such folder, finished or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_complete(self) -> bool:
        return (self.path / "quantization.json").exists()

    def about(self) -> dict[str, Any]:
        return self._json("quantization.json")

    def finished_blocks(self) -> int:
        """How many blocks, from the first on, are whole."""
        count = 0
        while (self.path / f"{count:03}.json").exists():
            count += 1
        return count

    def save_block(self, index: int, block: nn.Module, records: list[LayerRecord]) -> None:
        """Keeps a quantized block. Its JSON comes last, and says that the block is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in block.state_dict().items()}
        weights = self.path / f"{index:03}.safetensors"
        aside = weights.with_suffix(".part")
        save_file(tensors, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(weights)
        body = {
            "linears": {name: block.get_submodule(name).config() for name in LINEARS},
            "layers": [record.model_dump() for record in records],
        }
        self._write_json(f"{index:03}.json", body)

    def finish(self, about: dict[str, Any]) -> None:
        self._write_json("quantization.json", about)

    def fill_block(self, index: int, block: nn.Module, device: str, dtype: torch.dtype) -> None:
        """Puts the stored linears and norms into an empty block. Raises UserError if the files are damaged."""
        try:
            for name, config in self._json(f"{index:03}.json")["linears"].items():
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, QuantLinear.from_config(config))
            tensors = load_file(self.path / f"{index:03}.safetensors", device=device)
            names = dict.fromkeys(name for name, _ in block.named_parameters())
            tensors = {name: t.to(dtype) if name in names else t for name, t in tensors.items()}
            block.load_state_dict(tensors, assign=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
            raise UserError(f"The quantized weights in {self.path} are damaged: delete that folder.") from None
        block.requires_grad_(False)

    def records(self) -> list[LayerRecord]:
        """What each linear cost, for all finished blocks."""
        return [
            LayerRecord(**record)
            for index in range(self.finished_blocks())
            for record in self._json(f"{index:03}.json")["layers"]
        ]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"The quantized weights in {self.path} are damaged: delete that folder.") from None

    def _write_json(self, name: str, body: dict[str, Any]) -> None:
        aside = self.path / f"{name}.part"
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(body, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path / name)


def ledger_of(model: nn.Module) -> Ledger:
    """The ledger of all quantized linears of a model or block."""
    return Ledger.sum(module.weight.ledger() for module in model.modules() if isinstance(module, QuantLinear))


def load_quantized(path: Path, dtype: str, device: str) -> Loaded:
    """The quantized model of a finished checkpoint folder, its linears packed, all else in `dtype` on `device`.

    Raises UserError if files are missing or damaged.
    """
    checkpoint = Checkpoint(path)
    about = checkpoint.about()
    card = model_card(about["model"])
    skeleton = Skeleton(card, folder_of(card, about["hub_revision"]), getattr(torch, dtype), device)
    skeleton.fill_outside_blocks()
    for index, block in enumerate(skeleton.blocks):
        checkpoint.fill_block(index, block, device, skeleton.dtype)
    linears = (module for module in skeleton.model.modules() if isinstance(module, QuantLinear))
    warm_up((linear.weight for linear in linears), skeleton.dtype)
    return skeleton.finish(ledger_of(skeleton.model).bits_per_weight)
