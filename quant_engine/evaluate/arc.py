"""ARC: science questions of school exams, in an easy and a challenge set. Clark et al., arXiv 1803.05457.

Choices are scored by their texts, not their letters; the keys 1 to 5 of some questions stand for A to E.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from quant_engine.data.row import Answer, AnswerNumber, Row, Text, check_number, shortened
from quant_engine.data.sources import Source
from quant_engine.evaluate.choices import ChoiceItem, MultipleChoice

_REPOSITORY, _REVISION = "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"


class _Choices(Row):
    text: list[Text] = Field(min_length=2)
    label: list[Text]


class _Row(Row):
    """A row as the hub has it, or as the authors' own files do, whose question holds its choices."""

    id: Text
    question: Text
    choices: _Choices
    answerKey: Answer

    @model_validator(mode="before")
    @classmethod
    def _from_stem(cls, row: Any) -> Any:
        question = row.get("question") if isinstance(row, dict) else None
        if not isinstance(question, dict) or not isinstance(question.get("choices"), list):
            return row
        choices = [choice if isinstance(choice, dict) else {} for choice in question["choices"]]
        lists = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
        return row | {"question": question.get("stem"), "choices": lists}


class _ReadyRow(Row):
    """A row with a prompt that is written out, and the number of the right choice."""

    id: Text
    query: Text
    choices: list[Text] = Field(min_length=2)
    gold: AnswerNumber


class Arc(MultipleChoice):
    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        if "query" in row:
            fields = _ReadyRow.model_validate(row)
            check_number("gold", fields.gold, len(fields.choices))
            return _item(fields.id, fields.query, fields.choices, fields.gold)
        fields = _Row.model_validate(row)
        letters = [_letter(label) for label in fields.choices.label]
        if len(letters) != len(fields.choices.text) or letters.count(_letter(fields.answerKey)) != 1:
            labels = shortened(", ".join(letters))
            raise ValueError(f"answerKey is {shortened(fields.answerKey)}, and the choices' labels are {labels}")
        prompt = f"Question: {fields.question}\nAnswer:"
        return _item(fields.id, prompt, fields.choices.text, letters.index(_letter(fields.answerKey)))


def _item(row_id: str, prompt: str, choices: list[str], gold: int) -> ChoiceItem:
    return ChoiceItem(row_id, prompt, [prompt] * len(choices), [f" {choice}" for choice in choices], choices, gold)


def _letter(key: str) -> str:
    return {"1": "A", "2": "B", "3": "C", "4": "D", "5": "E"}.get(key, key)


class ArcEasy(Arc):
    name = "arc_easy"
    title = "ARC-Easy"
    help = "School exam questions that simple methods can answer; zero-shot, test split; acc."
    source = Source(_REPOSITORY, "ARC-Easy/test-*.parquet", "arc_easy_test.jsonl", revision=_REVISION)


class ArcChallenge(Arc):
    name = "arc_challenge"
    title = "ARC-Challenge"
    help = "School exam questions that simple methods can't answer; zero-shot, test split; acc."
    source = Source(_REPOSITORY, "ARC-Challenge/test-*.parquet", "arc_challenge_test.jsonl", revision=_REVISION)
