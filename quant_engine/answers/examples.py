"""The pictures that come with the project, each with a question about it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from quant_engine.folders import ASSETS

logger = logging.getLogger(__name__)

EXAMPLES = ASSETS / "demo" / "examples" / "examples.json"


@dataclass(frozen=True)
class Example:
    """A picture that ships with the project, a question about it, and the right answer."""

    picture: Path
    question: str
    answer: str


def read_examples(file: Path = EXAMPLES) -> list[Example]:
    """The examples whose pictures are there; none, with a line in the log, if the list can't be read."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        listed = [Example(file.parent / entry["image"], entry["question"], entry["answer"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("No example pictures: %s can't be read (%s).", file.name, error)
        return []
    return [example for example in listed if example.picture.is_file()]
