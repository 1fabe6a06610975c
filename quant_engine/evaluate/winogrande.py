"""WinoGrande: which of two names a blank stands for. Sakaguchi et al., arXiv 1907.10641.

Each choice is filled in, and the rest of the sentence is scored: one continuation under two contexts. Lengths are the
same for both, so there is acc only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from quant_engine.data.row import AnswerNumber, Row, Text, check_number
from quant_engine.data.sources import Source
from quant_engine.evaluate.choices import ChoiceItem, MultipleChoice


class _Row(Row):
    sentence: Text
    option1: Text
    option2: Text
    answer: AnswerNumber


class WinoGrande(MultipleChoice):
    name = "winogrande"
    title = "WinoGrande"
    help = "Which of two names a blank stands for; zero-shot, XL, validation split; acc."
    parts: ClassVar = {}
    source = Source(
        "allenai/winogrande",
        "winogrande_xl/validation-*.parquet",
        "winogrande_xl_val.jsonl",
        revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    )

    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        fields = _Row.model_validate(row)
        before, _, after = fields.sentence.partition("_")
        if not after.strip():
            raise ValueError("sentence has no blank (_) with words behind it, which are what is scored")
        choices = [fields.option1, fields.option2]
        check_number("answer", fields.answer, len(choices), first=1)
        return ChoiceItem(
            str(index),
            fields.sentence,
            [before + choice for choice in choices],
            [f" {after.strip()}"] * 2,
            choices,
            fields.answer - 1,
        )
