"""Our quantized weights as a checkpoint in another program's format, wherever that can say them exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from quant_engine import disk
from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.formats import FORMATS, Format, gguf_export
from quant_engine.formats.contract import LayoutError
from quant_engine.models.architecture import LINEARS
from quant_engine.models.check import INDEX, PATTERNS, WEIGHTS, read_json
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton
from quant_engine.spec import UserError
from quant_engine.weights.form import StoredWeight

LAYOUTS: dict[str, Format] = {layout: format for format in FORMATS.values() for layout in format.layouts}
"""What can be exported to as safetensors, and the format that it is a layout of."""
GGUF = "gguf"
SHARD_BYTES = 4 * 2**30


def export(path: Path, target: Path, to: str, card: str, like: Path | None = None) -> None:
    """Writes the finished checkpoint `path` into the new folder `target`, in the layout `to`, with the text of a model
    `card`. What is not quantized is written in the type that the base model's files have; a GGUF file is one file,
    which may get the tokenizer of another GGUF file, `like`.

    Raises UserError, one sentence, if the checkpoint is unfinished, `target` is not empty, or the layout can't say the
    weights exactly; nothing is then written.
    """
    checkpoint = Checkpoint(path)
    if to not in (*LAYOUTS, GGUF):
        raise UserError(f"There is no format {to!r} to export to; choose {', '.join([*LAYOUTS, GGUF])}.")
    if like and to != GGUF:
        raise UserError(f"Leave out --like: {to} takes the files of the base model's tokenizer as they are.")
    if not checkpoint.is_complete():
        raise UserError(f"{path} holds no finished quantized weights; make them with the command quantize.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; give a new folder to write to.")
    base, spec = checkpoint.base_model(), checkpoint.spec()
    if to == GGUF and base.pictures:
        raise UserError(f"{base.title} takes pictures, and models with pictures are not written to GGUF.")
    folder = folder_of(base, spec.revision)
    skeleton = Skeleton(base, folder, getattr(torch, spec.dtype), "cpu")
    try:
        with disk.replacing_folder(target.resolve()) as aside:
            if to == GGUF:
                gguf_export.write(checkpoint, skeleton, aside, like)
            else:
                _write(checkpoint, skeleton, to, aside)
            (aside / "README.md").write_text(card, encoding="utf-8")
    except LayoutError as error:
        raise UserError(f"{path} can't be exported to {to}: {error}.") from None
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror or error}).") from None


def _write(checkpoint: Checkpoint, skeleton: Skeleton, layout: str, target: Path) -> None:
    """Writes safetensors files in a layout, with the base model's other files, into the folder `target`."""
    format, folder, weights = LAYOUTS[layout], skeleton.folder, []
    _write_shards(target, _tensors(checkpoint, skeleton, format, layout, weights))
    for file in (file for pattern in PATTERNS for file in folder.glob(pattern)):
        if file.suffix != ".safetensors" and file.name not in (INDEX, "complete.json"):
            shutil.copyfile(file, target / file.name)
    config = read_json(folder / "config.json") | {"quantization_config": format.config(weights, layout)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tensors(
    checkpoint: Checkpoint, skeleton: Skeleton, format: Format, layout: str, weights: list[StoredWeight]
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of the model under the names that its base model's files have, block by block. The stored weights
    are appended to `weights`, without their data."""
    yield skeleton.tensors_outside_blocks()
    for index, block in enumerate(skeleton.blocks):
        checkpoint.fill_block(index, block, "cpu", skeleton.dtype)
        tensors = {}
        for path in LINEARS:
            weight = block.get_submodule(path).weight
            name = skeleton.file_name(index, f"{path}.weight").removesuffix(".weight")
            tensors |= {f"{name}.{part}": tensor for part, tensor in format.write(weight, layout).items()}
            weights.append(weight.to("meta"))
        for name, parameter in block.named_parameters():
            file_name, dtype = skeleton.file_name(index, name), skeleton.file_dtype(index, name)
            narrow = parameter.data.to(dtype)
            exact = torch.equal(narrow.to(parameter.dtype), parameter.data)
            tensors[file_name] = narrow if exact else parameter.data
        skeleton.release_block(index)
        yield tensors


def _write_shards(folder: Path, parts: Iterator[dict[str, torch.Tensor]]) -> None:
    """Writes tensors as they come into files of a few gigabytes, and the index of them where there are several."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    total = 0

    def write() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.safetensors", {"format": "pt"})
        held.clear()

    for tensors in parts:
        held |= tensors
        total += sum(tensor.nbytes for tensor in tensors.values())
        if sum(tensor.nbytes for tensor in held.values()) > SHARD_BYTES:
            write()
    if held:
        write()
    if len(shards) == 1:
        (folder / "1.safetensors").rename(folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner can read
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.safetensors").rename(file)
        file.chmod(0o644)
        weight_map |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
