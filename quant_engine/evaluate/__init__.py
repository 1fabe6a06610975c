"""The benchmarks, one small file each. To add one: write its file, and name it in TASKS."""

from __future__ import annotations

from quant_engine.evaluate.ai2d import DemoAi2d, PublishedAi2d
from quant_engine.evaluate.chartqa import DemoChartQa, PublishedChartQa
from quant_engine.evaluate.docvqa import DemoDocVqa, PublishedDocVqa
from quant_engine.evaluate.mmbench import DemoMmBench, PublishedMmBench
from quant_engine.evaluate.mme import DemoMme, PublishedMme
from quant_engine.evaluate.perplexity import Perplexity
from quant_engine.evaluate.task import Outcome, Stopped, Task, Watch
from quant_engine.spec import UserError

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Perplexity(),
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

__all__ = ["TASKS", "Outcome", "Stopped", "Task", "Watch", "find_task"]


def find_task(name: str) -> Task:
    """The task of an id; `perplexity:PATH` is perplexity on a text file. Raises UserError for an unknown one."""
    kind, colon, argument = name.partition(":")
    if kind == "perplexity" and colon:
        return Perplexity.of_file(argument)
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; the tasks are: {', '.join(TASKS)}, or perplexity:FILE.txt.")
    return TASKS[name]
