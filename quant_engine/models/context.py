"""How many tokens a model reads at most, by its config.json alone: a page that loads no torch asks it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quant_engine import hub
from quant_engine.models.catalog import ModelCard, demo_folder
from quant_engine.models.check import check_unquantized, read_json
from quant_engine.spec import UserError

CONFIG = "config.json"
KEY = "max_position_embeddings"
DEFAULTS = {"llama": 2048, "mistral": 131072, "qwen2": 32768}
"""What transformers takes where a config of this type does not say it."""
FEWEST = 8


def context_length(card: ModelCard, revision: str | None) -> int | None:
    """The tokens of a model's longest text; None where its config does not say it and is of a type without default.

    Of a hub model's files only config.json is fetched. Raises UserError if it can't be had, says something else than a
    number of tokens, or says that the weights are quantized already: before gigabytes of them are fetched.
    """
    path = _folder(card, revision) / CONFIG
    config = model_config(card, revision)
    check_unquantized(config, card.title)
    return stated_length(config, path, card.pictures)


def model_config(card: ModelCard, revision: str | None) -> dict[str, Any]:
    """What a model's config.json holds. Raises UserError if it can't be had."""
    return read_json(_folder(card, revision) / CONFIG)


def stated_length(config: dict[str, Any], path: Path, pictures: bool) -> int | None:
    """The same of the configuration that was read from `path`; `pictures` says whose text_config it has."""
    text_config = (config.get("text_config") or {}) if pictures else config
    if not isinstance(text_config, dict):
        raise UserError(f"{path} says text_config {text_config!r}, where the settings of a language model belong.")
    length = text_config.get(KEY, DEFAULTS.get(text_config.get("model_type", "llama")))
    if length is None and KEY not in text_config:
        return None
    if not isinstance(length, int) or length < FEWEST:
        raise UserError(f"{path} says {KEY} {length!r}, where a whole number of tokens from {FEWEST} on belongs.")
    return length


def _folder(card: ModelCard, revision: str | None) -> Path:
    if card.origin == "demo":
        return demo_folder(card)
    if card.origin == "folder":
        return Path(card.location)
    cached = hub.find_cached(card.location, "model", revision, [CONFIG])
    return cached or hub.snapshot(card.location, "model", revision, [CONFIG], title=card.title)
