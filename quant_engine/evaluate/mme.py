"""MME: two yes/no questions about each picture, in fourteen categories. Score the sum of accuracy and accuracy+.

For each picture acc = 100 * (right answers / 2) and acc+ = 100 if both are right, else 0. A category scores the mean of
acc + acc+ over its pictures, at most 200. Perception is the sum over ten categories (at most 2000), cognition over four
(at most 800). Guessing scores 75 a category. Fu et al., MME, arXiv 2306.13394; details as in lmms-eval.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from quant_engine.data.row import Answer, Row, Text, shortened
from quant_engine.data.sources import Source
from quant_engine.deferred import deferred
from quant_engine.evaluate.task import HEADLINE, Part, Units, mean_and_error
from quant_engine.evaluate.vqa import DemoItems, PublishedItems, Question, VisualQuestions
from quant_engine.results import ItemOutput
from quant_engine.spec import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

suite = deferred("quant_engine.data.drawn.suite")

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ASKS_YES_OR_NO = " Please answer yes or no."
WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."


def yes_or_no(answer: str) -> str:
    """ "yes", "no", or "other" where an answer says neither."""
    text = answer.lower().strip().replace(".", "")
    if text in ("yes", "no"):
        return text
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


class _Row(Row):
    question_id: Text
    category: Text
    question: Text
    answer: Answer


class Mme(VisualQuestions):
    """A limit counts questions, rounded up to whole pairs. A unit is a picture."""

    metric = "score"
    unit = "points"
    most_tokens = 16
    suffix = WORD_OR_PHRASE
    parts: ClassVar = {"perception": Part("perception"), "cognition": Part("cognition")}

    def score(self, prediction: str, gold: list[str]) -> float:
        return float(yes_or_no(prediction) == yes_or_no(gold[0]))

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        """Pictures weighted so that their mean is the sum of the categories' means. Raises UserError without pairs."""
        scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        for output in outputs:
            scores[output.category, output.group].append(output.score)
        for (_, picture), pair in scores.items():
            _check_pair(picture, len(pair))
        parts: dict[str, dict[tuple[str, str], float]] = {HEADLINE: {}, "perception": {}, "cognition": {}}
        for key, pair in scores.items():
            points = 100 * sum(pair) / 2 + (100 if sum(pair) == 2 else 0)
            parts[HEADLINE][key] = parts["cognition" if self.is_cognition(key[0]) else "perception"][key] = points
        return {suffix: _weighted(points) for suffix, points in parts.items() if points}

    def interim_units(self, outputs: Sequence[ItemOutput]) -> Units | None:
        """None: the score is a sum over categories, which come one after the other."""
        return None

    def is_cognition(self, category: str) -> bool:
        return category in COGNITION

    def error(self, units: Units) -> float | None:
        """The standard error of a sum of means: categories are strata."""
        of_category: dict[str, list[float]] = defaultdict(list)
        for unit, points in units.items():
            of_category[unit.partition("/")[0]].append(points)
        errors = [(mean_and_error(points)[1], len(points) / len(units)) for points in of_category.values()]
        if any(error is None for error, _ in errors):
            return None
        return math.sqrt(math.fsum((error * share) ** 2 for error, share in errors))


def _check_pair(picture: str, count: int) -> None:
    if count != 2:
        raise UserError(f"MME needs two questions about each picture, and {picture} has {count}.")


def _weighted(points: dict[tuple[str, str], float]) -> Units:
    sizes = Counter(category for category, _ in points)
    return {
        f"{category}/{picture}": value * len(points) / sizes[category] for (category, picture), value in points.items()
    }


class PublishedMme(PublishedItems, Mme):
    """The test split: 1,187 pictures, 2,374 questions."""

    name = "mme"
    title = "MME"
    help = "Yes/no questions about pictures, in pairs: perception (of 2000) and cognition (of 800)."
    source = Source("lmms-lab/MME", "data/test-*.parquet", "mme_test.parquet")

    def questions(self, limit: int | None) -> list[Question]:
        of_picture: dict[tuple[str, str], list[Question]] = {}
        for question in super().questions(None):
            of_picture.setdefault((question.category, question.group), []).append(question)
        pairs = list(of_picture.values())
        for pair in pairs:
            _check_pair(pair[0].group, len(pair))
        pairs = pairs[: len(pairs) if limit is None else (limit + 1) // 2]
        return [question for pair in pairs for question in pair]

    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        fields = _Row.model_validate(row)
        if fields.category not in PERCEPTION + COGNITION:
            raise ValueError(f"category is {shortened(fields.category)}, which is none of the fourteen of MME")
        if fields.answer.strip().lower() not in ("yes", "no"):
            raise ValueError(f"answer is {shortened(fields.answer)}, and neither Yes nor No")
        prompt = fields.question.strip().replace(ASKS_YES_OR_NO, "") + self.suffix
        return Question(
            str(index), picture, prompt, [fields.answer], group=fields.question_id, category=fields.category
        )


class DemoMme(DemoItems, Mme):
    """MME's questions and score on pictures that the project draws."""

    name = "demo-mme"
    title = "Demo MME"
    help = "A yes question and a no question about each drawn picture, scored as MME is (200 points a category)."

    def is_cognition(self, category: str) -> bool:
        return category in suite.COGNITION
