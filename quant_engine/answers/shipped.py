"""FP16's answers to the examples, computed on a large machine, for models that most can't hold in 16 bits.

There is a file for each model, which says what computed them. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from quant_engine.answers.compare import SideAnswer
from quant_engine.answers.examples import Example
from quant_engine.answers.messages import AnswerEvent, AskRequest
from quant_engine.disk import write_text
from quant_engine.folders import ASSETS
from quant_engine.results import AnswerStats
from quant_engine.spec import Identifier, Text

logger = logging.getLogger(__name__)

FOLDER = ASSETS / "answers"
MOST_TOKENS = 512
COMMAND = "python -m quant_engine answer-examples"


class ShippedAnswer(BaseModel):
    """FP16's whole answer to a question about the picture whose file has this SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture: str
    question: Text
    text: Text
    tokens: tuple[int, ...]
    stats: AnswerStats


class ShippedAnswers(BaseModel):
    """The answers of a model's `revision`, and what they were computed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Identifier
    revision: Text
    hardware: Text
    engine_commit: Text | None
    created: Text
    answers: tuple[ShippedAnswer, ...]

    @property
    def remark(self) -> str:
        """How they were made, in a sentence."""
        return f"Computed before, on {self.hardware}, {self.created[:10]}: {COMMAND} {self.model}"


def pack(
    model: str,
    revision: str,
    hardware: str,
    engine_commit: str | None,
    answered: Sequence[tuple[Example, SideAnswer]],
) -> ShippedAnswers:
    """What is shipped of a model's answers to examples; one that was cut off at MOST_TOKENS is left out."""
    answers = tuple(
        ShippedAnswer(
            picture=digest(example.picture),
            question=example.question,
            text=answer.text,
            tokens=answer.tokens,
            stats=answer.stats,
        )
        for example, answer in answered
        if answer.stats is not None and len(answer.tokens) < MOST_TOKENS
    )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return ShippedAnswers(
        model=model,
        revision=revision,
        hardware=hardware,
        engine_commit=engine_commit,
        created=created,
        answers=answers,
    )


def write(shipped: ShippedAnswers, folder: Path = FOLDER) -> Path:
    """Writes a model's answers in place of earlier ones; returns the file. Raises OSError."""
    file = _file(shipped.model, folder)
    write_text(file, shipped.model_dump_json(indent=1) + "\n")
    return file


def _file(model: str, folder: Path) -> Path:
    """Where a model's answers stand, also if its id is the path of its folder."""
    return folder / f"{Path(model).name}.json"


def digest(picture: Path) -> str:
    """What identifies a picture's file. Raises OSError."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()


@cache
def _read(file: Path) -> ShippedAnswers | None:
    """The answers in a file; None, with a line in the log, if it can't be read."""
    try:
        return ShippedAnswers.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        logger.warning("No answers from %s: it can't be read (%s).", file.name, error)
        return None


def find(request: AskRequest, side: int, folder: Path = FOLDER) -> AnswerEvent | None:
    """The end of a request's side that asks FP16 a first question about an example, if its answer ships."""
    if request.sides[side].method != "fp16" or request.image is None or request.earlier or request.prefix:
        return None
    shipped = _read(_file(request.model, folder))
    if shipped is None or shipped.model != request.model:
        return None
    try:
        picture = digest(request.image)
    except OSError:
        return None
    for answer in shipped.answers:
        fits = len(answer.tokens) <= request.max_new_tokens
        if fits and (answer.picture, answer.question) == (picture, request.question):
            return AnswerEvent(
                request_id=request.request_id,
                side=side,
                kind="done",
                text=answer.text,
                message=shipped.remark,
                stats=answer.stats,
                tokens=answer.tokens,
            )
    return None
