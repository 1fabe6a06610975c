"""DocVQA: read a value off a document. Score ANLS, average normalized Levenshtein similarity.

For each reference, NL = distance(cleaned prediction, cleaned reference) / max(length of either, as given), where
cleaning lower-cases and collapses white space. The score is 1 - min NL, and 0 where that is below one half.
Biten et al., Scene text visual question answering, arXiv 1905.13648; details as in lmms-eval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from quant_engine.data.row import AnyText, Row, Text, given
from quant_engine.data.sources import Source
from quant_engine.evaluate.vqa import DemoItems, PublishedItems, Question, VisualQuestions

if TYPE_CHECKING:
    from PIL.Image import Image

THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def anls(prediction: str, references: list[str]) -> float:
    """ANLS of one answer against its references, from 0 to 1."""
    best = 1.0
    for reference in references:
        a, b = (" ".join(text.strip().lower().split()) for text in (prediction, reference))
        longest = max(len(prediction), len(reference))
        best = min(best, levenshtein(a, b) / longest if longest else 0.0)
    similarity = 1 - best
    return similarity if similarity >= THRESHOLD else 0.0


class _Row(Row):
    questionId: Text
    question: Text
    answers: Annotated[list[AnyText], BeforeValidator(given)]


class DocVqa(VisualQuestions):
    metric = "ANLS"
    most_tokens = 32
    suffix = "\nAnswer the question using a single word or phrase."

    def score(self, prediction: str, gold: list[str]) -> float:
        return anls(prediction, gold)


class PublishedDocVqa(PublishedItems, DocVqa):
    """The validation split, 5,349 questions: the test split has no published answers."""

    name = "docvqa"
    title = "DocVQA"
    help = "Questions about scanned documents, validation split; ANLS."
    source = Source("lmms-lab/DocVQA", "DocVQA/validation-*.parquet", "docvqa_validation.parquet")
    id_field = "questionId"

    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        fields = _Row.model_validate(row)
        if not any(answer.strip() for answer in fields.answers):
            raise ValueError("answers are all empty")
        return Question(fields.questionId, picture, fields.question + self.suffix, fields.answers)


class DemoDocVqa(DemoItems, DocVqa):
    """DocVQA's questions and score on forms and receipts that the project draws."""

    name = "demo-docvqa"
    title = "Demo DocVQA"
    help = "Questions about drawn forms and receipts, scored as DocVQA is (ANLS)."
