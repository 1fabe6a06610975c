"""What a setting changes, item by item: paired differences between two runs, and which methods can't be told apart.

Everything comes from the kept items of run folders, without any model. Units are those that a task's number is the mean
of (evaluate.task): questions, questions with their rotations, pictures, windows of text. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from quant_engine.evaluate import Task, parse_result_name
from quant_engine.results import ItemOutput
from quant_engine.runs import folder
from quant_engine.runs.folder import RunFolder
from quant_engine.spec import UserError

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_AT_ONCE = 2_000_000
"""Drawn numbers that are held at once while resampling."""


@dataclass(frozen=True)
class Flips:
    """Items whose score fell (right to wrong), rose (wrong to right), or whose answer changed at the same score."""

    lost: int
    gained: int
    changed: int


@dataclass(frozen=True)
class Comparison:
    """One number of run B against the same of run A, over the units that both have.

    `low` and `high` bound the difference B - A with 95% confidence (bootstrap over units, percentile). `p` is McNemar's
    exact two-sided probability, for numbers whose units are right or wrong. `flips` and `agreement` (the share of items
    with the same answer) are of the task's items; None where there are no answers.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    a: float
    b: float
    difference: float
    low: float
    high: float
    units: int
    p: float | None
    flips: Flips | None
    agreement: float | None

    @property
    def separable(self) -> bool:
        """Whether the interval leaves out zero, and McNemar's test, where there is one, says the same. On few items a
        bootstrap alone finds too much: four flips to one side and none to the other are one chance in eight."""
        return (self.low > 0 or self.high < 0) and (self.p is None or self.p < 1 - LEVEL)


def compare(a: RunFolder, b: RunFolder) -> list[Comparison]:
    """Every number that both runs have, in the order of A's tasks. Raises UserError if there is nothing to compare."""
    shared = [task for task in a.spec.tasks if task in b.spec.tasks]
    if not shared:
        raise UserError(f"Runs {a.path.name} and {b.path.name} have no task in common.")
    return [one for task in shared for one in compare_task(task, a, b)]


def compare_task(name: str, a: RunFolder, b: RunFolder) -> list[Comparison]:
    """A task's numbers in two runs. Raises UserError if they are of other data."""
    known = parse_result_name(name)
    if known is None:
        raise UserError(f"There is no task {name!r} any more, so its items can't be compared.")
    revisions = [next(one.data_revision for one in run.results if one.task == name) for run in (a, b)]
    if revisions[0] != revisions[1]:
        raise UserError(f"{name} was measured on other data: {revisions[0]} and {revisions[1]}.")
    return compare_items(known[0], folder.read_items(a.path, name), folder.read_items(b.path, name))


def compare_items(task: Task, a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> list[Comparison]:
    """A task's numbers over the items that both sides were asked. Raises UserError if there are none."""
    asked = {(one.item, one.prompt) for one in a} & {(one.item, one.prompt) for one in b}
    a, b = ([one for one in side if (one.item, one.prompt) in asked] for side in (a, b))
    if not asked:
        raise UserError(f"{task.title}: the two runs have no item in common.")
    sides = task.units(a), task.units(b)
    told = flips(a, b), agreement(a, b)
    return [_comparison(task, suffix, units, sides[1][suffix], *told) for suffix, units in sides[0].items() if units]


def _comparison(
    task: Task, suffix: str, a: Mapping[str, float], b: Mapping[str, float], flipped: Flips | None, agree: float | None
) -> Comparison:
    scores = np.array([[a[unit], b[unit]] for unit in a])
    values = [value_of(task, mean) for mean in scores.mean(axis=0)]
    low, high = interval(scores[:, 0], scores[:, 1], lambda mean: value_of(task, mean))
    part = task.parts.get(suffix)
    return Comparison(
        name=task.result_name(suffix),
        title=f"{task.title}, {part.title}" if part else task.title,
        unit=(part.unit if part else None) or task.unit,
        higher_is_better=task.higher(suffix),
        a=values[0],
        b=values[1],
        difference=values[1] - values[0],
        low=low,
        high=high,
        units=len(scores),
        p=mcnemar(scores[:, 0] > 0, scores[:, 1] > 0) if np.isin(scores, (0, 100)).all() else None,
        flips=None if suffix else flipped,
        agreement=None if suffix else agree,
    )


def value_of(task: Task, mean: float) -> float:
    """The number that a mean of unit scores stands for; infinite where it is too large."""
    try:
        return task.value(float(mean))
    except OverflowError:
        return math.inf


def interval(
    a: np.ndarray, b: np.ndarray, value: Callable[[float], float] = float, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Bounds of value(mean b) - value(mean a) with 95% confidence: units are drawn with replacement, in pairs.

    Percentile bootstrap (Efron 1979). Scores [units]; NaN where a score is no number.
    """
    means = resampled_means(np.stack([a, b], axis=1), resamples)
    changes = np.array([value(mean_b) - value(mean_a) for mean_a, mean_b in means])
    if not np.isfinite(changes).all():
        return math.nan, math.nan
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_means(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Means [resamples, methods] of scores [units, methods]; each resample draws the same units for all methods.

    A method with a score that is no number has no means that are.
    """
    units = len(scores)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, scores.shape[1]))
    step = max(1, _AT_ONCE // units)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        with np.errstate(invalid="ignore"):
            means[start : start + count] = times @ scores / units
    return means


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """McNemar's exact two-sided probability that as many flips to one side come by chance (binomial, one half).

    `a` and `b` [units] say which units are right. McNemar 1947.
    """
    return _mcnemar(int((a & ~b).sum()), int((~a & b).sum()))


@lru_cache(maxsize=100_000)
def _mcnemar(lost: int, gained: int) -> float:
    flipped, fewer = lost + gained, min(lost, gained)
    logs = [
        math.lgamma(flipped + 1) - math.lgamma(k + 1) - math.lgamma(flipped - k + 1) - flipped * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def flips(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> Flips | None:
    """How the items' scores and answers changed; None for texts, which have no answers."""
    pairs = _answered(a, b)
    if not pairs:
        return None
    return Flips(
        lost=sum(one.score > other.score for one, other in pairs),
        gained=sum(one.score < other.score for one, other in pairs),
        changed=sum(one.score == other.score and one.prediction != other.prediction for one, other in pairs),
    )


def agreement(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> float | None:
    """The share of items with the same answer; None for texts."""
    pairs = _answered(a, b)
    return sum(one.prediction == other.prediction for one, other in pairs) / len(pairs) if pairs else None


def _answered(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> list[tuple[ItemOutput, ItemOutput]]:
    others = {one.item: one for one in b}
    return [(one, others[one.item]) for one in a if one.gold and one.item in others]


def better(scores: np.ndarray, *, higher_is_better: bool = True, resamples: int = RESAMPLES) -> np.ndarray:
    """Which methods are better than which by more than chance: [methods, methods], true at [i, j] if j beats i.

    `scores` [units, methods] are of the same units. A method is better than another if the paired bootstrap interval of
    their difference leaves out zero and McNemar's test agrees, where units are right or wrong; and if it is so much
    better than a third whose mean is no lower. Any is better than one without numbers. So the fewer are better the
    higher the mean, and of methods that equally many are better than, none is better than another.
    """
    known = np.isfinite(scores).all(axis=0)
    table = scores[:, known] if higher_is_better else -scores[:, known]
    mean, means = table.mean(axis=0), resampled_means(table, resamples)
    least = 1e-12 * np.abs(table).max(initial=0.0)  # sums of the same scores in another order may differ by this much
    among = np.array([(means - means[:, [one]] <= least).mean(axis=0) < (1 - LEVEL) / 2 for one in range(len(mean))])
    found = np.broadcast_to(known & ~known[:, None], (len(known),) * 2).copy()
    if known.any():
        among &= mean > mean[:, None]
        if np.isin(table, (0, 100)).all():
            right = (table > 0).astype(float)
            lost, gained = right.T @ (1 - right), (1 - right).T @ right
            for i, j in np.argwhere(among):
                among[i, j] = _mcnemar(int(lost[i, j]), int(gained[i, j])) < 1 - LEVEL
        found[np.ix_(known, known)] = [among[mean >= one].any(axis=0) for one in mean]
    return found


def unquantized(run: RunFolder) -> RunFolder | None:
    """The FP16 run of the same model under the same conditions that has most of this run's tasks; None without one."""

    def same(other: RunFolder) -> bool:
        ours, theirs = run.spec, other.spec
        return theirs.setting.method == "fp16" and all(
            getattr(ours, field) == getattr(theirs, field)
            for field in ("model", "revision", "window", "limit", "dtype")
        )

    best: tuple[int, RunFolder | None] = (0, None)
    for path in folder.run_folders():
        try:
            other = folder.read(path)
        except UserError:
            continue
        shared = len(set(other.spec.tasks) & set(run.spec.tasks))
        if same(other) and shared > best[0]:
            best = (shared, other)
    return best[1]


def find_run(name: str) -> RunFolder:
    """A run by its id, the start of its id, or the path of its folder. Raises UserError if that is not one run."""
    found = [path for path in folder.run_folders() if name and path.name.startswith(name)]
    path = Path(name).expanduser()
    if not found and name and path.is_dir():
        found = [path.resolve()]
    if len(found) != 1:
        what = "is no run" if not found else f"are {len(found)} runs"
        raise UserError(f"There {what} {name!r}; see: python -m quant_engine list runs")
    return folder.read(found[0])
