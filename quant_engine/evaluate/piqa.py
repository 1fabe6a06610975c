"""PIQA: which of two ways of doing something works. Bisk et al., arXiv 1911.11641."""

from __future__ import annotations

from typing import Any

from quant_engine.data.row import AnswerNumber, Row, Text, check_number
from quant_engine.data.sources import Source
from quant_engine.evaluate.choices import ChoiceItem, MultipleChoice


class _Row(Row):
    goal: Text
    sol1: Text
    sol2: Text
    label: AnswerNumber


class Piqa(MultipleChoice):
    name = "piqa"
    title = "PIQA"
    help = "Which of two ways works; zero-shot, validation split; acc."
    source = Source(
        "baber/piqa", "*valid*.parquet", "piqa_val.jsonl", revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"
    )

    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        fields = _Row.model_validate(row)
        choices = [fields.sol1, fields.sol2]
        check_number("label", fields.label, len(choices))
        prompt = f"Question: {fields.goal}\nAnswer:"
        return ChoiceItem(str(index), prompt, [prompt] * 2, [f" {c}" for c in choices], choices, fields.label)
