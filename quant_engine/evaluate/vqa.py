"""Questions about pictures: ask, greedily, and score each answer. The benchmarks differ in prompt and score.

Definitions are those of lmms-eval, which the study's scores come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    Questions with the same `picture_id` are about one picture, which is read once for them.
    """

    id: str
    picture: Callable[[], Image]
    prompt: str
    gold: list[str]
    options: list[str] | None = None
    group: str | None = None
    category: str | None = None
    picture_id: Callable[[], Hashable] | None = None


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
        (outcome,) = measure_together([self], loaded, spec, [watch])
        return outcome


class DemoItems(VisualQuestions):
    """The questions of a benchmark's counterpart in the demo suite, drawn when they are asked."""

    def questions(self, limit: int | None) -> list[Question]:
        return [self.question(item) for item in suite.items(self.name, limit)]

    def question(self, item: DemoItem) -> Question:
        return Question(
            item.id,
            item.image,
            self.prompt(item),
            item.answers,
            item.options,
            item.link,
            item.category,
            lambda: item.picture_id,
        )

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

        def question(row: dict[str, Any], index: int) -> Question:
            asked = self.question(row, index, partial(rows.picture, index))
            return replace(asked, picture_id=partial(rows.picture_id, index))

        questions = rows.read(question)
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


def measured_together(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks that are measured at once: those of the demo suite, which ask about the same pictures; each other one
    by itself."""
    groups: list[list[Task]] = []
    demo: list[Task] = []
    for task in tasks:
        group = demo if isinstance(task, DemoItems) else []
        group.append(task)
        if len(group) == 1:
            groups.append(group)
    return groups


def measure_together(
    tasks: Sequence[VisualQuestions], loaded: Loaded, spec: RunSpec, watches: Sequence[Watch]
) -> list[Outcome]:
    """The outcomes of tasks whose questions are asked together: a picture that several of them ask about is read once.

    Each task has a watch of its own. Raises UserError where the data of one are missing, Stopped when asked to stop.
    """
    questions = [task.questions(spec.limit) for task in tasks]
    revisions = [task.revision() for task in tasks]
    finished = [watch.finished_items.open(revision) for watch, revision in zip(watches, revisions, strict=True)]
    remaining = [
        (number, question)
        for number, of_task in enumerate(questions)
        for question in of_task
        if question.id not in finished[number]
    ]
    asked = by_picture([question for _, question in remaining], [tasks[number].most_tokens for number, _ in remaining])
    for answered in batch.answers(loaded, asked, watches[0].check_stop):
        number, question = remaining[answered.index]
        output = tasks[number].output(question, answered.text)
        watches[number].record([output], finished[number], len(questions[number]))
    return [
        task.conclude([of_items[question.id] for question in of_task], revision)
        for task, of_items, of_task, revision in zip(tasks, finished, questions, revisions, strict=True)
    ]


def by_picture(questions: Sequence[Question], most_tokens: Sequence[int]) -> list[Asked]:
    """The questions, each with the most tokens of its answer, by their picture and known by their index."""
    of_picture: dict[Hashable, list[int]] = {}
    for index, question in enumerate(questions):
        of_picture.setdefault(question.picture_id() if question.picture_id else index, []).append(index)
    return [
        batch.Asked(
            questions[indices[0]].picture,
            [questions[index].prompt for index in indices],
            indices,
            [most_tokens[index] for index in indices],
        )
        for indices in of_picture.values()
    ]


def option_lines(options: list[str]) -> str:
    """Options with their letters, each on a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
