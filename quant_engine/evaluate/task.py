"""What a task is: where its items come from, how a prompt is made, how an answer is scored.

A task describes itself without loading torch; `measure` does the work with a loaded model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from quant_engine.spec import ItemOutput, RunSpec

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded


class Stopped(Exception):
    """The run was asked to stop; what is finished is kept."""


@dataclass(frozen=True)
class Watch:
    """How work in progress is reported and stopped: called after each item with (done, total)."""

    report: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False

    def step(self, done: int, total: int) -> None:
        """Reports; raises Stopped when asked to stop."""
        self.report(done, total)
        if self.should_stop():
            raise Stopped


@dataclass
class Outcome:
    """A task's number and what it was made from. `value` is None when the model collapsed."""

    value: float | None
    standard_error: float | None
    status: str
    data_revision: str
    outputs: list[ItemOutput] = field(default_factory=list)


class Task(ABC):
    """One benchmark. `name` is its id, `metric` and `unit` are shown beside its numbers."""

    name: str
    title: str
    metric: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    pictures: ClassVar[bool] = False
    help: str

    @abstractmethod
    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        """Runs the task. Raises UserError where its data is missing, Stopped when asked to stop."""


def mean_and_error(scores: list[float]) -> tuple[float, float | None]:
    """Mean and its standard error (None for a single score)."""
    count = len(scores)
    mean = math.fsum(scores) / count
    if count < 2:
        return mean, None
    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    return mean, math.sqrt(variance / count)
