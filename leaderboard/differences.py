"""Which differences to FP16 are more than chance: measured numbers, item by item against the FP16 run of their row.

A number of the study comes without items, so its difference stands as it is printed. A measured one counts as different
only if the same items, in pairs, say so (quant_engine/runs/paired.py), and FP16's number lies outside of its range
over orders of sums (orders.py); without items to compare it does not.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column
from leaderboard.items import MOST_RUNS, runs_with
from leaderboard.ranks import PATIENCE_S, separate


class Differences:
    """What is known of a board's differences, found in a thread of its own. Safe to share between threads."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._pool = ThreadPoolExecutor(1, "differences")
        self._board: Board | None = None
        self._future: Future[np.ndarray] = Future()
        self._lock = threading.Lock()

    def finished(self) -> bool:
        """Whether the differences of the board that was asked for last are known."""
        return self._future.done()

    def of(self, board: Board) -> np.ndarray:
        """`more_than_chance` of a board; until that is known, that of a board without items."""
        with self._lock:
            if board is not self._board:
                self._board, self._future = board, self._pool.submit(more_than_chance, board)
            future = self._future
        try:
            return future.result(self._patience)
        except TimeoutError:
            return printed(board)


def printed(board: Board) -> np.ndarray:
    """Which numbers [rows, columns] come without items, and so differ as they are printed: those of the study."""
    paper = (board.rows["source"] != "measured").to_numpy()
    return np.broadcast_to(paper[:, None], board.values.shape)


def more_than_chance(board: Board) -> np.ndarray:
    """Which numbers [rows, columns] differ from FP16's by more than chance."""
    result = printed(board).copy()
    measured = np.flatnonzero(~result[:, 0]) if board.columns else []
    models = board.rows["model"].iloc[measured]
    for model in models.unique():
        counts = (board.cells[measured[models == model]] != Cell.MISSING).sum(axis=0)
        for index in np.flatnonzero((counts > 1) & (counts <= MOST_RUNS)):
            if board.columns[index].compared:
                result[differing_rows(board, model, board.columns[index]), index] = True
    return result


def differing_rows(board: Board, model: str, column: Column) -> np.ndarray:
    """The measured rows of a model whose number in a column differs from FP16's by more than chance."""
    index = board.columns.index(column)
    run_ids = board.rows["run_id"].to_numpy()
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero((board.rows["model"] == model) & (board.rows["source"] == "measured")):
        rows_of.setdefault(run_ids[row], []).append(row)
    found = []
    for group in separate(runs_with(board, model, column), column.task):
        for position, run_id in enumerate(group.runs):
            for row in rows_of[run_id]:
                fp16 = board.reference_run[row, index]
                beyond = not board.lowest[row, index] <= board.reference[row, index] <= board.highest[row, index]
                if fp16 in group.runs and beyond:
                    other = group.runs.index(fp16)
                    if group.pairs[position, other] or group.pairs[other, position]:
                        found.append(row)
    return np.array(found, dtype=int)
