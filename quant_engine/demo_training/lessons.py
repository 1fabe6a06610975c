"""Batches of pictures with conversations about them, as token sequences.

All questions about a picture share one sequence: user turn, picture, then the questions side by side. A mask lets each
question see the picture and itself, never another question, and positions start again after the picture; so each is
exactly the single question that the model is asked later, at the price of one picture.

A lesson can be brief: most of the patches that tell little are left out, and the others keep their positions. That is
a third of the tokens, so three times the lessons in the same time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from quant_engine.data.drawn.pictures import Picture, Split, picture, seed
from quant_engine.data.drawn.questions import choice_prompt, short_turn, training_turn, with_options
from quant_engine.demo_training.labels import COLOUR, COUNT, SIDE, Views, cut_views

FAMILY_ORDER = ("form", "chart", "diagram", "scene", "chart", "form", "diagram", "chart", "form", "diagram", "scene")
IGNORED = -100
NAMED = ("Which option says {}?", "Which one is {}?", "The answer is {}.")
POOL = 4  # batches that are drawn together and sorted by length
READ_OFF = ("field", "value", "price", "total", "title", "cell", "after", "before", "color", "shape", "value by color", "label by color")  # fmt: skip # noqa: E501


@dataclass
class Lesson:
    """One picture with its questions: token ids (0 where the picture goes), segment, position and target of each."""

    views: Views | None  # None for a lesson without a picture
    first: int  # where the picture starts
    token_indices: Tensor  # which of the picture's tokens are there
    ids: list[int]
    segments: list[int]  # 0 for what all share, 1.. for each question
    positions: list[int]
    targets: list[int]
    kinds: list[str]  # the kind of each question


@dataclass
class Batch:
    """Padded tensors [batch, length]; `mask` [batch, 1, length, length] is 0 where attention may look, else -inf."""

    lessons: list[Lesson]
    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor


def picture_length(views: Views) -> int:
    rows, columns, _ = views.parts.shape
    return SIDE * SIDE + rows * (columns + 1)


def choose_tokens(views: Views, rng: random.Random, share: float) -> Tensor:
    """Indices of the picture's tokens that a lesson shows: all text, marks and ends of rows, and `share` of the rest.

    The rest is what holds nothing, what holds only colour, and the squeezed view, which says nothing that the full view
    doesn't say better; of the latter two it keeps at least some.
    """
    whole = torch.from_numpy(views.whole.any(-1)).flatten()
    parts = torch.from_numpy(views.parts.astype(np.int64))
    telling = parts.clone()
    telling[..., COLOUR] = 0
    chances = torch.full((len(whole),), share)
    chances[whole] = max(share, 0.15)
    chances[torch.from_numpy(views.whole[..., COUNT] > 0).flatten()] = 1.0
    at = torch.full(parts.shape[:2], share)
    at[parts[..., COLOUR] > 0] = max(share, 1 / 3)
    at[telling.any(-1)] = 1.0
    ends = torch.ones(len(parts), 1)
    chances = torch.cat([chances, torch.cat([at, ends], 1).flatten()])
    drawn = torch.tensor([rng.random() for _ in range(len(chances))])
    return (drawn < chances).nonzero().flatten()


def lesson(
    tokenizer: PreTrainedTokenizerBase,
    drawn: Picture,
    rng: random.Random,
    questions: int,
    share: float = 1.0,
    first_lessons: bool = False,
) -> Lesson:
    """A lesson of one picture.

    Args:
        questions: how many of the picture's questions are asked, at most.
        share: share of the patches that tell little which the lesson shows.
        first_lessons: whether all questions ask for something that is simply read off, and all answers are short.
    """
    views = cut_views(drawn.drawing)
    ids = tokenizer("<|im_start|>user\n")["input_ids"]
    first, token_indices = len(ids), choose_tokens(views, rng, share)
    shared = first + picture_length(views)
    positions = [*range(first), *(first + token_indices).tolist()]
    ids = ids + [0] * len(token_indices)
    segments, targets = [0] * len(ids), [IGNORED] * len(ids)
    if first_lessons:
        selected = [q for q in drawn.questions if q.kind in READ_OFF] or list(drawn.questions[1:])
    else:
        selected = [q for q in drawn.questions if q.kind != "caption" or rng.random() < 0.5]
    selected = rng.sample(selected, min(questions, len(selected)))
    result = Lesson(
        views, first, token_indices, ids, segments, positions, targets, [question.kind for question in selected]
    )
    turns = [short_turn(rng, q) if first_lessons else training_turn(rng, q) for q in selected]
    _ask(result, tokenizer, turns, shared)
    return result


def lesson_in_letters(tokenizer: PreTrainedTokenizerBase, number: int, split: Split = "train") -> Lesson:
    """Multiple choice without a picture: even numbers name the right option, odd ones say facts and ask about them.

    To find the option that fits and say its letter is a skill of its own. From pictures alone it isn't learnt, as long
    as what they hold is still half guessed; from options that the question names it is there after a thousand.
    """
    rng = random.Random(seed(split, "letters", number))
    drawn = picture(FAMILY_ORDER[number // 2 % len(FAMILY_ORDER)], split, number)
    selected = [q for q in drawn.questions if len(q.wrong) >= 2 and q.sentence]
    selected = rng.sample(selected, min(10, len(selected)))
    facts, turns = [], []
    for question in selected:
        options, letter = with_options(rng, question, rng.choice((3, 4, 4, 4)))
        text = question.text
        if number % 2:
            facts.append(question.sentence)
        else:
            text = rng.choice(NAMED).format(question.answer)
        turns.append((choice_prompt(text, options, header=rng.random() < 0.3), letter))
    rng.shuffle(facts)
    ids = tokenizer(f"<|im_start|>user\n{' '.join(facts)}")["input_ids"]
    count = len(ids)
    empty = torch.zeros(0, dtype=torch.long)
    kinds = [q.kind for q in selected]
    result = Lesson(None, count, empty, ids, [0] * count, list(range(count)), [IGNORED] * count, kinds)
    _ask(result, tokenizer, turns, count)
    return result


def _ask(lesson: Lesson, tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], shared: int) -> None:
    """Append questions and answers side by side, each from the position `shared` on."""
    for turn, (prompt, answer) in enumerate(turns, 1):
        prompt_ids = tokenizer(f"\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer_ids = tokenizer(f"{answer}<|im_end|>")["input_ids"]
        lesson.ids += prompt_ids + answer_ids
        lesson.segments += [turn] * (len(prompt_ids) + len(answer_ids))
        lesson.positions += range(shared, shared + len(prompt_ids) + len(answer_ids))
        lesson.targets += [IGNORED] * len(prompt_ids) + answer_ids


def collate(lessons: list[Lesson]) -> Batch:
    longest = max(len(lesson.ids) for lesson in lessons)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([getattr(lesson, name) + [fill] * (longest - len(lesson.ids)) for lesson in lessons])

    segments = padded("segments", -1)
    order = torch.arange(longest)
    before = order[:, None] >= order[None, :]
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    mask = torch.zeros(len(lessons), 1, longest, longest)
    mask.masked_fill_(~(before & same)[:, None], float("-inf"))
    return Batch(lessons, padded("ids", 0), padded("positions", 0), padded("targets", IGNORED), mask.bfloat16())


class Lessons(IterableDataset):
    """Batches of `batch` lessons from picture `start` of a split on; lessons of similar length lie in a batch.

    `questions`, `share` and `first_lessons` are those of `lesson`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: Split,
        start: int,
        batch: int,
        questions: int = 7,
        share: float | Tensor = 1.0,
        first_lessons: bool = False,
    ) -> None:
        self.tokenizer, self.split, self.start, self.batch = tokenizer, split, start, batch
        self.questions, self.share, self.first_lessons = questions, share, first_lessons

    def __iter__(self) -> Iterator[Batch]:
        number = self.start
        while True:
            lessons = []
            for _ in range(POOL * self.batch):
                family = FAMILY_ORDER[number % len(FAMILY_ORDER)]
                rng = random.Random(seed(self.split, "turns", number))
                drawn = picture(family, self.split, number)
                lessons.append(
                    lesson(self.tokenizer, drawn, rng, self.questions, float(self.share), self.first_lessons)
                )
                number += 1
            lessons.sort(key=lambda item: len(item.ids))
            starts = list(range(0, len(lessons), self.batch))
            random.Random(number).shuffle(starts)
            for at in starts:
                yield collate(lessons[at : at + self.batch])


class LettersLessons(IterableDataset):
    """Batches of lessons without pictures, by turns with named options and with facts, from `start` on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, batch: int = 4) -> None:
        self.tokenizer, self.start, self.batch = tokenizer, start, batch

    def __iter__(self) -> Iterator[Batch]:
        for first in itertools.count(2 * self.start, 2 * self.batch):
            for kind in (0, 1):
                numbers = range(first + kind, first + kind + 2 * self.batch, 2)
                yield collate([lesson_in_letters(self.tokenizer, number) for number in numbers])


def grid(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Values of full-size tiles [tiles, SIDE * SIDE, d] laid out as one grid [rows, columns, d] of patches."""
    cut = tiles.view(rows // SIDE, columns // SIDE, SIDE, SIDE, -1)
    return cut.permute(0, 2, 1, 3, 4).reshape(rows, columns, -1)


def packed(whole: Tensor, parts: Tensor, newline: Tensor) -> Tensor:
    """LLaVA-NeXT's order: the squeezed view [SIDE * SIDE, d], then each row of [rows, columns, d] and an end of row."""
    ends = newline.expand(parts.shape[0], 1, -1)
    return torch.cat([whole, torch.cat([parts, ends], 1).flatten(0, 1)])


def filled(embedded: Tensor, batch: Batch, pictures: list[Tensor]) -> Tensor:
    """Token embeddings [batch, length, d] with what is kept of each lesson's picture [n, d] in its place."""
    rows = []
    for row, lesson, picture_rows in zip(embedded, batch.lessons, pictures, strict=True):
        shown_rows = picture_rows[lesson.token_indices.to(picture_rows.device)]
        rows.append(torch.cat([row[: lesson.first], shown_rows.to(row.dtype), row[lesson.first + len(shown_rows) :]]))
    return torch.stack(rows)


def all_tiles(batch: Batch) -> Tensor:
    """The tiles of all pictures, one after the other."""
    return torch.from_numpy(np.concatenate([lesson.views.tiles for lesson in batch.lessons]))
