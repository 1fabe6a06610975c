"""What a model folder says wrongly, found before any work: pointers in place of files, weights that are quantized
already or not all there, files that are cut off. Loads no torch; what needs the model is held against it in load.py.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_engine.deferred import deferred
from quant_engine.spec import UserError, quoted

safetensors = deferred("safetensors")

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""The files of a model folder that anything here reads."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A tokenizer is in one of these files; vocab.json goes with merges.txt."""
DENSE = ("F32", "F16", "BF16", "F64")
QUANTIZED = (
    *("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2"),
    *("weight_zero_point", "input_scale", "absmax", "quant_map", "SCB", "weight_format"),
)
"""Last parts of the names of tensors that other programs store quantized weights in."""
LONGEST_REASON = 300
LONGEST_NAME, MOST_DIMENSIONS = 300, 8
"""More than what tensors have, and no more than a sentence about them can hold."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the few lines begin that Git LFS leaves where a large file should be."""
_LARGEST_POINTER = 1024


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header describes it. `dtype` is safetensors' name, such as "BF16"."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def check_folder(folder: Path) -> None:
    """Raises UserError, one sentence, unless the folder holds a whole unquantized model, as far as can be seen without
    building it. Tensors are neither read nor held against the model."""
    check_pointers(folder)
    check_unquantized(read_json(folder / "config.json"), str(folder))
    stored_tensors(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it can't be read as one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: give a complete model folder.") from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} can't be read as JSON: fetch that file again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: fetch that file again.")
    return content


def check_pointers(folder: Path) -> None:
    """Raises UserError if a file is a Git LFS pointer, the few lines that stand where the file itself should be, or
    what has its name is a folder, a pipe or a link to nothing."""
    for path in sorted(path for pattern in PATTERNS for path in folder.glob(pattern)):
        try:
            state = path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise UserError(f"{path} is no file: remove it, and fetch that file again.")
            if state.st_size <= _LARGEST_POINTER and path.read_bytes().startswith(LFS_POINTER):
                raise UserError(f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in {folder}.")
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}): remove it, and fetch that file again.") from None


def check_unquantized(config: dict[str, Any], where: str) -> None:
    """Raises UserError if a configuration says that its weights are quantized; `where` says whose it is."""
    quantization = quantization_of(config)
    if quantization:
        raise UserError(
            f"{where} is quantized already ({_format(quantization)}): give the unquantized model that it was made from."
        )


def quantization_of(config: dict[str, Any]) -> Any:
    """What a configuration says of how its weights are quantized; None if it says nothing."""
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        quantization = part.get("quantization_config") or part.get("compression_config")
        if quantization:
            return quantization
    return None


def _format(quantization: Any) -> str:
    """A quantization_config in words, such as "gptq, 4 bits"."""
    if not isinstance(quantization, dict):
        return "quantization_config in config.json"
    method = quantization.get("quant_method") or quantization.get("quant_algo") or "quantization_config in config.json"
    bits = quantization.get("bits") or quantization.get("w_bit")
    detail = f"{bits} bits" if bits else quantization.get("format") or quantization.get("fmt")
    return f"{method}, {detail}" if detail else str(method)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of an unquantized model's weights by name. Raises UserError as `all_tensors` does, and if weights
    are quantized already."""
    tensors = all_tensors(folder)
    quantized = next((name for name in tensors if name.rpartition(".")[2] in QUANTIZED), None)
    if quantized:
        raise UserError(
            f"{folder} is quantized already (it holds {quantized}): give the unquantized model that it was made from."
        )
    return tensors


def all_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's weights by name, in the files that transformers would read.

    Raises UserError if a file is missing or cut off, or a name stands in two files.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in _header(folder, file).items():
            if name in tensors:
                raise UserError(
                    f"The weights in {folder} hold {name} twice, in {tensors[name].file} and {file}: remove the file "
                    "that is left over from another save."
                )
            tensors[name] = tensor
    if not tensors:
        raise UserError(f"The weights in {folder} hold no tensor: fetch the model again.")
    return tensors


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights: model.safetensors, else those that the index names.

    So does transformers, which takes no other name. Raises UserError if they are not there, or not all.
    """
    explicit = read_json(folder / "config.json").get("transformers_weights")
    if explicit:
        raise UserError(
            f"{folder / 'config.json'} names weights of its own (transformers_weights: {explicit!r}), which are not "
            "loaded: remove that field and call the file model.safetensors."
        )
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        found = f" (it holds {others[0]})" if others else ""
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}{found}: its weights are not on this machine, or in a form "
            "that is not loaded; fetch the model again, or save it as safetensors."
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files: fetch that file again.")
    elsewhere = [file for file in weight_map.values() if not _is_file_name(file)]
    if elsewhere:
        name = quoted(elsewhere[0])
        raise UserError(f"{folder / INDEX} names {name}, which is no file of its folder: fetch that file again.")
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"The weights are not all on this machine: {len(missing)} of {len(files)} files of {folder} are missing, "
            f"such as {missing[0]}; fetch the model again."
        )
    return files


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", "..") and Path(value).name == value and value.isprintable()


def _header(folder: Path, file: str) -> dict[str, StoredTensor]:
    """The tensors that a file's header names. safetensors holds the header against the file's size."""
    try:
        with safetensors.safe_open(folder / file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            tensors = {name: StoredTensor(file, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        names = _names(folder / file)
    except (OSError, ValueError, safetensors.SafetensorError):
        raise UserError(f"The weights file {folder / file} is cut off or damaged: fetch that file again.") from None
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"The weights file {folder / file} holds {quoted(twice)} twice: fetch that file again.")
    for name, tensor in tensors.items():
        if not name or not name.isprintable() or len(name) > LONGEST_NAME or len(tensor.shape) > MOST_DIMENSIONS:
            raise UserError(
                f"The weights file {folder / file} is damaged (it holds a tensor {quoted(name)} of {len(tensor.shape)} "
                "dimensions): fetch that file again."
            )
    return tensors


def _names(path: Path) -> list[str]:
    """The names in the header of a file that safetensors has read: of a name that is there twice it takes the last."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return [name for name, _ in json.loads(file.read(size).decode(), object_pairs_hook=list)]


def reason(error: Exception) -> str:
    """What a library says of a file: its first sentence, or the beginning of a long one."""
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.split(r"[.!?] (?=[A-Z])", words)[0]
    if len(words) > LONGEST_REASON:
        words = f"{words[:LONGEST_REASON].rpartition(' ')[0]} …"
    return words if words.endswith(".") else words + "."
