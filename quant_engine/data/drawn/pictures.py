"""A picture of any family, from a split and a number: the same on every machine, at every call.

Splits come from disjoint seeds. "shifted" is a test split in fonts, palettes and sizes that training never shows.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from quant_engine.data.drawn import charts, diagrams, forms, scenes
from quant_engine.data.drawn.drawing import Drawing
from quant_engine.data.drawn.questions import Question

Split = Literal["train", "val", "test", "shifted"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "shifted")
FAMILIES = {"scene": scenes.draw, "chart": charts.draw, "form": forms.draw, "diagram": diagrams.draw}


@dataclass(frozen=True)
class Picture:
    family: str
    drawing: Drawing
    questions: tuple[Question, ...]


def picture(family: str, split: Split, number: int) -> Picture:
    """The picture of a family with this number in a split. Raises KeyError for an unknown family."""
    draw = FAMILIES[family]
    if split not in SPLITS:
        raise ValueError(f"The split must be one of {', '.join(SPLITS)}, not {split!r}.")
    drawing, questions = draw(random.Random(seed(split, family, number)), shifted=split == "shifted")
    return Picture(family, drawing, tuple(questions))


def seed(split: str, *parts: object) -> int:
    """A 64-bit seed of its own for each split and each use: splits never share one."""
    text = "/".join(map(str, ("low-bit-lab demo", split, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
