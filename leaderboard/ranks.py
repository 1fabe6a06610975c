"""Ranks of the rows of a table: measured rows that can't be told apart item by item share one.

Item files are read once per run, and a set of runs is compared once, whatever is filtered or sorted afterwards. That
happens in a thread of its own: a table that comes before the comparison is shown without ranks, and again with them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from leaderboard import paired
from leaderboard.analysis import Board, Cell, View
from leaderboard.columns import Column, headline
from quant_engine.evaluate import Task, task_of_number
from quant_engine.runs import folder
from quant_engine.spec import digest

logger = logging.getLogger(__name__)

MOST_RUNS = 400
"""Runs of one model that are compared with each other; of more than these no ranks are made."""
PATIENCE_S = 0.1
MOST_KEPT = 64


class Run(NamedTuple):
    """A measured run with the data that one of its numbers is of. `stamp` changes when the run is written again."""

    run_id: str
    stamp: int
    data_revision: str


@dataclass(frozen=True)
class Scored:
    """Runs that were asked the same items, and their unit scores [units, runs] of one number of `task`."""

    runs: tuple[str, ...]
    scores: np.ndarray
    task: Task
    higher_is_better: bool


@dataclass(frozen=True)
class Separated:
    """Runs that were asked the same items: `better[i, j]` is true if run j is better than run i by more than chance."""

    runs: tuple[str, ...]
    better: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Ranks of a view's rows by `column`, 0 where there is none; `shared` says where others have the same rank.

    `waiting` is true while measured rows are still being compared.
    """

    column: Column
    ranks: np.ndarray
    shared: np.ndarray
    waiting: bool = False

    def text(self, row: int) -> str:
        """A row's rank as it is written: 2, 2= where others share it, nothing where there is none."""
        return f"{self.ranks[row]}{'=' * bool(self.shared[row])}" if self.ranks[row] else ""


class Comparisons:
    """Which measured runs are better than which, computed aside. Safe to share between threads."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._pool = ThreadPoolExecutor(1, "comparisons")
        self._known: dict[tuple, Future[list[Separated]]] = {}
        self._lock = threading.Lock()

    def finished(self) -> int:
        """How many are known. Grows when a comparison is finished."""
        return sum(future.done() for future in list(self._known.values()))

    def of(self, runs: tuple[Run, ...], number: str) -> list[Separated] | None:
        """The runs by the items that they were asked; None if that is not known within a moment."""
        key = (runs, number)
        with self._lock:
            if key not in self._known:
                if len(self._known) >= MOST_KEPT:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = self._pool.submit(separated, runs, number)
            future = self._known[key]
        try:
            return future.result(self._patience)
        except TimeoutError:
            return None


def ranking(board: Board, seen: View, comparisons: Comparisons) -> Ranking | None:
    """The ranks of a view's rows among those shown, by the column that it is sorted by, else by the one that says most.

    A measured row's rank is 1, and 1 more for each shown run of the model that is better by more than chance; runs that
    were asked other items than most have none. A row of the study is ranked by its printed number alone. None if the
    view has no score.
    """
    column = headline(seen.columns, seen.query.sort)
    if column is None:
        return None
    place = board.columns.index(column)
    ranks = _by_value(seen, board.values[seen.places, place], lower_is_better=column.better == "lower")
    shared = np.zeros(len(ranks), dtype=bool)
    waiting = False
    run_ids = seen.rows["run_id"].where(seen.measured, "").to_numpy()
    for model in seen.rows.loc[seen.measured, "model"].unique():
        runs = runs_with(board, model, column)
        groups = comparisons.of(runs, column.task) if runs else []
        waiting |= groups is None
        shown = [(one, np.flatnonzero(np.isin(run_ids, one.runs))) for one in groups or ()]
        if not shown:
            continue
        group, rows = max(shown, key=lambda pair: len(pair[1]))
        at = [group.runs.index(run_id) for run_id in run_ids[rows]]
        ranks[rows] = 1 + group.better[np.ix_(at, at)].sum(axis=1)
    keys = pd.DataFrame({"model": seen.rows["model"], "measured": seen.measured, "rank": ranks})[ranks > 0]
    shared[ranks > 0] = keys.duplicated(keep=False)
    return Ranking(column, ranks, shared, waiting)


def _by_value(seen: View, values: np.ndarray, *, lower_is_better: bool) -> np.ndarray:
    """Plain ranks of the study's rows among those of the same model; 0 for rows without a number, and measured ones."""
    if seen.measured.all():
        return np.zeros(len(values), dtype=int)
    of_study = pd.Series(np.where(seen.measured, np.nan, values))
    ranks = of_study.groupby(seen.rows["model"].to_numpy()).rank(method="min", ascending=lower_is_better)
    return ranks.fillna(0).to_numpy(dtype=int)


def runs_with(board: Board, model: str, column: Column) -> tuple[Run, ...]:
    """The measured runs of a model that have a number, or a collapse, in a column; none if they are too many."""
    place = board.columns.index(column)
    ours = ((board.rows["model"] == model) & (board.rows["source"] == "measured")).to_numpy()
    cells = board.cells[:, place]
    rows = np.flatnonzero(ours & ((cells == Cell.OK) | (cells == Cell.COLLAPSED)))
    if len(rows) > MOST_RUNS:
        return ()
    revisions = board.results["data_revision"].iloc[board.origin[rows, place]]
    return tuple(
        Run(run_id, _stamp(run_id), str(revision))
        for run_id, revision in zip(board.rows["run_id"].iloc[rows], revisions, strict=True)
    )


def separated(runs: Sequence[Run], number: str) -> list[Separated]:
    """For each set of items, which of the runs that were asked them are better than which, by more than chance."""
    return [
        Separated(one.runs, paired.better(one.scores, higher_is_better=one.higher_is_better))
        for one in scored(runs, number)
    ]


def scored(runs: Sequence[Run], number: str) -> list[Scored]:
    """The unit scores of runs by the items that they were asked. Runs whose items can't be read are left out."""
    known = task_of_number(number)
    if known is None:
        return []
    task, suffix = known
    groups: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    for run in runs:
        units = _units(run.run_id, run.stamp, number)
        if units is not None:
            groups.setdefault((run.data_revision, units[0]), []).append((run.run_id, units[1]))
    return [
        Scored(
            tuple(run_id for run_id, _ in group),
            np.stack([scores for _, scores in group], axis=1),
            task,
            task.higher(suffix),
        )
        for group in groups.values()
    ]


@lru_cache(maxsize=4 * MOST_RUNS)
def _units(run_id: str, stamp: int, number: str) -> tuple[str, np.ndarray] | None:
    """What identifies the units that a number of a run is the mean of, and their scores; None if they can't be read."""
    task, suffix = task_of_number(number)
    try:
        units = task.units(folder.read_items(folder.place(run_id), task.name))[suffix]
    except Exception:  # whatever is wrong with one run's files, the others are ranked
        logger.warning("The items of run %s can't be compared.", run_id, exc_info=True)
        return None
    names = sorted(units)
    return digest(names), np.array([units[name] for name in names], dtype=float)


def _stamp(run_id: str) -> int:
    try:
        return (folder.place(run_id) / "results.parquet").stat().st_mtime_ns
    except OSError:
        return 0
