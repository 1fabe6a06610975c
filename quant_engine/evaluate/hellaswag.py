"""HellaSwag: how a described scene goes on. Zellers et al., arXiv 1905.07830."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from quant_engine.data.row import AnswerNumber, AnyText, Row, Text, check_number
from quant_engine.data.sources import Source
from quant_engine.evaluate.choices import ChoiceItem, MultipleChoice


def clean_text(text: str) -> str:
    """A text without the marks of the how-to articles that it comes from."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


class _Row(Row):
    activity_label: Text
    ctx_a: Text
    ctx_b: AnyText
    endings: list[Text] = Field(min_length=2)
    label: AnswerNumber


class HellaSwag(MultipleChoice):
    name = "hellaswag"
    title = "HellaSwag"
    help = "How a described scene goes on; zero-shot, validation split; acc."
    source = Source(
        "Rowan/hellaswag",
        "data/validation-*.parquet",
        "hellaswag_val.jsonl",
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
    )

    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        fields = _Row.model_validate(row)
        prompt = clean_text(f"{fields.activity_label}: {fields.ctx_a} {fields.ctx_b.capitalize()}")
        choices = [clean_text(ending) for ending in fields.endings]
        if not all(choice.strip() for choice in choices):
            raise ValueError("endings holds one of marks in brackets alone, which are left out")
        check_number("label", fields.label, len(choices))
        return ChoiceItem(
            str(index), prompt, [prompt] * len(choices), [f" {c}" for c in choices], choices, fields.label
        )
