"""What a setting changes, item by item: paired differences between two runs, and which methods can't be told apart.

Everything comes from the item outputs in run folders, without any model. Units are those that a task's number is the
mean of (evaluate.task): questions, questions with their rotations, pictures, windows of text. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from quant_engine import folders
from quant_engine.evaluate import Task, parse_result_name
from quant_engine.evaluate.task import Units
from quant_engine.results import ItemOutput
from quant_engine.runs import folder
from quant_engine.runs.folder import RunFolder
from quant_engine.spec import UserError

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
FEW_UNITS = 30
"""Where so few scores differ, and are not right or wrong, the bootstrap finds too much: their signs are tested too."""
DRAWN_AT_ONCE = 2_000_000
"""Drawn unit numbers that are in memory at once while resampling."""


@dataclass(frozen=True)
class Flips:
    """Items whose score fell (right to wrong), rose (wrong to right), or whose answer changed at the same score."""

    lost: int
    gained: int
    changed: int


@dataclass(frozen=True)
class Comparison:
    """One number of run B against the same of run A, over the units that both have.

    `low` and `high` bound the difference B - A with 95% confidence (bootstrap over units, percentile). `p` is the
    two-sided probability of such a difference by chance: McNemar's, exact, where units are right or wrong; that of
    `sign_flips` for other scores of which few differ, and else None. `flips` and `agreement` (the share of items
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
    flips: Flips | None = None
    agreement: float | None = None

    @property
    def separable(self) -> bool:
        """Whether the interval leaves out zero, and the test of `p`, where there is one, says the same. On few items a
        bootstrap alone finds too much: four flips to one side and none to the other are one chance in eight."""
        return (self.low > 0 or self.high < 0) and (self.p is None or self.p < 1 - LEVEL)


def compare(a: RunFolder, b: RunFolder) -> list[Comparison]:
    """Every number that both runs have, in the order of A's tasks. Raises UserError if there is nothing to compare."""
    shared = [task for task in a.spec.tasks if task in b.spec.tasks]
    if not shared:
        raise UserError(f"Runs {a.path.name} and {b.path.name} have no task in common.")
    return [comparison for task in shared for comparison in compare_task(task, a, b)]


def compare_task(name: str, a: RunFolder, b: RunFolder) -> list[Comparison]:
    """A task's numbers in two runs. Raises UserError if they are of other data."""
    parsed = parse_result_name(name)
    if parsed is None:
        raise UserError(f"There is no task {name!r} any more, so its items can't be compared.")
    revisions = [next(result.data_revision for result in run.results if result.task == name) for run in (a, b)]
    if revisions[0] != revisions[1]:
        raise UserError(f"{name} was measured on other data: {revisions[0]} and {revisions[1]}.")
    return compare_items(parsed[0], folder.read_items(a.path, name), folder.read_items(b.path, name))


def compare_items(task: Task, a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> list[Comparison]:
    """A task's numbers over the items that both sides were asked. Raises UserError if there are none."""
    a, b = as_much_text(a, b)
    shared = {(output.item, output.prompt) for output in a} & {(output.item, output.prompt) for output in b}
    if not shared:
        raise UserError(f"{task.title}: the two runs have no item in common.")
    a, b = ([output for output in side if (output.item, output.prompt) in shared] for side in (a, b))
    units_a, units_b = task.units(a), task.units(b)
    headline, *parts = [_comparison(task, suffix, units, units_b[suffix]) for suffix, units in units_a.items() if units]
    return [replace(headline, flips=flips(a, b), agreement=agreement(a, b)), *parts]


def as_much_text(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> tuple[Sequence[ItemOutput], Sequence[ItemOutput]]:
    """Both sides without the words of their questions, where one lacks them: as runs that come with the project do."""
    if all(output.prompt for output in (*a, *b)):
        return a, b
    return [output.without_text() for output in a], [output.without_text() for output in b]


def _comparison(task: Task, suffix: str, a: Units, b: Units) -> Comparison:
    """One number over the units that both sides have, without what is said of items."""
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
        p=_probability(scores[:, 0], scores[:, 1]),
    )


def _probability(a: np.ndarray, b: np.ndarray) -> float | None:
    """`Comparison.p` of scores [units]."""
    if np.isin((a, b), (0, 100)).all():
        return mcnemar(a > 0, b > 0)
    differences = b - a
    if not np.isfinite(differences).all() or (differences != 0).sum() > FEW_UNITS:
        return None
    return float(sign_flips(differences[:, None])[0])


def value_of(task: Task, mean: float) -> float:
    """The number that a mean of unit scores stands for; infinite where it is too large."""
    try:
        return task.value(float(mean))
    except OverflowError:
        return math.inf


def interval(a: np.ndarray, b: np.ndarray, value: Callable[[float], float] = float) -> tuple[float, float]:
    """Bounds of value(mean b) - value(mean a) with 95% confidence: units are drawn with replacement, in pairs.

    Percentile bootstrap (Efron 1979). Scores [units]; NaN where a score is no number.
    """
    means = resampled_means(np.stack([a, b], axis=1), RESAMPLES)
    changes = np.array([value(mean_b) - value(mean_a) for mean_a, mean_b in means])
    if not np.isfinite(changes).all():
        return math.nan, math.nan
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_means(scores: np.ndarray, resamples: int, seed: int = SEED) -> np.ndarray:
    """Means [resamples, methods] of scores [units, methods]; each resample draws the same units for all methods.

    A method with a score that is no number has no means that are.
    """
    units = len(scores)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, scores.shape[1]))
    step = max(1, DRAWN_AT_ONCE // units)
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
    return _mcnemar_of_counts(int((a & ~b).sum()), int((~a & b).sum()))


@lru_cache(maxsize=100_000)
def _mcnemar_of_counts(lost: int, gained: int) -> float:
    flipped, fewer = lost + gained, min(lost, gained)
    logs = [
        math.lgamma(flipped + 1) - math.lgamma(k + 1) - math.lgamma(flipped - k + 1) - flipped * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def sign_flips(differences: np.ndarray) -> np.ndarray:
    """The two-sided probability [pairs] that a sum as far from zero comes by chance, if each of the differences [units,
    pairs] had either sign with probability one half.

    Of each pair at most FEW_UNITS are not zero. By `RESAMPLES` random signs: Fisher's randomization test of paired
    differences (The Design of Experiments, 1935, section 21).
    """
    most = np.sort(np.abs(differences), axis=0)[-FEW_UNITS:]  # signs of zeros, and the order of units, do not matter
    signs = np.random.default_rng(SEED).choice((-1.0, 1.0), size=(RESAMPLES, len(most)))
    reached = np.abs(differences.sum(axis=0)) * (1 - 1e-9)
    return (1 + (np.abs(signs @ most) >= reached).sum(axis=0)) / (1 + RESAMPLES)


def flips(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> Flips | None:
    """How the items' scores and answers changed; None for texts, which have no answers."""
    pairs = _answered_pairs(a, b)
    if not pairs:
        return None
    return Flips(
        lost=sum(first.score > second.score for first, second in pairs),
        gained=sum(first.score < second.score for first, second in pairs),
        changed=sum(first.score == second.score and first.prediction != second.prediction for first, second in pairs),
    )


def agreement(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> float | None:
    """The share of items with the same answer; None for texts."""
    pairs = _answered_pairs(a, b)
    return sum(first.prediction == second.prediction for first, second in pairs) / len(pairs) if pairs else None


def _answered_pairs(a: Sequence[ItemOutput], b: Sequence[ItemOutput]) -> list[tuple[ItemOutput, ItemOutput]]:
    """Both outputs of each item that both sides have and that has a right answer."""
    second = {output.item: output for output in b}
    return [(output, second[output.item]) for output in a if output.gold and output.item in second]


def separated(scores: np.ndarray, *, higher_is_better: bool = True) -> np.ndarray:
    """Which methods are better than which by more than chance, pair by pair: [methods, methods], true at [i, j] if j
    beats i.

    `scores` [units, methods] are of the same units. A method is better than another if the paired bootstrap interval of
    their difference leaves out zero and the other test that goes with it agrees (see `Comparison.p`). Any is better
    than one without numbers.
    """
    finite = np.isfinite(scores).all(axis=0)
    result = np.broadcast_to(finite & ~finite[:, None], (len(finite),) * 2).copy()
    if finite.any():
        table = scores[:, finite] if higher_is_better else -scores[:, finite]
        result[np.ix_(finite, finite)] = _separated(table)
    return result


def better(scores: np.ndarray, *, higher_is_better: bool = True, pairs: np.ndarray | None = None) -> np.ndarray:
    """Which methods are better than which by more than chance, one order for all: as `separated`, or so much better
    than a third whose mean is no lower.

    So the fewer are better the higher the mean, and of methods that equally many are better than, none is better than
    another. `pairs` is what `separated` gives for these scores, where that is known.
    """
    result = separated(scores, higher_is_better=higher_is_better) if pairs is None else pairs.copy()
    finite = np.isfinite(scores).all(axis=0)
    mean = scores[:, finite].mean(axis=0) * (1 if higher_is_better else -1)
    among = result[np.ix_(finite, finite)]
    if finite.any():
        result[np.ix_(finite, finite)] = [among[mean >= value].any(axis=0) for value in mean]
    return result


def _separated(table: np.ndarray) -> np.ndarray:
    """Which methods' means are higher than which by both tests: [methods, methods], true at [i, j] if j's is.

    `table` [units, methods] is finite, and more is better in it.
    """
    mean, means = table.mean(axis=0), resampled_means(table, RESAMPLES)
    rounding = 1e-12 * np.abs(table).max(initial=0.0)  # sums of the same scores in another order may differ so much
    not_higher = [(means - means[:, [index]] <= rounding).mean(axis=0) for index in range(len(mean))]
    separated = (np.array(not_higher) < (1 - LEVEL) / 2) & (mean > mean[:, None])
    if np.isin(table, (0, 100)).all():
        right = (table > 0).astype(float)
        lost, gained = right.T @ (1 - right), (1 - right).T @ right
        for i, j in np.argwhere(separated):
            separated[i, j] = _mcnemar_of_counts(int(lost[i, j]), int(gained[i, j])) < 1 - LEVEL
        return separated
    for i in range(len(mean)):
        differences = table - table[:, [i]]
        few = np.flatnonzero(separated[i] & ((differences != 0).sum(axis=0) <= FEW_UNITS))
        if len(few):
            separated[i, few] = sign_flips(differences[:, few]) < 1 - LEVEL
    return separated


def find_run(name: str) -> RunFolder:
    """A run by its id, the start of its id, or the path of its folder. Raises UserError if that is not one run."""
    paths = [path for path in folder.run_folders() if name and path.name.startswith(name)]
    path = folders.named(name)
    if not paths and name and path.is_dir():
        paths = [path.resolve()]
    if len(paths) != 1:
        count = f"are {len(paths)} runs" if paths else "is no run"
        raise UserError(f"There {count} {name!r}; see: python -m quant_engine list runs")
    return folder.read(paths[0])
