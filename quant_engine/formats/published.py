"""A published checkpoint: where it is, what it says of itself, and which model it was made from. Loads no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from quant_engine import folders, hub
from quant_engine.data.content import file_hash
from quant_engine.formats import FORMATS, Format, gguf
from quant_engine.formats.contract import LayoutError
from quant_engine.formats.gguf_header import GgufFile, read_header
from quant_engine.models import check
from quant_engine.models.catalog import FAMILIES, MODELS, ModelCard, model_card
from quant_engine.models.context import CONFIG, stated_length
from quant_engine.spec import PublishedCheckpoint, QuantSetting, UserError, digest, quoted

OLDER_CONFIGS = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ described their checkpoints before config.json did."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_BASE = re.compile(r"^base_model:[ \t]*(?:\n\s*-\s*)?[\"']?([^\s\"'\[\]]+)", re.MULTILINE)
_SAME = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
GGUF = ".gguf"
LONGEST_CARD = 2**20


@dataclass(frozen=True)
class Published:
    """A checkpoint whose files are on this machine in `folder`. `source` names it with its revision, `config` is its
    config.json; either `format` and `quantization` say how its safetensors are read, or it is the file `gguf`."""

    source: PublishedCheckpoint
    folder: Path
    config: dict[str, Any]
    setting: QuantSetting
    family: Literal["llama", "llava_next"]
    format: Format | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    gguf: GgufFile | None = None

    def context_length(self) -> int | None:
        """The tokens of its longest text; None where nothing says it."""
        return stated_length(self.config, self.folder / CONFIG, self.family == "llava_next")

    def base(self) -> ModelCard:
        """The model that its card or config names as the one that it was made from. Raises UserError if there is none
        that is known here."""
        names = [*_BASE.findall(_card_text(self.folder)), str(self.config.get("_name_or_path") or "")]
        for name in names:
            for card in MODELS.values():
                if name in (card.id, card.location):
                    return card
            if name.startswith("/") and os.path.isdir(name):
                return model_card(name)
        found = f" (its card says {quoted(names[0])})" if len(names) > 1 else ""
        raise UserError(
            f"{self.source.location} does not say which known model it was made from{found}: name it with --model."
        )

    def check_base(self, card: ModelCard, config: dict[str, Any] | None) -> None:
        """Raises UserError if the checkpoint can't have been made from a model; `config` is that model's config.json,
        where it is on this machine."""
        mine = _text(self.config)
        other = _text(config) if config else {}
        different = [name for name in _SAME if config and mine.get(name) != other.get(name)]
        if card.family != self.family or different:
            stated = f"{different[0]} is {quoted(mine.get(different[0]))}" if different else ""
            reason = stated or f"it is a {self.family} model"
            raise UserError(f"{self.source.location} was not made from {card.title} ({reason}): name its base model.")


def find(source: PublishedCheckpoint) -> Published:
    """The checkpoint that `source` names, fetched if it is in a repository of the hub.

    Raises UserError if there is none, if its files changed since its revision was stated, or if it is in no format that
    is read here.
    """
    if source.location.endswith(GGUF):
        return _gguf(source)
    of_user = folders.named(source.location)
    if of_user.is_dir():
        folder, revision, how = *_folder(source, of_user), "give it as the --model"
    else:
        folder, revision = _configuration(source)
        how = "download it, and give its folder as the --model"
    config = check.read_json(folder / CONFIG)
    quantization = check.quantization_of(config) or _older(folder)
    if not quantization:
        raise UserError(f"{source.location} is not quantized: {how}.")
    name = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(name, str) or name.lower() not in FORMATS:
        raise UserError(f"{source.location} is quantized as {quoted(name)}; what is read here is {', '.join(FORMATS)}.")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{source.location} holds a {quoted(kind)} model; only {' and '.join(FAMILIES)} models are read."
        )
    format = FORMATS[name.lower()]
    try:
        setting = format.setting(quantization)
    except LayoutError as error:
        raise UserError(f"The {format.title} checkpoint {source.location} {error}.") from None
    named = PublishedCheckpoint(location=source.location, revision=revision)
    if not of_user.is_dir():
        hub.snapshot(source.location, "model", revision, check.PATTERNS, title=source.location)
        check.check_pointers(folder)
    return Published(named, folder, config, setting, FAMILIES[kind], format, quantization)


def _gguf(source: PublishedCheckpoint) -> Published:
    """The checkpoint of a GGUF file: a path, or OWNER/NAME/FILE.gguf on the hub."""
    path = folders.named(source.location)
    if path.is_file():
        path = path.resolve()
        revision = _revision([path])
        if source.revision not in (None, revision):
            raise UserError(f"{path} is revision {revision}, not {source.revision}: it has changed.")
    else:
        repository, _, name = source.location.rpartition("/")
        if not _REPOSITORY.fullmatch(repository):
            raise UserError(f"{quoted(source.location)} is no file: give a path, or OWNER/NAME/FILE.gguf on the hub.")
        revision = hub.commit(repository, "model", source.revision, title=source.location)
        patterns = [name, "README.md"]
        folder = hub.snapshot(repository, "model", revision, patterns, title=source.location)
        path = folder / name
        if not path.is_file():
            raise UserError(f"The repository {repository} has no file {name}.")
    file = read_header(path)
    named = PublishedCheckpoint(location=source.location, revision=revision)
    return Published(named, path.parent, gguf.config(file), gguf.setting(file), "llama", gguf=file)


def _folder(source: PublishedCheckpoint, path: Path) -> tuple[Path, str]:
    """The folder with a checkpoint's files, and its revision."""
    check.check_pointers(path)
    revision = _revision([file for pattern in check.PATTERNS for file in sorted(path.glob(pattern))])
    if source.revision not in (None, revision):
        raise UserError(f"The checkpoint in {path} is revision {revision}, not {source.revision}: it has changed.")
    return path.resolve(), revision


def _configuration(source: PublishedCheckpoint) -> tuple[Path, str]:
    """The folder with what a repository of the hub says of its checkpoint, without the weights, and its commit."""
    if not _REPOSITORY.fullmatch(source.location):
        raise UserError(f"{quoted(source.location)} is no folder and no repository: give a path, or OWNER/NAME.")
    revision = hub.commit(source.location, "model", source.revision, title=source.location)
    return hub.snapshot(source.location, "model", revision, ["*.json", "README.md"], title=source.location), revision


def _revision(files: list[Path]) -> str:
    """What identifies a checkpoint's files by their content: a copy is the same checkpoint."""
    try:
        return digest([[file.name, file_hash(file)] for file in files])
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}): fetch it again.") from None


def _older(folder: Path) -> dict[str, Any] | None:
    for name in OLDER_CONFIGS:
        if (folder / name).is_file():
            stated = check.read_json(folder / name)
            return {"quant_method": "awq" if "w_bit" in stated or "zero_point" in stated else "gptq", **stated}
    return None


def _text(config: dict[str, Any]) -> dict[str, Any]:
    text_config = config.get("text_config")
    return text_config if isinstance(text_config, dict) else config


def _card_text(folder: Path) -> str:
    """The model card's first part; nothing where there is none."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_CARD)
    except OSError:
        return ""
