"""A model's files: where they are, what identifies them, and reading single tensors from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from quant_engine import hub
from quant_engine.models.catalog import ModelCard, demo_folder
from quant_engine.spec import UserError

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def folder_of(card: ModelCard, revision: str | None) -> Path:
    """The folder with the model's files; a hub model is fetched if needed, resuming what was begun.

    `revision` is of the hub; the files of demo and folder models are what they are. Raises UserError if the files can't
    be had, naming what to do.
    """
    if card.origin == "demo":
        folder = demo_folder(card)
        if not (folder / "complete.json").exists():
            raise UserError(f"{card.title} is not on this machine yet: run `python -m quant_engine get demo`.")
        return folder
    if card.origin == "folder":
        return Path(card.location)
    return hub.snapshot(card.location, "model", revision, PATTERNS, title=card.title)


class TensorFiles:
    """Reads tensors by name from a folder's safetensors files, without loading the rest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        try:
            if index.exists():
                self._file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
            else:
                self._file_of = {}
                for path in sorted(folder.glob("*.safetensors")):
                    with safe_open(path, "pt") as file:
                        self._file_of.update(dict.fromkeys(file.keys(), path.name))
        except (OSError, ValueError, KeyError, SafetensorError):
            raise UserError(f"The weights in {folder} are damaged; fetch the model again.") from None
        if not self._file_of:
            raise UserError(f"{folder} holds no safetensors file; other weight formats are not loaded.")

    def names(self) -> list[str]:
        return list(self._file_of)

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """The tensors of `names`. Raises UserError if a file is missing or damaged."""
        tensors = {}
        for file_name in sorted({self._file_of[name] for name in names}):
            try:
                with safe_open(self._folder / file_name, "pt") as file:
                    for name in names:
                        if self._file_of[name] == file_name:
                            tensors[name] = file.get_tensor(name)
            except (OSError, SafetensorError):
                raise UserError(
                    f"The weights file {file_name} in {self._folder} is missing or damaged; fetch the model again."
                ) from None
        return tensors
