"""Questions about a picture as a visitor asks them: the pictures that come with the project, and one question after
another to the same settings."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from quant_engine.answers.messages import AskRequest, Turn
from quant_engine.folders import ASSETS
from quant_engine.spec import UserError

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


@dataclass(frozen=True)
class Conversation:
    """The last question of a conversation and the answer of each of its sides."""

    request: AskRequest
    answers: tuple[str, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All its questions and answers."""
        return (*self.request.earlier, Turn(question=self.request.question, answers=self.answers))

    def check_follows(self, request: AskRequest) -> None:
        """Raises UserError if a question that goes on from here is to somebody else, or about another picture."""
        before = self.request
        for what, same in (
            ("model", request.model == before.model),
            ("picture", request.image == before.image),
            ("choice of settings", request.sides == before.sides),
        ):
            if not same:
                raise UserError(f"Another {what} begins a new conversation: press Ask.")
