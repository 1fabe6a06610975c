"""The safetensors files of a quantized checkpoint, read as a model's files: packed linears, and the rest dense."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from quant_engine.formats.contract import Format, LayoutError, Quantization
from quant_engine.models.check import StoredTensor, all_tensors, read_json
from quant_engine.models.files import ModelFiles, read_tensors
from quant_engine.spec import UserError
from quant_engine.weights.form import StoredWeight


class PackedFiles(ModelFiles):
    """A folder in one format. Raises UserError, one sentence, for linears whose tensors contradict each other."""

    def __init__(self, folder: Path, format: Format, quantization: Quantization) -> None:
        self._folder, self._format, self._quantization = folder, format, quantization
        self._linears: dict[str, dict[str, StoredTensor]] = {}
        self.stored, self.packed = {}, {}
        stored = all_tensors(folder)
        linears = {name.rpartition(".")[0] for name in stored if name.rpartition(".")[2] == format.parts[0]}
        for name, tensor in stored.items():
            path, _, part = name.rpartition(".")
            if path in linears and part in format.parts:
                self._linears.setdefault(path, {})[part] = tensor
            else:
                self.stored[name] = tensor
        for path, tensors in self._linears.items():
            name = f"{path}.weight"
            if name in self.stored:
                raise UserError(f"The weights in {folder} hold {path} twice, dense and quantized.")
            self.stored[name] = StoredTensor(tensors[format.parts[0]].file, "F16", self._shape(path, tensors))
            self.packed[name] = partial(self._weight, path)
        self._pass_over_zero_biases()

    def _shape(self, path: str, tensors: dict[str, StoredTensor]) -> tuple[int, int]:
        missing = [part for part in self._format.parts if part not in tensors and part not in self._format.optional]
        if missing:
            raise UserError(f"The weights in {self._folder} lack {path}.{missing[0]}: fetch the checkpoint again.")
        try:
            return self._format.shape(tensors, self._quantization)
        except LayoutError as error:
            raise self._contradiction(path, error) from None

    def _weight(self, path: str) -> StoredWeight:
        tensors = self._linears[path]
        read = read_tensors(self._folder, {f"{path}.{part}": tensor for part, tensor in tensors.items()})
        try:
            return self._format.weight({part: read[f"{path}.{part}"] for part in tensors}, self._quantization)
        except LayoutError as error:
            raise self._contradiction(path, error) from None

    def _contradiction(self, path: str, error: LayoutError) -> UserError:
        return UserError(f"The linear {path} in {self._folder} is no {self._format.title} linear: {error}.")

    def _pass_over_zero_biases(self) -> None:
        """AutoGPTQ gave every linear a bias, of zeros where the model has none."""
        config = read_json(self._folder / "config.json")
        if any(part.get(name) for part in _parts(config) for name in ("attention_bias", "mlp_bias")):
            return
        for path in self._linears:
            name = f"{path}.bias"
            if name in self.stored and not self.read([name])[name].any():
                del self.stored[name]

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        return read_tensors(self._folder, {name: self.stored[name] for name in names})


def _parts(config: dict) -> list[dict]:
    text_config = config.get("text_config")
    return [config, text_config] if isinstance(text_config, dict) else [config]
