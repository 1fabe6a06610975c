"""The numbers of tasks that are still being measured, from the items that are finished so far. Imports no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from quant_engine import notation
from quant_engine.evaluate.perplexity import Perplexity
from quant_engine.evaluate.task import Task, mean_and_error
from quant_engine.progress import Interim
from quant_engine.results import ItemOutput

EVERY_S = 2.0
MOST_SHARE = 0.01
"""The share of the time that finding interim numbers may take."""


class InterimNumbers:
    """The interim numbers of a run's tasks. Each is found again when two seconds have passed, later if that would take
    more than a hundredth of the time; and when its last item is finished."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newest: dict[str, Interim] = {}
        self._due: dict[str, float] = {}
        self._rest_until = -math.inf

    def update(self, task: Task, items: Mapping[str, ItemOutput], total: int) -> None:
        """Takes note of a task's finished items, by id, of `total` ones."""
        now, is_last = self._clock(), len(items) == total
        if not items or (not is_last and now < max(self._rest_until, self._due.get(task.name, -math.inf))):
            return
        number = interim(task, items, total)
        took = self._clock() - now
        self._due[task.name] = now + EVERY_S
        self._rest_until = now + took / MOST_SHARE
        if number is not None:
            self._newest[task.name] = number

    def numbers(self) -> tuple[Interim, ...]:
        """The newest of each task that has one, in the order in which they came."""
        return tuple(self._newest.values())


def interim(task: Task, items: Mapping[str, ItemOutput], total: int) -> Interim | None:
    """A task's number over these items, by id; None where they say nothing of the whole yet."""
    units = task.interim_units(list(items.values()))
    if not units:
        return None
    counted = "windows" if isinstance(task, Perplexity) else "items"
    about = {"title": task.title, "unit": task.unit, "done": len(items), "total": total, "counted": counted}
    mean, _ = mean_and_error(list(units.values()))
    try:
        value = task.value(mean)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        return Interim(value=None, **about)
    low, high = task.interval(units) or (None, None)
    return Interim(value=value, low=low, high=high, **about)


def number_text(number: Interim) -> str:
    """The number with its unit and interval: 12.31 PPL, 95% interval 11.9 to 12.8."""
    if number.value is None:
        return "no number: the model has collapsed"
    value = f"{notation.number(number.value)}{'' if number.unit == '%' else ' '}{number.unit}"
    if number.low is None or number.high is None:
        return value
    return f"{value}, 95% interval {number.low:.3g} to {number.high:.3g}"


def count_text(number: Interim) -> str:
    """What the number is of: after 8 of 32 windows."""
    if number.done == number.total:
        return f"all {number.total} {number.counted}"
    return f"after {number.done} of {number.total} {number.counted}"
