"""What settings keep of a model's quality, as frames and arrays: losses, cliffs, the cheapest, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from leaderboard import against_fp16, analysis, votes
from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column
from leaderboard.differences import differing_rows
from leaderboard.store import PAPER_METHODS
from quant_engine import notation
from quant_engine.spec import UserError

MOST_POINTS = 1_500
DRAWS = 2_000


def points(board: Board, model: str, task: str) -> pd.DataFrame:
    """One line per row of a model that has a number for a task: its setting, `stored_bits`, `size_gb`, the `value` and
    its `text`, FP16's `reference`, `loss` (see `losses`), `shade` (see `against_fp16`), `error` (standard error) and
    the setting's `label`. Raises UserError if there is none."""
    column = column_of_task(board, task)
    index = board.columns.index(column)
    rows = _rows(board, (board.rows["model"] == model).to_numpy() & ~np.isnan(board.values[:, index]))
    if rows.empty:
        raise UserError(f"{model} has no number for {column.title}.")
    board_rows = rows.index
    rows = rows.reset_index(drop=True)
    rows["value"], rows["reference"] = board.values[board_rows, index], board.reference[board_rows, index]
    origin = board.origin[board_rows, index]
    errors = board.results["standard_error"].to_numpy(dtype=float)
    rows["error"] = np.where(origin >= 0, errors[np.maximum(origin, 0)], np.nan)
    values, reference = rows["value"].to_numpy(), rows["reference"].to_numpy()
    rows["loss"] = losses(column, values, reference)
    differing = (rows["source"] != "measured").to_numpy() | np.isin(board_rows, differing_rows(board, model, column))
    rows["shade"] = against_fp16.shade(values, reference, column.better == "lower") * differing
    rows["text"] = [column.text(v, measured=m) for v, m in zip(values, rows["source"] == "measured", strict=True)]
    rows["label"] = labels(rows)
    return rows


def collapsed(board: Board, model: str, task: str) -> pd.DataFrame:
    """One line per row of a model that collapsed on a task and has no number: its setting and the `label`."""
    index = board.columns.index(column_of_task(board, task))
    without = (board.cells[:, index] == Cell.COLLAPSED) & np.isnan(board.values[:, index])
    rows = _rows(board, (board.rows["model"] == model).to_numpy() & without).reset_index(drop=True)
    rows["label"] = labels(rows)
    return rows


def _rows(board: Board, mask: np.ndarray) -> pd.DataFrame:
    key = ["method", "w_bits", "a_bits", "group_size", "source", "run_id"]  # FP16 stands in several tracks
    return board.rows[mask].drop_duplicates(key).head(MOST_POINTS)


def labels(rows: pd.DataFrame) -> list[str]:
    """The setting of each row, with a word for those that were measured here."""
    return [
        notation.setting(*setting) + (" (measured)" if source == "measured" else "")
        for *setting, source in rows[["method", "w_bits", "a_bits", "group_size", "source"]].itertuples(index=False)
    ]


def losses(column: Column, values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """What is lost against FP16: points of a percentage; percent of FP16's number for perplexities and MME's scores."""
    if in_points(column):
        return reference - values
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 100 * (values / reference - 1)
    return share if column.better == "lower" else -share


def loss_unit(column: Column) -> str:
    """The unit of `losses`, as it is written behind a number."""
    return "points" if in_points(column) else "%"


def cheapest(settings: pd.DataFrame, within: float) -> pd.Series | None:
    """Of some `points`, the one with the fewest stored bits that loses at most `within`, the best of those that tie;
    None if there is none."""
    good = settings[(settings["loss"] <= within) & (settings["w_bits"] < 16) & settings["stored_bits"].notna()]
    return None if good.empty else good.sort_values(["stored_bits", "loss"], kind="stable").iloc[0]


def best_of_width(settings: pd.DataFrame) -> pd.DataFrame:
    """For each method and width, the row that loses least, methods in the study's order, wide to narrow."""
    keyed = settings.assign(rank=settings["method"].map(method_order), comparable_loss=settings["loss"].fillna(np.inf))
    ordered = keyed.sort_values(["rank", "method", "w_bits", "comparable_loss"], ascending=[True, True, False, True])
    return ordered.drop_duplicates(["method", "w_bits", "a_bits"]).drop(columns=["rank", "comparable_loss"])


def cliffs(settings: pd.DataFrame, least: float) -> pd.DataFrame:
    """For each method, the step to fewer bits that loses most, if it loses `least` or more."""
    steps = []
    for method, line in best_of_width(settings[settings["a_bits"] == 16]).groupby("method", sort=False):
        loss, bits = line["loss"].to_numpy(), line["w_bits"].to_numpy()
        if len(loss) < 2 or np.isnan(loss).all():
            continue
        extra = np.diff(loss)
        step = int(np.nanargmax(extra)) if not np.isnan(extra).all() else 0
        if extra[step] >= least:
            steps.append((method, bits[step], bits[step + 1], extra[step]))
    return pd.DataFrame(steps, columns=["method", "above", "below", "lost"])


def pareto(sizes: np.ndarray, values: np.ndarray, *, higher_is_better: bool) -> np.ndarray:
    """For each point, whether none that is as small is better, and none as good is smaller.

    `sizes` [points], `values` [points], or [draws, points] to find the front of each draw. Points that are no number
    are never on it.
    """
    quality = np.where(np.isfinite(values), values if higher_is_better else -values, -np.inf)
    different, group = np.unique(sizes, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(different)))
    best = np.maximum.reduceat(quality[..., order], starts, axis=-1)  # of each size
    smaller = np.full_like(best, -np.inf)
    smaller[..., 1:] = np.maximum.accumulate(best, axis=-1)[..., :-1]
    return (quality == best[..., group]) & (quality > smaller[..., group])


def pareto_chance(settings: pd.DataFrame, resampled: Mapping[str, np.ndarray], *, higher_is_better: bool) -> np.ndarray:
    """For each setting, the share of draws in which it is on the Pareto front; NaN for those that stay where they are.

    Args:
        settings: Some `points`. One with a standard error is drawn from a normal distribution (a parametric bootstrap),
            unless its run is in `resampled`.
        resampled: Values [draws] of runs by id, from a bootstrap over items, the same ones for all runs.
        higher_is_better: Whether higher values are better.
    """
    errors = settings["error"].to_numpy()
    generator = np.random.default_rng(0)
    values = settings["value"].to_numpy() + np.nan_to_num(errors) * generator.standard_normal((DRAWS, len(settings)))
    by_items = settings["run_id"].isin(resampled.keys()).to_numpy()
    for index in np.flatnonzero(by_items):
        values[:, index] = resampled[settings["run_id"].iloc[index]]
    moving = by_items | ~np.isnan(errors)
    if not moving.any():
        return np.full(len(settings), np.nan)
    sizes, hits = settings["size_gb"].to_numpy(), np.zeros(len(settings))
    for part in np.array_split(values, 10):  # not all at once: there may be thousands of points
        hits += pareto(sizes, part, higher_is_better=higher_is_better).sum(axis=0)
    return np.where(moving, hits / DRAWS, np.nan)


def blind_rates(board: Board, model: str) -> pd.DataFrame:
    """One line per setting of a model that has blind votes: `method`, `w_bits`, `a_bits`, `group_size`, the rate as a
    `share`, and its `votes`, more bits first."""
    rates = board.results[(board.results["task"] == votes.TASK) & (board.results["model"] == model)]
    rates = rates[["method", "w_bits", "a_bits", "group_size", "value", "items"]].drop_duplicates()
    rates = rates.assign(share=rates["value"] / 100, votes=rates["items"], rank=rates["method"].map(method_order))
    rates = rates.sort_values(["rank", "method", "w_bits", "group_size"], ascending=[True, True, False, True])
    return rates.drop(columns=["value", "items", "rank"]).reset_index(drop=True)


def column_of_task(board: Board, task: str) -> Column:
    """A board's column by its task. Raises UserError if no result is of it."""
    for column in board.columns:
        if column.task == task:
            return column
    raise UserError(f"No result is of the task {task!r}.")


def in_points(column: Column) -> bool:
    return column.better == "higher" and not column.task.startswith("mme")


def method_order(method: str) -> int:
    return PAPER_METHODS.index(method) if method in PAPER_METHODS else len(PAPER_METHODS)


def score_percents(board: Board, rows: np.ndarray) -> tuple[list[Column], np.ndarray]:
    """The columns of scores, and the percent of FP16 that some of the board's rows keep on each [rows, scores]; a
    collapse without a number is 0."""
    scores = np.flatnonzero(analysis.compared_columns(board.columns))
    columns, part = [board.columns[index] for index in scores], np.ix_(rows, scores)
    collapsed, lower = board.cells[part] == Cell.COLLAPSED, analysis.lower_columns(columns)
    return columns, against_fp16.percent_of_fp16(board.values[part], board.reference[part], lower, collapsed)


def quantized_rows(board: Board, model: str) -> np.ndarray:
    """The indices of a model's quantized settings in the board's rows."""
    return np.flatnonzero((board.rows["model"] == model) & (board.rows["w_bits"] < 16))


def mean_percents(board: Board, model: str, *, pictures: bool) -> pd.DataFrame:
    """Per quantized setting of a model the `percent` of FP16 kept, on average over its scores about pictures or over
    the others: accuracies, or perplexities if it has none."""
    indices = quantized_rows(board, model)
    columns, percents = score_percents(board, indices)
    groups = np.array([column.group for column in columns])
    averaged = groups == "Pictures" if pictures else np.isin(groups, ("CommonSenseQA", "MMLU"))
    if not pictures and np.isnan(percents[:, averaged]).all():
        averaged = groups == "Perplexity"
    rows, percents = board.rows.iloc[indices], percents[:, averaged]
    filled = ~np.isnan(percents).all(axis=1) if percents.size else np.zeros(len(rows), dtype=bool)
    means = np.nanmean(percents[filled], axis=1) if filled.any() else []
    rows = rows[filled].assign(group=rows["group_size"].fillna(0), percent=means)
    key = ["method", "w_bits", "a_bits", "group"]
    return rows[[*key, "percent"]].drop_duplicates(key)
