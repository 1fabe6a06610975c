"""Ranks of the rows of a table: measured rows that can't be told apart item by item share one.

Item files are read once per run, and a set of runs is compared once, whatever is filtered or sorted afterwards. That
happens in a thread of its own: a table that comes before the comparison is shown without ranks, and again with them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from leaderboard import orders
from leaderboard.analysis import Board, Cell, View
from leaderboard.columns import Column, headline
from leaderboard.items import Run, runs_with, scored
from quant_engine.runs import paired

PATIENCE_S = 0.05
MOST_COMPARISONS = 256


@dataclass(frozen=True)
class Separated:
    """Runs that were asked the same items: `pairs[i, j]` is true if run j is better than run i by more than chance, in
    `better` also where a third run says so (see `paired.better`)."""

    runs: tuple[str, ...]
    pairs: np.ndarray
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
    """Which measured runs are better than which, computed in a thread of its own. Safe to share between threads."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._pool = ThreadPoolExecutor(1, "comparisons")
        self._futures: dict[tuple, Future[list[Separated]]] = {}
        self._lock = threading.Lock()

    def finished(self) -> int:
        """The number of comparisons that are finished; it grows with each."""
        return sum(future.done() for future in list(self._futures.values()))

    def of(self, runs: tuple[Run, ...], number: str) -> list[Separated] | None:
        """Some runs by the items that they were asked, compared; None if that is not known within a moment."""
        key = (runs, number)
        with self._lock:
            if key not in self._futures:
                if len(self._futures) >= MOST_COMPARISONS:
                    self._futures.pop(next(iter(self._futures)))
                self._futures[key] = self._pool.submit(separate, runs, number)
            future = self._futures[key]
        try:
            return future.result(self._patience)
        except TimeoutError:
            return None


def rank(board: Board, view: View, comparisons: Comparisons) -> Ranking | None:
    """The ranks of a view's rows among those shown, by the column that it is sorted by, else by the one that says most.

    A measured row's rank is 1, and 1 more for each shown run of the model that is better (see `paired.better`), beyond
    the noise of arithmetic where that is known (see orders); runs that were asked other items than most have none. A
    row of the study is ranked by its printed number alone. None if the view has no score.
    """
    column = headline(view.columns, (view.cells != Cell.MISSING).sum(axis=0), view.query.sort)
    if column is None:
        return None
    values = board.values[view.board_rows, board.columns.index(column)]
    ranks = _by_value(view, values, lower_is_better=column.better == "lower")
    shared = np.zeros(len(ranks), dtype=bool)
    waiting = False
    run_ids = view.rows["run_id"].where(view.measured, "").to_numpy()
    for model in view.rows.loc[view.measured, "model"].unique():
        runs = runs_with(board, model, column)
        groups = comparisons.of(runs, column.task) if runs else []
        waiting |= groups is None
        rows_of_groups = [(group, np.flatnonzero(np.isin(run_ids, group.runs))) for group in groups or ()]
        if not rows_of_groups:
            continue
        group, rows = max(rows_of_groups, key=lambda pair: len(pair[1]))
        runs_shown = [group.runs.index(run_id) for run_id in run_ids[rows]]
        better = group.better[np.ix_(runs_shown, runs_shown)]
        shown = view.board_rows[rows], board.columns.index(column)
        ranks[rows] = 1 + (better & orders.apart(board.lowest[shown], board.highest[shown])).sum(axis=1)
    keys = pd.DataFrame({"model": view.rows["model"], "measured": view.measured, "rank": ranks})[ranks > 0]
    shared[ranks > 0] = keys.duplicated(keep=False)
    return Ranking(column, ranks, shared, waiting)


def _by_value(view: View, values: np.ndarray, *, lower_is_better: bool) -> np.ndarray:
    """Plain ranks of the study's rows among those of the same model; 0 for rows without a number, and measured ones."""
    if view.measured.all():
        return np.zeros(len(values), dtype=int)
    printed = pd.Series(np.where(view.measured, np.nan, values))
    ranks = printed.groupby(view.rows["model"].to_numpy()).rank(method="min", ascending=lower_is_better)
    return ranks.fillna(0).to_numpy(dtype=int)


@lru_cache(maxsize=MOST_COMPARISONS)
def separate(runs: tuple[Run, ...], number: str) -> list[Separated]:
    """For each set of items, which of the runs that were asked them are better than which, by more than chance."""
    result = []
    for group in scored(runs, number):
        pairs = paired.separated(group.scores, higher_is_better=group.higher_is_better)
        better = paired.better(group.scores, higher_is_better=group.higher_is_better, pairs=pairs)
        result.append(Separated(group.runs, pairs, better))
    return result
