"""AI2D: multiple-choice questions about diagrams. Score accuracy of the letter.

An answer that starts with a capital letter and a full stop is that letter; any other answer counts as a whole. Letter
case and punctuation aside it must equal the right letter: "A", "a." and "A. a fish" are right where A is, "A) a fish"
is not. Kembhavi et al., A diagram is worth a dozen images, arXiv 1603.07396; details as in lmms-eval.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from quant_engine.data.row import AnswerNumber, AnyText, Row, Text, check_number
from quant_engine.data.sources import Source
from quant_engine.evaluate.vqa import (
    LETTER_ONLY,
    LETTERS,
    DemoItems,
    PublishedItems,
    Question,
    VisualQuestions,
    option_lines,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.data.drawn.suite import DemoItem

_LETTER_FIRST = re.compile(r"\s*([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def letter_match(prediction: str, letter: str) -> bool:
    """Whether an answer names the option of `letter`."""
    match = _LETTER_FIRST.match(prediction)
    answer = match[1] if match else prediction
    return answer.lower().translate(_NO_PUNCTUATION) == letter.lower()


def letter_prompt(question: str, options: list[str]) -> str:
    """Question, lettered options, and the request for a letter alone."""
    return f"{question}\n{option_lines(options)}{LETTER_ONLY}"


class _Row(Row):
    question: Text
    options: list[AnyText] = Field(min_length=2, max_length=len(LETTERS))
    answer: AnswerNumber


class Ai2d(VisualQuestions):
    metric = "accuracy"
    most_tokens = 16

    def score(self, prediction: str, gold: list[str]) -> float:
        return float(any(letter_match(prediction, letter) for letter in gold))


class PublishedAi2d(PublishedItems, Ai2d):
    """The test split: 3,088 questions."""

    name = "ai2d"
    title = "AI2D"
    help = "Multiple-choice questions about science diagrams, test split; accuracy of the letter."
    source = Source("lmms-lab/ai2d", "data/test-*.parquet", "ai2d_test.parquet")

    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        fields = _Row.model_validate(row)
        options = fields.options
        check_number("answer", fields.answer, len(options))
        prompt = letter_prompt(fields.question, options)
        return Question(str(index), picture, prompt, [LETTERS[fields.answer]], options)


class DemoAi2d(DemoItems, Ai2d):
    """AI2D's questions and score on diagrams that the project draws."""

    name = "demo-ai2d"
    title = "Demo AI2D"
    help = "Multiple-choice questions about drawn diagrams, scored as AI2D is (accuracy of the letter)."

    def prompt(self, item: DemoItem) -> str:
        return letter_prompt(item.question, item.options)
