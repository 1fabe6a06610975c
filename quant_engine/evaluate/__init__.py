"""The benchmarks, one small file each. To add one: write its file, and name it in TASKS."""

from __future__ import annotations

from collections.abc import Iterable

from quant_engine.data.corpora import CORPORA
from quant_engine.data.texts import PINNED
from quant_engine.evaluate.ai2d import DemoAi2d, PublishedAi2d
from quant_engine.evaluate.arc import ArcChallenge, ArcEasy
from quant_engine.evaluate.chartqa import DemoChartQa, PublishedChartQa
from quant_engine.evaluate.choices import MultipleChoice
from quant_engine.evaluate.divergence import AnswerDivergence, Divergence
from quant_engine.evaluate.docvqa import DemoDocVqa, PublishedDocVqa
from quant_engine.evaluate.hellaswag import HellaSwag
from quant_engine.evaluate.mmbench import DemoMmBench, PublishedMmBench
from quant_engine.evaluate.mme import DemoMme, PublishedMme
from quant_engine.evaluate.mmlu import Mmlu
from quant_engine.evaluate.perplexity import Perplexity, PublishedPerplexity
from quant_engine.evaluate.piqa import Piqa
from quant_engine.evaluate.task import HEADLINE, Outcome, Task, Watch
from quant_engine.evaluate.vqa import VisualQuestions, measure_together, measured_together
from quant_engine.evaluate.winogrande import WinoGrande
from quant_engine.spec import UserError

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Perplexity(),
        *(PublishedPerplexity(corpus) for corpus in CORPORA),
        Piqa(),
        ArcEasy(),
        ArcChallenge(),
        HellaSwag(),
        WinoGrande(),
        Mmlu(),
        Divergence(),
        DemoDocVqa(),
        DemoChartQa(),
        DemoAi2d(),
        DemoMmBench(),
        DemoMme(),
        PublishedAi2d(),
        PublishedChartQa(),
        PublishedDocVqa(),
        PublishedMmBench(),
        PublishedMme(),
    )
}

__all__ = [
    "TASKS",
    "Outcome",
    "Task",
    "VisualQuestions",
    "Watch",
    "measure_together",
    "measured_together",
    "parse_result_name",
    "parse_task",
    "reads_windows",
    "split_tasks",
]

TEXT_TASKS: dict[str, type[Perplexity]] = {"perplexity": Perplexity, "divergence": Divergence}


def parse_task(name: str) -> Task:
    """The task of an id. Raises UserError for an unknown id.

    Some ids have an argument: `perplexity:PATH` and `divergence:PATH` are on a text file, `divergence:NAME` is on the
    questions of a picture task, `NAME:bos` is a multiple-choice task with a beginning-of-text token.
    """
    kind, colon, argument = name.partition(":")
    picture_task = TASKS.get(argument)
    if kind == "divergence" and isinstance(picture_task, VisualQuestions):
        return AnswerDivergence(picture_task)
    if kind in TEXT_TASKS and colon:
        return TEXT_TASKS[kind].of_file(argument)
    choice_task = TASKS.get(kind)
    if argument == "bos" and isinstance(choice_task, MultipleChoice):
        return choice_task.with_bos()
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}, or perplexity:FILE.txt.")
    return TASKS[name]


def split_tasks(text: str) -> tuple[str, ...]:
    """The task ids in a text with commas between them.

    A comma inside the path of `perplexity:PATH` or `divergence:PATH` belongs to the path, unless a task's id is what
    stands behind it up to the next comma.
    """
    names: list[str] = []
    for part in text.split(","):
        if names and _is_of_path(names[-1]) and not _is_id(part.strip()):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(name for name in (name.strip().rstrip(", ") for name in names) if name)


def _is_of_path(name: str) -> bool:
    kind, colon, argument = name.strip().partition(":")
    return kind in TEXT_TASKS and bool(colon) and argument not in TASKS


def _is_id(name: str) -> bool:
    kind, colon, argument = name.partition(":")
    return name in TASKS or (kind in TEXT_TASKS and bool(colon)) or (kind in TASKS and argument == "bos")


def reads_windows(names: Iterable[str]) -> bool:
    """Whether any of these tasks, of a resolved run, reads its text in windows."""
    return any(isinstance(parsed[0], Perplexity) for name in names if (parsed := parse_result_name(name)))


def parse_result_name(name: str) -> tuple[Task, str] | None:
    """The task that a result belongs to by its name, and the suffix of its part: "piqa_norm" is ("piqa", "norm").

    The suffix of a task's own number is "". None if no task has such results. Unlike `parse_task` this needs no file: a
    run's numbers can be read when the text that they are of is gone.
    """
    kind, colon, argument = name.partition(":")
    variants: list[Task] = [task.with_bos() for task in TASKS.values() if isinstance(task, MultipleChoice)]
    variants += [AnswerDivergence(task) for task in TASKS.values() if isinstance(task, VisualQuestions)]
    if kind in TEXT_TASKS and colon and PINNED.match(argument):
        variants.append(TEXT_TASKS[kind](PINNED.match(argument)[0]))
    for task in (*TASKS.values(), *variants):
        for suffix in (HEADLINE, *task.parts):
            if task.result_name(suffix) == name:
                return task, suffix
    return None
