"""Pictures with questions and answers, to calibrate models that take pictures: drawn, or from a folder of one's own.

    pictures            the demo's drawn pictures of its training split (quant_engine/data/drawn)
    pictures:FOLDER     a folder with pictures and questions.jsonl: a line {"image": FILE, "question": …, "answer": …}
                        for each question

Pinned as pictures@VERSION by the version of the drawings, as pictures:FOLDER@HASH by the content. Imports no torch.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import AfterValidator, ValidationError

from quant_engine import folders
from quant_engine.data import files
from quant_engine.data.open_picture import open_picture
from quant_engine.data.row import MaybeText, Row, Text, problem
from quant_engine.deferred import deferred
from quant_engine.spec import UserError

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

    image: Image.Image
    question: str
    answer: str


class _Line(Row):
    image: Text
    question: Text
    answer: Annotated[MaybeText, AfterValidator(lambda text: text or "")]


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
    lines = _lines(path)
    for _, line in lines:
        total.update(line.model_dump_json().encode())
    for picture, name in sorted({line.image: name for name, line in reversed(lines)}.items()):
        try:
            with (path / picture).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
                Image.open(file).close()  # its head alone
        except Exception:  # Pillow's readers raise anything on what is no picture
            raise UserError(f"{path / QUESTIONS}, {name} names the picture {picture!r}, which can't be read.") from None
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
        for name, line in lines:
            try:
                yield Turn(open_picture(path / line.image), line.question, line.answer)
            except UserError as error:
                raise UserError(f"{path / QUESTIONS}, {name}: {error}") from None


def _lines(path: Path) -> list[tuple[str, _Line]]:
    """The questions of a folder, each behind what its line is called."""
    questions = path / QUESTIONS
    if not questions.is_file():
        raise UserError(
            f'{questions} can\'t be read: write a line {{"image": FILE, "question": …, "answer": …}} for each question.'
        )
    lines = []
    for name, row in files.json_rows(questions):
        try:
            lines.append((name, _Line.model_validate(row)))
        except ValidationError as error:
            raise UserError(f"{questions}, {name}: {problem(error)}.") from None
    if not lines:
        raise UserError(f"{questions} has no question.")
    return lines
