"""What a task is: where its items come from, how a prompt is made, how an answer is scored.

A task describes itself without loading torch; `measure` does the work with a loaded model. Its numbers are plain means
of unit scores, made from the item outputs alone, so that they can be computed and compared again without any model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from quant_engine.evaluate.intervals import reach_of_error, share_interval
from quant_engine.progress import Stopped
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

Units = dict[str, float]
"""Scores by unit: an item, or a group of items that count as one. A task's number is made from their mean."""

HEADLINE = ""
"""The suffix of a task's own number among its `parts`."""


class FinishedItems:
    """Where finished items are stored, for an interrupted task to go on. This one stores none; runs have a file."""

    def open(self, revision: str) -> dict[str, ItemOutput]:
        """The items that an earlier try finished on the data of this revision, by id."""
        return {}

    def add(self, outputs: Sequence[ItemOutput]) -> None:
        """Stores items that were finished just now."""


@dataclass(frozen=True)
class Watch:
    """How a task in progress is reported, stored and stopped; `report` is called with (done, total)."""

    report: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False
    finished_items: FinishedItems = field(default_factory=FinishedItems)

    def record(self, outputs: Sequence[ItemOutput], finished: dict[str, ItemOutput], total: int) -> None:
        """Stores new outputs, adds them to `finished` (by id), and reports. Raises Stopped when asked to stop."""
        self.finished_items.add(outputs)
        finished.update((output.item, output) for output in outputs)
        self.report(len(finished), total)
        self.check_stop()

    def check_stop(self) -> None:
        """Raises Stopped when asked to stop."""
        if self.should_stop():
            raise Stopped


@dataclass(frozen=True)
class Part:
    """A further number of a task, beside its headline: a half, a category, another way to score. Fields that are None
    are those of the task."""

    title: str
    metric: str | None = None
    unit: str | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Number:
    """One number of a task. `items` counts the units that it is the mean of; `value` is None if the model collapsed."""

    name: str
    metric: str
    value: float | None
    standard_error: float | None
    items: int
    status: str


@dataclass
class Outcome:
    """A task's numbers and what they were made from. `value` is None when the model collapsed; `items` counts the units
    that it is the mean of, such as questions with all their rotations."""

    value: float | None
    standard_error: float | None
    status: str
    data_revision: str
    items: int
    outputs: list[ItemOutput] = field(default_factory=list)
    parts: list[Number] = field(default_factory=list)


class Task(ABC):
    """One benchmark. `name` is its id, `metric` and `unit` are shown beside its numbers."""

    name: str
    title: str
    metric: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    pictures: ClassVar[bool] = False
    parts: ClassVar[Mapping[str, Part]] = MappingProxyType({})
    help: str

    @abstractmethod
    def revision(self) -> str:
        """What identifies the content of the items, found without torch and without fetching them; the hash of a file
        or a hub data set's commit. It is part of a run, and stored with every number. Raises UserError where it can't
        be had."""

    def prepare(self) -> None:  # noqa: B027 - drawn and built-in items are always there
        """Makes sure, before any work is done, that the items can be had. Raises UserError where they can't."""

    @abstractmethod
    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        """Runs the task. Raises UserError where its data is missing, Stopped when asked to stop."""

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        """Unit scores of the headline and of each part that has any, by suffix; here one unit an item, in percent."""
        return {HEADLINE: {output.item: 100 * output.score for output in outputs}}

    def value(self, mean: float) -> float:
        """The number that a mean of unit scores stands for."""
        return mean

    def error(self, units: Units) -> float | None:
        """The standard error of `value` of the mean; None for a single unit."""
        return mean_and_error(list(units.values()))[1]

    def interval(self, units: Units, suffix: str = HEADLINE) -> tuple[float, float] | None:
        """The 95% interval of the number of this suffix, for items that were drawn; None where nothing can be known of
        it: of a single unit, of units that all score the same, or of scores that are no numbers. Wilson's where units
        are right or wrong, else by Student's t."""
        part, scores = self.parts.get(suffix), list(units.values())
        percent = ((part.unit if part else None) or self.unit) == "%"
        mean, _ = mean_and_error(scores)
        if percent and all(score in (0.0, 100.0) for score in scores):
            low, high = share_interval(mean / 100, len(scores))
            return 100 * low, 100 * high
        error = self.error(units)
        if not error or not math.isfinite(error):
            return None
        value, reach = self.value(mean), reach_of_error(error, len(scores))
        return max(value - reach, 0.0), min(value + reach, 100.0 if percent else math.inf)

    def interim_units(self, outputs: Sequence[ItemOutput]) -> Units | None:
        """The headline's unit scores from the items that are finished so far; None where a part of the items says
        nothing of the whole."""
        return self.units(outputs)[HEADLINE]

    def higher(self, suffix: str) -> bool:
        """Whether more is better for the number of this suffix."""
        own = self.parts[suffix].higher_is_better if suffix else None
        return self.higher_is_better if own is None else own

    def result_name(self, suffix: str) -> str:
        """What a result calls the number of this suffix: "piqa", "piqa_norm"."""
        return f"{self.name}_{suffix}" if suffix else self.name

    def conclude(self, outputs: list[ItemOutput], revision: str) -> Outcome:
        """The task's outcome from the outputs of all items. Numbers that are not finite are of a collapsed model."""
        numbers = [self._number(suffix, units) for suffix, units in self.units(outputs).items() if units]
        headline, parts = numbers[0], numbers[1:]
        return Outcome(
            headline.value, headline.standard_error, headline.status, revision, headline.items, outputs, parts
        )

    def _number(self, suffix: str, units: Units) -> Number:
        part = self.parts.get(suffix)
        metric = (part.metric if part else None) or self.metric
        mean, _ = mean_and_error(list(units.values()))
        name = self.result_name(suffix)
        try:
            value = self.value(mean)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            return Number(name, metric, None, None, len(units), "collapsed")
        return Number(name, metric, value, self.error(units), len(units), "ok")


def mean_and_error(scores: list[float]) -> tuple[float, float | None]:
    """Mean and its standard error (None for a single score)."""
    count = len(scores)
    mean = math.fsum(scores) / count
    if count < 2:
        return mean, None
    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    return mean, math.sqrt(variance / count)
