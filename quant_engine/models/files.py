"""A model's files: where they are, and reading single tensors from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from quant_engine import hub
from quant_engine.models.catalog import ModelCard, demo_folder
from quant_engine.models.check import PATTERNS, StoredTensor, check_folder, stored_tensors
from quant_engine.spec import UserError
from quant_engine.weights.form import StoredWeight


def folder_of(card: ModelCard, revision: str | None) -> Path:
    """The folder with a model's files, checked; a hub model is fetched if needed, resuming what was begun.

    `revision` is of the hub; the files of demo and folder models are what they are. Raises UserError if the files can't
    be had or are not a whole unquantized model, naming what to do.
    """
    if card.origin == "demo":
        folder = demo_folder(card)
        if not (folder / "complete.json").exists():
            raise UserError(f"{card.title} is not on this machine yet: run `python -m quant_engine get demo`.")
    elif card.origin == "folder":
        folder = Path(card.location)
    else:
        folder = hub.snapshot(card.location, "model", revision, PATTERNS, title=card.title)
    check_folder(folder)
    return folder


class ModelFiles:
    """The tensors of a model's files by name: dense ones, and weights that are packed there.

    `stored` describes them all as a dense model would have them; `packed` gives those that are quantized in the files,
    each in a storage form.
    """

    where: Path
    """The folder or the file that they are in, for a sentence."""
    stored: Mapping[str, StoredTensor]
    packed: Mapping[str, Callable[[], StoredWeight]]

    def described(self, name: str) -> str:
        """A tensor's name in its file, and where that is, for a sentence."""
        return f"{name} in {self.where}"

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """The dense tensors of `names`. Raises UserError if a file is gone or damaged, or a value is no finite
        number."""
        raise NotImplementedError


class TensorFiles(ModelFiles):
    """An unquantized model's safetensors files, read tensor by tensor, without loading the rest."""

    def __init__(self, folder: Path) -> None:
        self.where = folder
        self.stored = stored_tensors(folder)
        self.packed = {}

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        return read_tensors(self.where, {name: self.stored[name] for name in names})


def read_tensors(folder: Path, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors that `stored` names, from the safetensors files of a folder. Raises UserError if a file is gone or
    damaged, or a value is no finite number."""
    tensors = {}
    for file_name in sorted({tensor.file for tensor in stored.values()}):
        try:
            with safe_open(folder / file_name, "pt") as file:
                for name, tensor in stored.items():
                    if tensor.file == file_name:
                        tensors[name] = file.get_tensor(name)
        except (OSError, SafetensorError):
            raise UserError(
                f"The weights file {file_name} in {folder} is missing or damaged; fetch the model again."
            ) from None
    for name, tensor in tensors.items():
        check_finite(tensor, name, folder / stored[name].file)
    return tensors


def check_finite(tensor: torch.Tensor, name: str, file: Path) -> None:
    """Raises UserError if a value of a file's tensor is NaN or infinite."""
    if not all_finite(tensor):
        raise UserError(
            f"The tensor {name} in {file} has values that are not finite (NaN or infinity): save or fetch the model "
            "again."
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite: the extremes would be. A tensor without values has none."""
    if tensor.dtype == torch.float8_e4m3fn:  # its extremes are not computed; it has NaN, and no infinity
        return not (tensor.view(torch.uint8) & 127 == 127).any()
    return tensor.numel() == 0 or all(extreme.isfinite() for extreme in tensor.aminmax())
