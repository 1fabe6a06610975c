"""The benchmarks, one small file each. To add one: write its file, and name it in TASKS."""

from __future__ import annotations

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
from quant_engine.evaluate.vqa import VisualQuestions
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

__all__ = ["TASKS", "Outcome", "Task", "VisualQuestions", "Watch", "parse_task", "task_of_number"]

TEXT_TASKS: dict[str, type[Perplexity]] = {"perplexity": Perplexity, "divergence": Divergence}


def parse_task(name: str) -> Task:
    """The task of an id. Raises UserError for an unknown one.

    Some take an argument: `perplexity:PATH` and `divergence:PATH` are on a text file, `divergence:NAME` is on the
    questions of a picture task, `NAME:bos` is a multiple-choice task with a beginning-of-text token.
    """
    kind, colon, argument = name.partition(":")
    asked = TASKS.get(argument)
    if kind == "divergence" and isinstance(asked, VisualQuestions):
        return AnswerDivergence(asked)
    if kind in TEXT_TASKS and colon:
        return TEXT_TASKS[kind].of_file(argument)
    plain = TASKS.get(kind)
    if argument == "bos" and isinstance(plain, MultipleChoice):
        return plain.with_bos()
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}, or perplexity:FILE.txt.")
    return TASKS[name]


def task_of_number(name: str) -> tuple[Task, str] | None:
    """The task that a result's name belongs to, and the suffix of its part ("" for its own number); None if unknown.

    Unlike `parse_task` it asks for no file: a run's numbers can be read when the text that they are of is gone.
    """
    kind, colon, argument = name.partition(":")
    others: list[Task] = [task.with_bos() for task in TASKS.values() if isinstance(task, MultipleChoice)]
    others += [AnswerDivergence(task) for task in TASKS.values() if isinstance(task, VisualQuestions)]
    if kind in TEXT_TASKS and colon and PINNED.match(argument):
        others.append(TEXT_TASKS[kind](PINNED.match(argument)[0]))
    for task in (*TASKS.values(), *others):
        for suffix in (HEADLINE, *task.parts):
            if task.number_name(suffix) == name:
                return task, suffix
    return None
