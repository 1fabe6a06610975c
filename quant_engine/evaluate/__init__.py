"""The benchmarks, one small file each. To add one: write its file, and name it in TASKS."""

from __future__ import annotations

from quant_engine.data.corpora import CORPORA
from quant_engine.evaluate.ai2d import DemoAi2d, PublishedAi2d
from quant_engine.evaluate.arc import ArcChallenge, ArcEasy
from quant_engine.evaluate.chartqa import DemoChartQa, PublishedChartQa
from quant_engine.evaluate.choices import MultipleChoice
from quant_engine.evaluate.docvqa import DemoDocVqa, PublishedDocVqa
from quant_engine.evaluate.hellaswag import HellaSwag
from quant_engine.evaluate.mmbench import DemoMmBench, PublishedMmBench
from quant_engine.evaluate.mme import DemoMme, PublishedMme
from quant_engine.evaluate.mmlu import Mmlu
from quant_engine.evaluate.perplexity import Perplexity, PublishedPerplexity
from quant_engine.evaluate.piqa import Piqa
from quant_engine.evaluate.task import HEADLINE, Outcome, Stopped, Task, Watch
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

__all__ = ["TASKS", "Outcome", "Stopped", "Task", "Watch", "find_task", "task_of_number"]


def find_task(name: str) -> Task:
    """The task of an id; `perplexity:PATH` is perplexity on a text file, `NAME:bos` a multiple-choice task with a
    beginning-of-text token. Raises UserError for an unknown one."""
    kind, colon, argument = name.partition(":")
    if kind == "perplexity" and colon:
        return Perplexity.of_file(argument)
    plain = TASKS.get(kind)
    if argument == "bos" and isinstance(plain, MultipleChoice):
        return plain.with_bos()
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}, or perplexity:FILE.txt.")
    return TASKS[name]


def task_of_number(name: str) -> tuple[Task, str] | None:
    """The task that a result's name belongs to, and the suffix of its part ("" for its own number); None if unknown.

    Unlike `find_task` it asks for no file: a run's numbers can be read when the text that they are of is gone.
    """
    kind, colon, argument = name.partition(":")
    if kind == "perplexity" and colon:
        return Perplexity(argument), HEADLINE
    spoken = [task.with_bos() for task in TASKS.values() if isinstance(task, MultipleChoice)]
    for task in (*TASKS.values(), *spoken):
        for suffix in (HEADLINE, *task.parts):
            if task.number_name(suffix) == name:
                return task, suffix
    return None
