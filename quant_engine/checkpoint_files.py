"""The files of a checkpoint, and what quantizing cost as they say it: for whoever looks on while it is made.

checkpoints/folder.py says what each file holds. Imports no torch, so the page reads a checkpoint with this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quant_engine import folders
from quant_engine.results import LayerRecord
from quant_engine.spec import UserError, WeightSpec, digest

FORMAT = 3
"""Raised when older checkpoints can no longer be read, or would be other weights today: they are quantized anew."""
LOSSES = "losses.json"


def checkpoint_id(spec: WeightSpec) -> str:
    """Identifies the quantized weights of a resolved spec."""
    return digest({**spec.model_dump(mode="json"), "format": FORMAT})


def checkpoint_folder(spec: WeightSpec) -> Path:
    """Where the quantized weights of a resolved spec lie, or would be written."""
    return folders.checkpoints() / checkpoint_id(spec)


def block_file(folder: Path, index: int) -> Path:
    return folder / f"{index:03}.safetensors"


def finished_blocks(folder: Path) -> int:
    """How many blocks, from the first on, are whole."""
    count = 0
    while block_file(folder, count).exists():
        count += 1
    return count


def block_metadata(file: Path, name: str) -> Any:
    """What a block's file says of "linears" or "layers". Raises OSError, ValueError, KeyError or SafetensorError."""
    with safe_open(file, "np") as opened:
        return json.loads((opened.metadata() or {})[name])


def records_of_block(file: Path) -> list[LayerRecord]:
    """What each linear of a block cost, without what was measured afterwards. Raises UserError if it is damaged."""
    try:
        return [LayerRecord(**layer) for layer in block_metadata(file, "layers")]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise damaged(file.parent) from None


def layer_records(folder: Path) -> list[LayerRecord]:
    """What each linear cost, for all finished blocks. Raises UserError if the files are damaged."""
    try:
        blocks = (block_file(folder, index) for index in range(finished_blocks(folder)))
        layers = [layer for file in blocks for layer in block_metadata(file, "layers")]
        if (folder / LOSSES).exists():
            losses = json.loads((folder / LOSSES).read_text(encoding="utf-8"))
            layers = [layer | losses[f"{layer['block']}.{layer['linear']}"] for layer in layers]
        return [LayerRecord(**layer) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise damaged(folder) from None


def damaged(folder: Path) -> UserError:
    return UserError(f"The quantized weights in {folder} are damaged: delete that folder.")
