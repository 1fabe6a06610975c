"""Ranks of the rows of a table: measured rows that can't be told apart item by item share one.

Item files are read once per run, and a set of runs is compared once, whatever is filtered or sorted afterwards. That
happens in a thread of its own: a table that comes before the comparison is shown without ranks, and again with them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leaderboard.analysis import Board, Cell, View
from leaderboard.columns import Column, headline
from leaderboard.items import Run, runs_with, scored
from quant_engine.runs import paired

PATIENCE_S = 0.05
MOST_KEPT = 64


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

    A measured row's rank is 1, and 1 more for each shown run of the model that is better (see `paired.better`); runs
    that were asked other items than most have none. A row of the study is ranked by its printed number alone. None if
    the view has no score.
    """
    column = headline(seen.columns, (seen.cells != Cell.MISSING).sum(axis=0), seen.query.sort)
    if column is None:
        return None
    place = board.columns.index(column)
    ranks = _by_value(seen, board.values[seen.board_rows, place], lower_is_better=column.better == "lower")
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


def separated(runs: Sequence[Run], number: str) -> list[Separated]:
    """For each set of items, which of the runs that were asked them are better than which, by more than chance."""
    return [
        Separated(one.runs, paired.better(one.scores, higher_is_better=one.higher_is_better))
        for one in scored(runs, number)
    ]
