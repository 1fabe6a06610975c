"""Questions about a drawn picture, and the prompts that they are asked with.

A question has a short answer and, where it makes sense, the same answer as a sentence. The endings of the prompts are
those that the six benchmarks of the study are asked with; a question without an ending may be answered in a sentence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SINGLE_WORD = "\nAnswer the question with a single word."
WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS_HEADER = "There are several options:"
LETTERS = "ABCDE"


@dataclass(frozen=True)
class Question:
    """One question about a picture.

    `kind` names what it takes ("value", "highest", "count", ...). `wrong` are believable wrong answers, for multiple
    choice. `link` joins the yes question and the no question about the same fact.
    """

    kind: str
    text: str
    answer: str
    sentence: str | None = None
    wrong: tuple[str, ...] = ()
    link: str | None = None


def yes_no_pair(rng: random.Random, category: str, template: str, true: str, false: str) -> list[Question]:
    """A yes question and a no question about one fact: `template` with its {} filled truly, and falsely."""
    link = f"{category}-{rng.getrandbits(32):08x}"
    return [
        Question("yes or no", template.format(true), "Yes", link=link),
        Question("yes or no", template.format(false), "No", link=link),
    ]


def with_options(rng: random.Random, question: Question, count: int = 4) -> tuple[list[str], str]:
    """Options in a random order and the letter of the right one. Needs at least one wrong answer."""
    wrong = sorted(set(question.wrong) - {question.answer})
    options = [question.answer, *rng.sample(wrong, min(count - 1, len(wrong)))]
    rng.shuffle(options)
    return options, LETTERS[options.index(question.answer)]


def option_lines(options: list[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def choice_prompt(text: str, options: list[str], *, header: bool = False) -> str:
    """A multiple-choice prompt: question, lettered options, and the request for a letter alone."""
    middle = f"\n{OPTIONS_HEADER}\n" if header else "\n"
    return text + middle + option_lines(options) + LETTER


def short_turn(rng: random.Random, question: Question) -> tuple[str, str]:
    """A question that asks for a short answer, and that answer."""
    return question.text + rng.choice((SINGLE_WORD, WORD_OR_PHRASE)), question.answer


def training_turn(rng: random.Random, question: Question) -> tuple[str, str]:
    """A question as it may be asked, and the answer that fits the form it was asked in."""
    if question.kind == "caption":
        return question.text, question.answer
    form = rng.random()
    if len(question.wrong) >= 2 and form < 0.4:
        options, letter = with_options(rng, question, rng.choice((3, 4, 4, 4)))
        return choice_prompt(question.text, options, header=rng.random() < 0.3), letter
    if form < 0.85:
        return short_turn(rng, question)
    return question.text, question.sentence or question.answer
