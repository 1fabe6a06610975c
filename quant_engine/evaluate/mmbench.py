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

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from quant_engine.data.drawn.questions import choice_prompt
from quant_engine.data.row import Answer, MaybeText, Number, Row, Text, shortened
from quant_engine.data.sources import Source
from quant_engine.evaluate.task import HEADLINE, Units
from quant_engine.evaluate.vqa import LETTER_ONLY, DemoItems, PublishedItems, Question, VisualQuestions, option_lines
from quant_engine.results import ItemOutput
from quant_engine.spec import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

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
        affixed = [letter for letter in LETTERS if before + letter + after in words]
        if len(affixed) == 1:
            return affixed[0]
    lowered = answer.lower()
    named = [letter for letter, option in zip(WITH_TEXT, options, strict=False) if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


def rule_based_letter(answer: str, letters: str) -> str | None:
    """Step 4: the letter at the most telling position where one of `letters` stands; of equal ones the last.

    Most telling first: the whole answer starts with the letter; ends with it; a phrase such as "the answer is" comes
    before it; (A); A.; A:; A); A and a space; failing all these, anywhere.
    """
    text = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        text = text.strip(mark)
    padded = f" {text} "
    mentions = [*_at_the_ends(padded, letters), *_behind_phrases(padded, letters), *_in_forms(padded, letters)]
    if not mentions:
        mentions = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(mentions)[2] if mentions else None


Mention = tuple[int, int, str]
"""How telling a mention of a letter is (10 most), its position in the answer, and the letter."""


def _at_the_ends(text: str, letters: str) -> Iterator[Mention]:
    bare = text.strip()
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            yield 10, 0, letter
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            yield 9, len(text), letter


def _behind_phrases(text: str, letters: str) -> Iterator[Mention]:
    lowered = text.lower()
    for phrase in PHRASES:
        start = lowered.find(phrase)
        for letter in letters:
            position = text.find(letter, start + len(phrase))
            if start >= 0 and position >= 0:
                yield 7, position, letter


def _in_forms(text: str, letters: str) -> Iterator[Mention]:
    for letter in letters:
        forms = (f"({letter})", f"{letter}.", f"{letter}:", f"{letter})", f"{letter} ")
        for telling, form in zip((6, 5, 4, 3, 2), forms, strict=True):
            if form in text:
                yield telling, text.rfind(form), letter


def answered_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of an answer to a question with these options, by all four steps."""
    return inferred_letter(answer, options) or rule_based_letter(answer, WITH_TEXT[: len(options)])


def _present(text: str | None) -> str | None:
    return None if text in ("", "nan") else text


Optional = Annotated[MaybeText, AfterValidator(_present)]
"""A field that the set may leave out, which it also writes as "nan"."""


class _Row(Row):
    index: Number
    question: Text
    hint: Optional
    A: Optional
    B: Optional
    C: Optional
    D: Optional
    E: Optional
    answer: Answer
    category: MaybeText


class MmBench(VisualQuestions):
    """MMBench; a limit counts questions, each with all its rotations."""

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

    def interim_units(self, outputs: Sequence[ItemOutput]) -> Units | None:
        """None: a question whose rotations are not all answered yet may still be missed."""
        return None


class PublishedMmBench(PublishedItems, MmBench):
    """The English dev split: 1,164 questions, 4,329 with their rotations."""

    name = "mmbench_en"
    title = "MMBench-EN"
    help = "Multiple choice about pictures, English dev split, every rotation right; letters found by rules, no judge."
    source = Source("lmms-lab/MMBench", "en/dev-*.parquet", "mmbench_en_dev.parquet")
    id_field = "index"

    def questions(self, limit: int | None) -> list[Question]:
        rotations: dict[str, list[Question]] = {}
        for question in sorted(super().questions(None), key=lambda question: int(question.id)):
            rotations.setdefault(question.group, []).append(question)
        # Rotations of a question that is not there are left out.
        groups = [questions for group, questions in rotations.items() if questions[0].id == group]
        if not groups:
            raise UserError(f"{self.title}: no index is below {ROTATION}, so all rows are rotated copies of others.")
        return [question for questions in groups[:limit] for question in questions]

    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        fields = _Row.model_validate(row)
        texts = [getattr(fields, letter) for letter in LETTERS]
        options = [text for text in texts if text is not None]
        if options != texts[: len(options)]:
            raise ValueError(f"{LETTERS[texts.index(None)]} is missing, and an option behind it is there")
        if fields.answer not in tuple(LETTERS[: len(options)]):
            raise ValueError(f"answer is {shortened(fields.answer)}, which is none of its {len(options)} options")
        question = fields.question if fields.hint is None else f"{fields.hint} {fields.question}"
        return Question(
            str(fields.index),
            picture,
            f"{question} {OPTIONS_HEADER}\n{option_lines(options)}\n{LETTER_ONLY}",
            [fields.answer],
            options,
            group=str(fields.index % ROTATION),
            category=fields.category,
        )


class DemoMmBench(DemoItems, MmBench):
    """MMBench's questions and score on pictures that the project draws."""

    name = "demo-mmbench"
    title = "Demo MMBench"
    help = "Multiple choice about drawn pictures, every rotation right, scored as MMBench is."
    most_tokens = 16  # drawn questions are answered in a word; a model that rambles need not be heard out

    def prompt(self, item: DemoItem) -> str:
        return choice_prompt(item.question, item.options, header=True)
