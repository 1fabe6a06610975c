"""Questions about pictures: ask, greedily, and score each answer. The benchmarks differ in prompt and score.

Definitions are those of lmms-eval, which the study's scores come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from quant_engine.data import sources
from quant_engine.deferred import deferred
from quant_engine.evaluate.task import Outcome, Task, Watch
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.data.drawn.suite import DemoItem
    from quant_engine.models.batch import Asked
    from quant_engine.models.load import Loaded

batch = deferred("quant_engine.models.batch")
suite = deferred("quant_engine.data.drawn.suite")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_ONLY = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """One question about a picture, which is made when it is needed, so a thousand questions cost no memory.

    `options` are those of multiple choice without their letters; `group` and `category` are as in results.ItemOutput.
    The questions of a group are about one picture, which is read once if they follow one another.
    """

    id: str
    picture: Callable[[], Image]
    prompt: str
    gold: list[str]
    options: list[str] | None = None
    group: str | None = None
    category: str | None = None


class VisualQuestions(Task):
    """A benchmark of picture questions; unless it says otherwise, the number is 100 times the mean score."""

    unit = "%"
    higher_is_better = True
    pictures = True
    most_tokens: ClassVar[int]
    suffix: ClassVar[str] = ""

    @abstractmethod
    def questions(self, limit: int | None) -> list[Question]:
        """The first `limit` items (all, if None)."""

    def picture_of(self, item: str, revision: str) -> Image:
        """The picture of an item by its id, in items of this revision. Raises UserError if it is not on this machine.

        Loads no torch.
        """
        if revision != self.revision():
            raise UserError(f"The items of {self.title} on this machine are not those of this run ({revision}).")
        for question in self.questions(None):
            if question.id == item:
                return question.picture()
        raise UserError(f"{self.title} has no item {item}.")

    @abstractmethod
    def score(self, prediction: str, gold: list[str]) -> float:
        """The score of an answer, from 0 to 1."""

    def score_question(self, prediction: str, question: Question) -> float:
        """The score of an answer, from 0 to 1; for scorers that look at more than the answer and the gold."""
        return self.score(prediction, question.gold)

    def output(self, question: Question, answer: str) -> ItemOutput:
        """The scored output of a question and its answer."""
        return ItemOutput(
            item=question.id,
            prompt=question.prompt,
            gold=question.gold,
            prediction=answer,
            score=self.score_question(answer, question),
            choices=question.options,
            group=question.group,
            category=question.category,
        )

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        questions = self.questions(spec.limit)
        revision = self.revision()
        finished = watch.finished_items.open(revision)
        for answered in batch.answers(loaded, by_picture(questions, finished), self.most_tokens, watch.check_stop):
            output = self.output(questions[answered.index], answered.text)
            watch.record([output], finished, len(questions))
        return self.conclude([finished[question.id] for question in questions], revision)


class DemoItems(VisualQuestions):
    """The questions of a benchmark's counterpart in the demo suite, drawn when they are asked."""

    def questions(self, limit: int | None) -> list[Question]:
        return [self.question(item) for item in suite.items(self.name, limit)]

    def question(self, item: DemoItem) -> Question:
        return Question(item.id, item.image, self.prompt(item), item.answers, item.options, item.link, item.category)

    def prompt(self, item: DemoItem) -> str:
        return item.question + self.suffix

    def revision(self) -> str:
        return suite.revision(self.name)

    def picture_of(self, item: str, revision: str) -> Image:
        if revision != self.revision():
            raise UserError("This picture was drawn by another version and is not drawn the same today.")
        return suite.picture_of(item)


class PublishedItems(VisualQuestions):
    """The questions of a published set, from the hub or a local folder, in its native fields."""

    source: ClassVar[sources.Source]
    id_field: ClassVar[str | None] = None
    """The field that names an item; None where its index does."""

    @abstractmethod
    def question(self, row: dict[str, Any], index: int, picture: Callable[[], Image]) -> Question:
        """The question of a row. Raises ValueError (pydantic's) for a row that can't be asked or scored."""

    def prepare(self) -> None:
        self.questions(None)
        self.rows().check_pictures()

    def rows(self) -> sources.Rows:
        return sources.load(self.source, self.title)

    def read(self, rows: sources.Rows) -> list[Question]:
        """The questions of all rows. Raises UserError where a row can't be asked or scored, or comes twice."""
        questions = rows.read(lambda row, index: self.question(row, index, partial(rows.picture, index)))
        if self.id_field:
            rows.check_unique(self.id_field, [question.id for question in questions])
        return questions

    def questions(self, limit: int | None) -> list[Question]:
        return self.read(self.rows())[:limit]

    def revision(self) -> str:
        return sources.revision(self.source, self.title)

    def picture_of(self, item: str, revision: str) -> Image:
        rows = sources.stored(self.source, self.title, revision)
        ids = rows.texts(self.id_field) if self.id_field else map(str, range(len(rows)))
        for index, row_id in enumerate(ids):
            if row_id == item:
                return rows.picture(index)
        raise UserError(f"{self.title} has no item {item}.")


def by_picture(questions: Sequence[Question], finished: Container[str]) -> list[Asked]:
    """The questions that are not finished yet, those of a group that follow one another together, by their index."""
    remaining = [index for index, question in enumerate(questions) if question.id not in finished]

    def picture(index: int) -> tuple:
        question = questions[index]
        return (index,) if question.group is None else (question.category, question.group)

    groups = [list(indices) for _, indices in groupby(remaining, picture)]
    return [
        batch.Asked(questions[indices[0]].picture, [questions[index].prompt for index in indices], indices)
        for indices in groups
    ]


def option_lines(options: list[str]) -> str:
    """Options with their letters, each on a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
