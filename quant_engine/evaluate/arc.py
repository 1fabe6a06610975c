"""ARC: science questions of school exams, in an easy and a challenge set. Clark et al., arXiv 1803.05457.

Choices are scored by their texts, not their letters; the keys 1 to 5 of some questions stand for A to E.
"""

from __future__ import annotations

from typing import Any

from quant_engine.data.sources import Source
from quant_engine.evaluate.choices import ChoiceItem, MultipleChoice

_REPOSITORY, _REVISION = "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"


class Arc(MultipleChoice):
    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        if "query" in row:
            prompt, choices, gold = row["query"], row["choices"], int(row["gold"])
        else:
            prompt, choices = f"Question: {row['question']}\nAnswer:", row["choices"]["text"]
            gold = [_letter(label) for label in row["choices"]["label"]].index(_letter(row["answerKey"]))
        count = len(choices)
        return ChoiceItem(str(row["id"]), prompt, [prompt] * count, [f" {c}" for c in choices], list(choices), gold)


def _letter(key: str) -> str:
    return "ABCDE"[int(key) - 1] if key.isdigit() else key


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
