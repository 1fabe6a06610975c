"""Pictures with questions and answers, to calibrate models that take pictures: drawn, or from a folder of one's own.

    pictures            the demo's drawn pictures of its training split (quant_engine/data/drawn)
    pictures:FOLDER     a folder with pictures and questions.jsonl: a line {"image": FILE, "question": …, "answer": …}
                        for each question

Pinned as pictures@VERSION by the version of the drawings, as pictures:FOLDER@HASH by the content. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant_engine import folders
from quant_engine.data.open_picture import open_picture
from quant_engine.deferred import deferred
from quant_engine.spec import UserError, sentence

if TYPE_CHECKING:
    from PIL.Image import Image

drawn_pictures = deferred("quant_engine.data.drawn.pictures")  # drawing loads numpy: not where text calibrates
suite = deferred("quant_engine.data.drawn.suite")

DRAWN = "pictures"
QUESTIONS = "questions.jsonl"
_FOLDER = re.compile(r"pictures:(?P<path>.+?)(@(?P<digest>[0-9a-f]{12}))?")
_VERSION = re.compile(r"pictures(@v\d+)?")
NUMBERS = 2**32
"""Drawn pictures have these numbers, far more than are ever drawn."""


@dataclass(frozen=True)
class Turn:
    """One question about one picture, and its answer, which may be empty."""

    image: Image
    question: str
    answer: str


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = ""


def named(source: str) -> bool:
    """Whether a calibration source is pictures, and not text."""
    return bool(_VERSION.fullmatch(source) or _FOLDER.fullmatch(source))


def pin(source: str) -> str:
    """`source` with what identifies its content: the same name is always the same pictures and questions.

    Raises UserError if the folder has no usable questions or pictures, or has changed since it was pinned.
    """
    folder = _FOLDER.fullmatch(source)
    if not folder:
        return _pin_drawn(source)
    path = folders.named(folder["path"]).resolve()
    total = hashlib.sha256()
    for line in _lines(path):
        total.update(line.model_dump_json().encode())
    for name in sorted({line.image for line in _lines(path)}):
        try:
            with (path / name).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            raise UserError(f"{path / QUESTIONS} names the picture {name!r}, which can't be read.") from None
    content_hash = total.hexdigest()[:12]
    if folder["digest"] not in (None, content_hash):
        raise UserError(f"The pictures in {path} have changed since this run was made; start a new run.")
    return f"pictures:{path}@{content_hash}"


def turns(source: str, seed: int) -> Iterator[Turn]:
    """Questions of a pinned source without end: a folder's in random order, all of them before any comes again."""
    rng = random.Random(seed)
    folder = _FOLDER.fullmatch(source)
    return _turns_of_folder(Path(folder["path"]), rng) if folder else _turns_drawn(rng)


def _pin_drawn(source: str) -> str:
    pinned = f"{DRAWN}@v{suite.VERSION}"
    if source not in (DRAWN, pinned):
        raise UserError("The drawn pictures have changed since this run was made; start a new run.")
    return pinned


def _turns_drawn(rng: random.Random) -> Iterator[Turn]:
    while True:
        for family in drawn_pictures.FAMILIES:
            drawn = drawn_pictures.picture(family, "train", rng.randrange(NUMBERS))
            question = rng.choice(drawn.questions)
            yield Turn(drawn.drawing.image, question.text, question.sentence or question.answer)


def _turns_of_folder(path: Path, rng: random.Random) -> Iterator[Turn]:
    lines = _lines(path)
    while True:
        rng.shuffle(lines)
        for line in lines:
            yield Turn(open_picture(path / line.image), line.question, line.answer)


def _lines(path: Path) -> list[_Line]:
    questions = path / QUESTIONS
    try:
        text = questions.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f'{questions} can\'t be read: write a line {{"image": FILE, "question": …, "answer": …}} for each question.'
        ) from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            lines.append(_Line(**json.loads(line)))
        except ValidationError as error:
            raise UserError(f"{questions}, line {number}: {sentence(error)}") from None
        except (ValueError, TypeError):
            raise UserError(f"{questions}, line {number} is no JSON object.") from None
    if not lines:
        raise UserError(f"{questions} has no question.")
    return lines
