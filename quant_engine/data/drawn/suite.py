"""The picture suite: five sets of questions about drawn pictures, in the shapes of the study's six benchmarks.

    demo-docvqa   forms and receipts; short answers, scored with ANLS
    demo-chartqa  charts; short answers, scored with relaxed accuracy
    demo-ai2d     diagrams; multiple choice, answered with a letter
    demo-mmbench  all families; multiple choice, asked once for each rotation of its options (circular)
    demo-mme      all families; a yes question and a no question for each picture

Nothing is stored: an item is drawn from its split and number. Imports no torch.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant_engine.data.drawn.pictures import FAMILIES, SPLITS, Picture, Split, picture, seed
from quant_engine.data.drawn.questions import LETTERS, Question, with_options
from quant_engine.spec import UserError, digest

if TYPE_CHECKING:
    from PIL.Image import Image

TASKS = ("demo-docvqa", "demo-chartqa", "demo-ai2d", "demo-mmbench", "demo-mme")
DEFAULT_COUNT = 400
VERSION = 3  # raise it when drawings or questions change: numbers before and after are not of the same items
MOST_NUMBER = 1_000_000
_FAMILY = {"demo-docvqa": "form", "demo-chartqa": "chart", "demo-ai2d": "diagram"}  # the others are of all families
_ID = re.compile(rf"(?P<task>{'|'.join(TASKS)})-(?P<split>{'|'.join(SPLITS)})-(?P<number>[0-9]+)(-[0-9]+)?")
COGNITION = ("calculation", "comparison")  # yes/no categories of the cognition half; all others are perception


@dataclass(frozen=True)
class DemoItem:
    """One question about one picture.

    `answers` are the accepted answers (a letter for multiple choice). `options` are the options without their letters.
    `category` groups items within a task; `link` joins the rotations of a circular item, or the two items of a pair.
    """

    id: str
    family: str
    split: Split
    number: int
    question: str
    answers: list[str]
    options: list[str] | None = None
    category: str = ""
    link: str | None = None

    @property
    def picture_id(self) -> str:
        """What items about the same picture have in common, whatever their tasks."""
        return f"{self.family}-{self.split}-{self.number}"

    def image(self) -> Image:
        """The picture, drawn now: an RGB image."""
        return _picture(self.family, self.split, self.number).drawing.image


@functools.lru_cache(maxsize=16)
def _picture(family: str, split: Split, number: int) -> Picture:
    return picture(family, split, number)


def items(task: str, count: int | None = None, split: Split = "test") -> list[DemoItem]:
    """The first `count` items of a task (None: 400), the same at every call.

    For demo-mmbench `count` counts base questions, each with all its rotations; for demo-mme it counts items, rounded
    up to whole pairs. Raises UserError for an unknown task.
    """
    if task not in TASKS:
        raise UserError(f"There is no demo task {task!r}: choose one of {', '.join(TASKS)}.")
    count = DEFAULT_COUNT if count is None else count
    if task in _FAMILY:
        make = _choice if task == "demo-ai2d" else _open
        return [make(task, _FAMILY[task], split, n) for n in range(count)]
    families = list(FAMILIES)
    if task == "demo-mmbench":
        return [i for n in range(count) for i in _rotations(task, families[n % len(families)], split, n)]
    return [i for n in range((count + 1) // 2) for i in _pair(task, families[n % len(families)], split, n)]


def picture_of(item: str) -> Image:
    """The picture of an item by its id, drawn now. Raises UserError if no item has this id."""
    match = _ID.fullmatch(item)
    if match is None or int(match["number"]) >= MOST_NUMBER:
        raise UserError(f"There is no demo item {item!r}.")
    number, families = int(match["number"]), list(FAMILIES)
    family = _FAMILY.get(match["task"]) or families[number % len(families)]
    return _picture(family, match["split"], number).drawing.image


@functools.cache
def revision(task: str) -> str:
    """What identifies the items of a task: changes whenever they do."""
    return f"drawn-v{VERSION}-{digest([VERSION, task, [_fingerprint(i) for i in items(task, 12)]])}"


def _fingerprint(item: DemoItem) -> list[object]:
    return [item.id, item.question, item.answers, item.options, item.category]


def _pick(task: str, family: str, split: Split, number: int, form: str) -> tuple[random.Random, list[Question]]:
    """A generator of its own for choosing a picture's question for a task, and the questions that suit.

    `form` is "open" (a short answer), "choice" (options) or "pair" (yes and no about one fact).
    """
    suits = {
        "open": lambda q: q.kind not in ("caption", "yes or no"),
        "choice": lambda q: len(q.wrong) >= 2,
        "pair": lambda q: q.link is not None,
    }[form]
    rng = random.Random(seed(split, task, number))
    return rng, [q for q in _picture(family, split, number).questions if suits(q)]


def _open(task: str, family: str, split: Split, number: int) -> DemoItem:
    rng, suitable = _pick(task, family, split, number, "open")
    question = rng.choice(suitable)
    return DemoItem(
        f"{task}-{split}-{number}", family, split, number, question.text, [question.answer], category=question.kind
    )


def _choice(task: str, family: str, split: Split, number: int) -> DemoItem:
    rng, suitable = _pick(task, family, split, number, "choice")
    question = rng.choice(suitable)
    options, letter = with_options(rng, question)
    return DemoItem(
        f"{task}-{split}-{number}", family, split, number, question.text, [letter], options, category=question.kind
    )


def _rotations(task: str, family: str, split: Split, number: int) -> list[DemoItem]:
    base = _choice(task, family, split, number)
    gold = LETTERS.index(base.answers[0])
    rotated = []
    for shift in range(len(base.options)):
        options = base.options[shift:] + base.options[:shift]
        letter = LETTERS[(gold - shift) % len(options)]
        rotated.append(
            DemoItem(
                f"{base.id}-{shift}", family, split, number, base.question, [letter], options, base.category, base.id
            )
        )
    return rotated


def _pair(task: str, family: str, split: Split, number: int) -> list[DemoItem]:
    """A yes question and a no question about the same fact, in random order."""
    rng, suitable = _pick(task, family, split, number, "pair")
    link = rng.choice(sorted({q.link for q in suitable}))
    both = [q for q in suitable if q.link == link]
    rng.shuffle(both)
    category = link.rpartition("-")[0]
    name = f"{task}-{split}-{number}"
    return [
        DemoItem(f"{name}-{k}", family, split, number, q.text, [q.answer], category=category, link=name)
        for k, q in enumerate(both)
    ]
