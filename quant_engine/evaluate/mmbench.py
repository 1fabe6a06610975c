"""MMBench-EN: multiple-choice questions, each asked once for every rotation of its options. Score circular accuracy.

A question is a hit only if all of its rotations are answered right. How a letter is found in an answer, in this order:

1. exactly one of A to E stands alone among the words (unless one of more than three words is "A", the article);
2. else exactly one of them stands as a word in one of the forms A. A, A: A) A). (A) (A). :A :A, :A. :A) :A).;
3. else exactly one option's text occurs in the answer, letter case aside;
4. else the rules of `rule_based_letter`.

Step 4 is the "static" variant: the original asks a language model there, which needs a network and changes its mind.
Liu et al., MMBench, arXiv 2307.06281; details as in lmms-eval's mmbench_en_dev_static.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quant_engine.data.drawn.questions import choice_prompt
from quant_engine.data.sources import Rows, Source
from quant_engine.evaluate.task import HEADLINE, Units
from quant_engine.evaluate.vqa import LETTER_ONLY, DemoItems, PublishedItems, Question, VisualQuestions, option_lines
from quant_engine.results import ItemOutput
from quant_engine.spec import UserError

if TYPE_CHECKING:
    from quant_engine.data.drawn.suite import DemoItem

LETTERS = "ABCDE"
WITH_TEXT = "ABCD"  # the reference looks for the texts of these options only
ROTATION = 1_000_000  # a rotated copy has its question's index plus a multiple of this
OPTIONS_HEADER = "There are several options:"
AFFIXES = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
LONGEST_WITHOUT_ARTICLE = 3

PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def inferred_letter(answer: str, options: Sequence[str]) -> str | None:
    """Steps 1 to 3: the letter that an answer names by itself or by its option's text; None if unclear."""
    words = answer.split()
    alone = [letter for letter in LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > LONGEST_WITHOUT_ARTICLE):
        return alone[0]
    for before, after in AFFIXES:
        found = [letter for letter in LETTERS if before + letter + after in words]
        if len(found) == 1:
            return found[0]
    said = answer.lower()
    named = [letter for letter, option in zip(WITH_TEXT, options, strict=False) if option.lower() in said]
    return named[0] if len(named) == 1 else None


def rule_based_letter(answer: str, letters: str) -> str | None:
    """Step 4: the most telling place in an answer where one of `letters` stands; of equal ones the last.

    Most telling first: the whole answer starts with the letter; ends with it; a phrase such as "the answer is" comes
    before it; (A); A.; A:; A); A and a space; failing all these, anywhere.
    """
    text = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        text = text.strip(mark)
    padded, bare = f" {text} ", text.strip()
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(padded), letter))
        forms = (f"({letter})", f"{letter}.", f"{letter}:", f"{letter})", f"{letter} ")
        found += [(6 - place, padded.rfind(form), letter) for place, form in enumerate(forms) if form in padded]
    lowered = padded.lower()
    for phrase in PHRASES:
        start = lowered.find(phrase)
        if start >= 0:
            after = [(padded.find(letter, start + len(phrase)), letter) for letter in letters]
            found += [(7, place, letter) for place, letter in after if place >= 0]
    if not found:
        found = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(found)[2] if found else None


def answered_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of an answer to a question with these options, by all four steps."""
    return inferred_letter(answer, options) or rule_based_letter(answer, WITH_TEXT[: len(options)])


class MmBench(VisualQuestions):
    """A limit counts questions, each with all its rotations."""

    metric = "circular accuracy"
    most_tokens = 1024

    def score(self, prediction: str, gold: list[str]) -> float:
        raise TypeError("An answer to MMBench is scored with its options: use score_question.")

    def score_question(self, prediction: str, question: Question) -> float:
        return float(answered_letter(prediction, question.options) in question.gold)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        hits: Units = {}
        for output in outputs:
            hits[output.group] = min(hits.get(output.group, 100.0), 100 * output.score)
        return {HEADLINE: hits}


class PublishedMmBench(PublishedItems, MmBench):
    """The English dev split: 1,164 questions, 4,329 with their rotations."""

    name = "mmbench_en"
    title = "MMBench-EN"
    help = "Multiple choice about pictures, English dev split, every rotation right; letters found by rules, no judge."
    source = Source("lmms-lab/MMBench", "en/dev-*.parquet", "mmbench_en_dev.parquet")
    id_field = "index"

    def questions(self, limit: int | None) -> list[Question]:
        rows = self.rows()
        places: dict[int, list[int]] = {}
        for place, index in sorted(enumerate(rows.column("index")), key=lambda pair: int(pair[1])):
            places.setdefault(int(index) % ROTATION, []).append(place)
        base = [
            question
            for question, rotations in places.items()
            if int(rows[rotations[0]]["index"]) == question  # rotations of a question that is not there are left out
        ]
        return [self.question(rows, place) for question in base[:limit] for place in places[question]]

    def question(self, rows: Rows, index: int) -> Question:
        row = rows[index]
        options = [text for text in (given(row.get(letter)) for letter in LETTERS) if text is not None]
        hint = given(row.get("hint"))
        asked = f"{hint} {row['question']}" if hint is not None else row["question"]
        if row["answer"] not in LETTERS[: len(options)]:
            raise UserError(f"MMBench item {row['index']} has the answer {row['answer']!r}, which is no option of it.")
        return Question(
            str(row["index"]),
            lambda: rows.picture(index),
            f"{asked} {OPTIONS_HEADER}\n{option_lines(options)}\n{LETTER_ONLY}",
            [row["answer"]],
            options,
            group=str(int(row["index"]) % ROTATION),
            category=row.get("category"),
        )


def given(value: object) -> str | None:
    """A field's text; None for one that the set leaves out, which it also writes as "nan"."""
    text = "" if value is None else str(value)
    return None if text in ("", "nan") else text


class DemoMmBench(DemoItems, MmBench):
    """MMBench's questions and score on pictures that the project draws."""

    name = "demo-mmbench"
    title = "Demo MMBench"
    help = "Multiple choice about drawn pictures, every rotation right, scored as MMBench is."
    most_tokens = 16  # drawn questions are answered in a word; a model that rambles need not be heard out

    def prompt(self, item: DemoItem) -> str:
        return choice_prompt(item.question, item.options, header=True)
