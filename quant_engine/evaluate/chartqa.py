"""ChartQA: read and compare values of a chart. Score relaxed accuracy.

A prediction that parses as a number is right within 5% of a target that parses to a number other than zero (a trailing
% divides by 100); anything else must equal the target, letter case aside. Masry et al., ChartQA, arXiv 2203.10244;
details as in lmms-eval, odd ones included: no thousands separators, no stripping of spaces or final dots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from quant_engine.data.row import Answer, MaybeText, Row, Text, shortened
from quant_engine.data.sources import Source
from quant_engine.evaluate.task import HEADLINE, Part, Units
from quant_engine.evaluate.vqa import DemoItems, PublishedItems, Question, VisualQuestions
from quant_engine.results import ItemOutput

if TYPE_CHECKING:
    from PIL.Image import Image

TOLERANCE = 0.05


def parse_number(text: str) -> float | None:
    """The number that a text is, a trailing % divided out; None if it is none."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_match(prediction: str, target: str) -> bool:
    """Whether `prediction` counts as `target` under relaxed accuracy."""
    predicted, expected = parse_number(prediction), parse_number(target)
    if predicted is not None and expected:
        return abs(predicted - expected) / abs(expected) <= TOLERANCE
    return prediction.lower() == target.lower()


class _Row(Row):
    question: Text
    answer: Answer
    type: MaybeText


class _LabelRow(Row):
    """A row of a file that has labels and no types."""

    question: Text
    label: Answer
    type: MaybeText


class ChartQa(VisualQuestions):
    metric = "relaxed accuracy"
    most_tokens = 16
    suffix = "\nAnswer the question with a single word."

    def score(self, prediction: str, gold: list[str]) -> float:
        return float(any(relaxed_match(prediction, target) for target in gold))


class PublishedChartQa(PublishedItems, ChartQa):
    """The test split: 1,250 questions that people wrote and 1,250 augmented ones."""

    name = "chartqa"
    title = "ChartQA"
    help = "Questions about charts, test split; relaxed accuracy (a number may be 5% off)."
    parts: ClassVar = {"human": Part("human"), "augmented": Part("augmented")}
    source = Source("lmms-lab/ChartQA", "data/test-*.parquet", "chartqa/val.jsonl")

    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        fields = (_Row if "answer" in row or "label" not in row else _LabelRow).model_validate(row)
        category = fields.type and fields.type.removesuffix("_test")
        if category not in (None, *self.parts):
            raise ValueError(f"type is {shortened(fields.type)}, and neither human_test nor augmented_test")
        gold = [fields.answer if isinstance(fields, _Row) else fields.label]
        return Question(str(index), picture, fields.question + self.suffix, gold, category=category)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        units = super().units(outputs)
        for part in self.parts:
            units[part] = super().units([output for output in outputs if output.category == part])[HEADLINE]
        return units


class DemoChartQa(DemoItems, ChartQa):
    """ChartQA's questions and score on charts that the project draws."""

    name = "demo-chartqa"
    title = "Demo ChartQA"
    help = "Questions about drawn charts, scored as ChartQA is (relaxed accuracy)."
