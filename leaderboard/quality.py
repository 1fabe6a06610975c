"""What settings keep of a model's quality, as frames and arrays: losses, cliffs, the cheapest, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from leaderboard import notation
from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column
from leaderboard.store import PAPER_METHODS
from quant_engine.spec import UserError

MOST_POINTS = 1_500
DRAWS = 2_000


def points(board: Board, model: str, task: str) -> pd.DataFrame:
    """One line per row of a model that has a number for a task: its setting, `stored_bits`, `size_gb`, `value`, FP16's
    `reference`, `loss` (see `losses`), `error` (standard error) and the `label`. Raises UserError if there is none."""
    column = column_of_task(board, task)
    place = board.columns.index(column)
    rows = _rows(board, (board.rows["model"] == model).to_numpy() & ~np.isnan(board.values[:, place]))
    if rows.empty:
        raise UserError(f"{model} has no number for {column.title}.")
    places = rows.index
    rows = rows.reset_index(drop=True)
    rows["value"], rows["reference"] = board.values[places, place], board.reference[places, place]
    origin = board.origin[places, place]
    errors = board.results["standard_error"].to_numpy(dtype=float)
    rows["error"] = np.where(origin >= 0, errors[np.maximum(origin, 0)], np.nan)
    rows["loss"] = losses(column, rows["value"].to_numpy(), rows["reference"].to_numpy())
    rows["label"] = labels(rows)
    return rows


def collapsed(board: Board, model: str, task: str) -> pd.DataFrame:
    """One line per row of a model that collapsed on a task and has no number: its setting and the `label`."""
    place = board.columns.index(column_of_task(board, task))
    without = (board.cells[:, place] == Cell.COLLAPSED) & np.isnan(board.values[:, place])
    rows = _rows(board, (board.rows["model"] == model).to_numpy() & without).reset_index(drop=True)
    rows["label"] = labels(rows)
    return rows


def _rows(board: Board, mask: np.ndarray) -> pd.DataFrame:
    once = ["method", "w_bits", "a_bits", "group_size", "source", "run_id"]  # FP16 stands in several tracks
    return board.rows[mask].drop_duplicates(once).head(MOST_POINTS)


def labels(rows: pd.DataFrame) -> list[str]:
    """The setting of each row, with a word for those that were measured here."""
    return [
        notation.setting(*one) + (" (measured)" if source == "measured" else "")
        for *one, source in rows[["method", "w_bits", "a_bits", "group_size", "source"]].itertuples(index=False)
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


def cheapest(found: pd.DataFrame, within: float) -> pd.Series | None:
    """The setting with the fewest stored bits that loses at most `within`; the best of those that tie. None if none."""
    good = found[(found["loss"] <= within) & (found["w_bits"] < 16) & found["stored_bits"].notna()]
    return None if good.empty else good.sort_values(["stored_bits", "loss"], kind="stable").iloc[0]


def best_of_width(found: pd.DataFrame) -> pd.DataFrame:
    """For each method and width, the row that loses least, methods in the study's order, wide to narrow."""
    ordered = found.assign(rank=found["method"].map(method_order), lossless=found["loss"].fillna(np.inf))
    kept = ordered.sort_values(["rank", "method", "w_bits", "lossless"], ascending=[True, True, False, True])
    return kept.drop_duplicates(["method", "w_bits", "a_bits"]).drop(columns=["rank", "lossless"])


def cliffs(found: pd.DataFrame, least: float) -> pd.DataFrame:
    """For each method, the step to fewer bits that loses most, if it loses `least` or more."""
    steps = []
    for method, line in best_of_width(found[found["a_bits"] == 16]).groupby("method", sort=False):
        loss, bits = line["loss"].to_numpy(), line["w_bits"].to_numpy()
        if len(loss) < 2 or np.isnan(loss).all():
            continue
        extra = np.diff(loss)
        at = int(np.nanargmax(extra)) if not np.isnan(extra).all() else 0
        if extra[at] >= least:
            steps.append((method, bits[at], bits[at + 1], extra[at]))
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


def pareto_chance(
    found: pd.DataFrame,
    resampled: Mapping[str, np.ndarray],
    *,
    higher_is_better: bool,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """For each of the `points`, the share of draws in which it is on the front; NaN for those that stay where they are.

    A run in `resampled` takes its values [draws] from there: a bootstrap over items, the same ones for all runs. Any
    other point with a standard error is drawn from a normal distribution (a parametric bootstrap).
    """
    errors = found["error"].to_numpy()
    generator = np.random.default_rng(seed)
    drawn = found["value"].to_numpy() + np.nan_to_num(errors) * generator.standard_normal((draws, len(found)))
    by_items = found["run_id"].isin(resampled.keys()).to_numpy()
    for place in np.flatnonzero(by_items):
        drawn[:, place] = resampled[found["run_id"].iloc[place]]
    moving = by_items | ~np.isnan(errors)
    if not moving.any():
        return np.full(len(found), np.nan)
    sizes, hits = found["size_gb"].to_numpy(), np.zeros(len(found))
    for part in np.array_split(drawn, 10):  # not all at once: there may be thousands of points
        hits += pareto(sizes, part, higher_is_better=higher_is_better).sum(axis=0)
    return np.where(moving, hits / draws, np.nan)


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


def kept_of(board: Board, model: str) -> tuple[pd.DataFrame, np.ndarray, list[Column]]:
    """A model's quantized rows and, for each score, the percent of FP16 kept; collapsed without a number is 0."""
    mask = ((board.rows["model"] == model) & (board.rows["w_bits"] < 16)).to_numpy()
    places = [place for place, column in enumerate(board.columns) if not column.cost]
    at = np.ix_(mask, places)
    columns = [board.columns[place] for place in places]
    lower = np.array([column.better == "lower" for column in columns], dtype=bool)
    return board.rows[mask], kept_percent(board.values[at], board.reference[at], board.cells[at], lower), columns


def kept_percent(values: np.ndarray, reference: np.ndarray, cells: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Percent of FP16 kept [rows, columns]; for columns where `lower` is better, FP16's value over the setting's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = 100 * np.where(lower, reference / values, values / reference)
    kept[(cells == Cell.COLLAPSED) & np.isnan(kept)] = 0
    return kept


def mean_kept(board: Board, model: str, pictures: bool) -> pd.DataFrame:
    """Percent of FP16 kept on average over a model's scores, per setting: accuracies, or perplexity if it has none."""
    rows, kept, columns = kept_of(board, model)
    groups = np.array([column.group for column in columns])
    wanted = groups == "Pictures" if pictures else np.isin(groups, ("CommonSenseQA", "MMLU"))
    if not pictures and np.isnan(kept[:, wanted]).all():
        wanted = groups == "Perplexity"
    rows, kept = rows.assign(group=rows["group_size"].fillna(0)), kept[:, wanted]
    some = ~np.isnan(kept).all(axis=1) if kept.size else np.zeros(len(rows), dtype=bool)
    rows = rows[some].assign(kept=np.nanmean(kept[some], axis=1) if some.any() else [])
    return rows[["method", "w_bits", "a_bits", "group", "kept"]].drop_duplicates(
        ["method", "w_bits", "a_bits", "group"]
    )


def written(value: float, column: Column) -> str:
    """A value of a column as the table writes it."""
    return notation.perplexity(value, measured=False) if column.better == "lower" else notation.score(value)
