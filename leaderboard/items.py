"""What measured runs scored item by item: read once per run, joined where the items are the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column
from quant_engine.evaluate import Task, parse_result_name
from quant_engine.runs import folder, paired
from quant_engine.spec import digest

logger = logging.getLogger(__name__)

MOST_RUNS = 400
"""Runs of one model that are compared with each other; of more than these none are."""


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


def runs_with(board: Board, model: str, column: Column) -> tuple[Run, ...]:
    """The measured runs of a model that have a number, or a collapse, in a column; none if they are too many."""
    column_index = board.columns.index(column)
    of_model = ((board.rows["model"] == model) & (board.rows["source"] == "measured")).to_numpy()
    cells = board.cells[:, column_index]
    rows = np.flatnonzero(of_model & ((cells == Cell.OK) | (cells == Cell.COLLAPSED)))
    if len(rows) > MOST_RUNS:
        return ()
    revisions = board.results["data_revision"].iloc[board.origin[rows, column_index]]
    return tuple(
        Run(run_id, _stamp(run_id), str(revision))
        for run_id, revision in zip(board.rows["run_id"].iloc[rows], revisions, strict=True)
    )


def scored(runs: Sequence[Run], number: str) -> list[Scored]:
    """The unit scores of runs by the items that they were asked. Runs whose items can't be read are left out."""
    parsed = parse_result_name(number)
    if parsed is None:
        return []
    task, suffix = parsed
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


@lru_cache(maxsize=4)
def resampled_values(runs: tuple[Run, ...], number: str, draws: int) -> dict[str, np.ndarray]:
    """A number of each run as it comes out [draws] when items are drawn anew with replacement, by run id.

    Runs that were asked the same items get the same ones in every draw. Runs whose items can't be read are left out.
    """
    values = {}
    for seed, group in enumerate(scored(runs, number)):
        means = paired.resampled_means(group.scores, draws, seed=seed)
        for run_id, run_means in zip(group.runs, means.T, strict=True):
            values[run_id] = np.array([paired.value_of(group.task, mean) for mean in run_means])
    return values


def unit_scores(run_id: str, number: str) -> tuple[str, np.ndarray] | None:
    """What identifies the units that a number of a run is the mean of, and their scores; None if they can't be read."""
    return _units(run_id, _stamp(run_id), number)


@lru_cache(maxsize=4 * MOST_RUNS)
def _units(run_id: str, stamp: int, number: str) -> tuple[str, np.ndarray] | None:
    task, suffix = parse_result_name(number)
    try:
        units = task.units(folder.read_items(folder.run_path(run_id), task.name))[suffix]
    except Exception:  # whatever is wrong with one run's files, the others are ranked
        logger.warning("The items of run %s can't be compared.", run_id, exc_info=True)
        return None
    names = sorted(units)
    return digest(names), np.array([units[name] for name in names], dtype=float)


def _stamp(run_id: str) -> int:
    try:
        return (folder.run_path(run_id) / "results.parquet").stat().st_mtime_ns
    except OSError:
        return 0
