"""The safetensors files of a quantized checkpoint, read as a model's files: packed linears, and the rest dense."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch

from quant_engine.formats.contract import Format, LayoutError, Quantization, ReadTensor
from quant_engine.models.check import DENSE, StoredTensor, all_tensors, read_json
from quant_engine.models.files import ModelFiles, read_tensors
from quant_engine.spec import UserError
from quant_engine.weights.form import StoredWeight

LARGEST_SMALL = 4096
"""Values of a tensor that is read before its linear is."""
_SMALL = ("U8", "I32", "I64")
"""Types of such tensors; any other is refused unread."""


class PackedFiles(ModelFiles):
    """A folder in one format. Raises UserError, one sentence, for linears whose tensors contradict each other."""

    def __init__(self, folder: Path, format: Format, quantization: Quantization) -> None:
        self.where, self._format, self._quantization = folder, format, quantization
        self._linears: dict[str, dict[str, StoredTensor]] = {}
        self.stored, self.packed = {}, {}
        stored = all_tensors(folder)
        found = {name: self._linear_and_part(name) for name in stored}
        linears = {path for path, part in found.values() if part in format.marks}
        for name, tensor in stored.items():
            path, part = found[name]
            if path in linears:
                self._linears.setdefault(path, {})[part] = tensor
                continue
            if part not in ("", "weight") or (part == "weight" and tensor.dtype not in DENSE):
                marks = " or ".join(f"{path}.{mark}" for mark in format.marks)
                raise UserError(f"The weights in {folder} hold {name} and lack {marks}: fetch the checkpoint again.")
            self.stored[name] = tensor
        self._read_small()
        for path, tensors in self._linears.items():
            name = f"{path}.weight"
            if name in self.stored:
                raise UserError(
                    f"The weights in {folder} hold {path} twice, dense and quantized: fetch the checkpoint again."
                )
            file = next(iter(tensors.values())).file
            self.stored[name] = StoredTensor(file, "F16", self._shape(path, tensors))
            self.packed[name] = partial(self._weight, path)
        self._pass_over_zero_biases()

    def _linear_and_part(self, name: str) -> tuple[str, str]:
        """The linear of a tensor and the last part of its name, if that is one of the format's."""
        for part in self._format.parts:
            if name.endswith(f".{part}"):
                return name.removesuffix(f".{part}"), part
        return "", ""

    def _read_small(self) -> None:
        wanted = {
            f"{path}.{part}": tensor
            for path, tensors in self._linears.items()
            for part, tensor in tensors.items()
            if part in self._format.small and tensor.dtype in _SMALL and math.prod(tensor.shape) <= LARGEST_SMALL
        }
        for name, values in read_tensors(self.where, wanted).items():
            path, part = self._linear_and_part(name)
            tensor = self._linears[path][part]
            self._linears[path][part] = ReadTensor(tensor.file, tensor.dtype, tensor.shape, values)

    def _shape(self, path: str, tensors: dict[str, StoredTensor]) -> tuple[int, int]:
        missing = [part for part in self._format.parts if part not in tensors and part not in self._format.optional]
        if missing:
            raise UserError(f"The weights in {self.where} lack {path}.{missing[0]}: fetch the checkpoint again.")
        try:
            return self._format.shape(tensors, self._quantization)
        except LayoutError as error:
            raise self._contradiction(path, error) from None

    def _weight(self, path: str) -> StoredWeight:
        tensors = self._linears[path]
        read = read_tensors(self.where, {f"{path}.{part}": tensor for part, tensor in tensors.items()})
        try:
            return self._format.weight({part: read[f"{path}.{part}"] for part in tensors}, self._quantization)
        except LayoutError as error:
            raise self._contradiction(path, error) from None

    def _contradiction(self, path: str, error: LayoutError) -> UserError:
        file = self.where / next(iter(self._linears[path].values())).file
        return UserError(
            f"The linear {path} in {file} is no {self._format.title} linear ({error}): fetch the checkpoint again, or "
            "quantize its model anew."
        )

    def _pass_over_zero_biases(self) -> None:
        """AutoGPTQ gave every linear a bias, of zeros where the model has none."""
        config = read_json(self.where / "config.json")
        if any(part.get(name) for part in _parts(config) for name in ("attention_bias", "mlp_bias")):
            return
        for path in self._linears:
            name = f"{path}.bias"
            dense = name in self.stored and self.stored[name].dtype in DENSE
            if dense and not self.read([name])[name].any():
                del self.stored[name]

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        return read_tensors(self.where, {name: self.stored[name] for name in names})


def _parts(config: dict) -> list[dict]:
    text_config = config.get("text_config")
    return [config, text_config] if isinstance(text_config, dict) else [config]
