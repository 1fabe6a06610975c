"""From tidy results to the table: settings as rows, tasks as columns, everything compared with FP16.

`arrange` does the slow part once per snapshot (a Board); `view` answers every filter, sort and mode from it with
array operations only. A number is compared with FP16 of the same model, source, task and conditions, or with nothing.
Statistics between runs, item by item, are in leaderboard/paired.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from leaderboard import notation, search, sizes
from leaderboard.columns import COMMONSENSE, GROUPS, Column, ordered
from leaderboard.store import chosen_options

Mode = Literal["absolute", "difference", "retained"]
TRACKS = {
    "llm_ptq": "Language",
    "mllm_ptq": "Pictures and language",
    "lora_ft": "LoRA fine-tuning",
    "efficiency": "Efficiency",
}
ROW_KEY = ["model", "track", "method", "w_bits", "a_bits", "group_size", "source", "run_id"]
STATUSES = ("ok", "collapsed")
Range = tuple[float | None, float | None]
PER_ROW = 0  # the group filter's name for "one group per row", which results hold as NaN
LARGEST_RATIO = 10.0  # a perplexity this many times FP16's gets the full shade
LARGEST_LOSS = 0.5  # so does losing this share of FP16's score


class Cell(IntEnum):
    """What a cell holds, and why if it holds no number."""

    MISSING = 0
    OK = 1
    COMPUTED = 2
    COLLAPSED = 3
    NO_REFERENCE = 4


class Query(BaseModel):
    """What a visitor asks of the table. Empty filters let everything through; `sort` is a column's task or a row field.

    `groups` holds group sizes, with 0 for one group per row. `stored` is a range of stored bits per weight, `size` one
    of GB of all weights; None is open. `statuses` keeps rows with such a cell, `columns` names the groups of columns to
    show. A sort puts the best first, or the worst if `reverse`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    track: str = "llm_ptq"
    methods: tuple[str, ...] = ()
    bits: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    a_bits: tuple[float, ...] = ()
    statuses: tuple[str, ...] = ()
    stored: Range = (None, None)
    size: Range = (None, None)
    columns: tuple[str, ...] = ()
    search: str = ""
    sort: str | None = None
    reverse: bool = False
    mode: Mode = "absolute"


@dataclass(frozen=True)
class Board:
    """Every result arranged: arrays are [rows, columns]. `origin` is the result's row in `results`, or -1. Beside what
    names a row, `rows` holds `stored_bits` and `size_gb`: measured where the run says so, else counted (see sizes); and
    `chosen`, the options of a run that are not its method's defaults."""

    results: pd.DataFrame
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    values: np.ndarray
    cells: np.ndarray
    reference: np.ndarray
    origin: np.ndarray
    haystack: pd.Series


@dataclass(frozen=True)
class View:
    """The part of a board that was asked for, in order. Arrays are [rows, columns]; `shade` runs from -1 (lost) over 0
    (as FP16) to 1 (above FP16), NaN where nothing can be compared. `values` are in the query's mode. `places` [rows]
    are the rows in the board."""

    query: Query
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    values: np.ndarray
    cells: np.ndarray
    shade: np.ndarray
    origin: np.ndarray
    places: np.ndarray
    results: pd.DataFrame

    @cached_property
    def measured(self) -> np.ndarray:
        """For each row, whether it is ours."""
        return (self.rows["source"] == "measured").to_numpy()

    def text(self, row: int, column: int) -> str:
        """How a cell is written."""
        cell, value, kind = Cell(self.cells[row, column]), self.values[row, column], self.columns[column]
        if cell is Cell.MISSING:
            return "·"
        if cell is Cell.NO_REFERENCE:
            return "no FP16"
        if cell is Cell.COLLAPSED and np.isnan(value):
            return "collapsed"
        if kind.cost:
            return notation.cost(value, kind.digits)
        if self.query.mode == "retained":
            return notation.percent(value)
        text = notation.score(value)
        if kind.group == "Perplexity":
            text = notation.perplexity(value, measured=self.measured[row])
        return notation.difference(text) if self.query.mode == "difference" else text


@dataclass(frozen=True)
class Choices:
    """What the filters can offer for a model and track, and how many rows there are without any filter."""

    rows: int
    tracks: tuple[str, ...]
    methods: tuple[str, ...]
    bits: tuple[float, ...]
    groups: tuple[int, ...]
    sources: tuple[str, ...]
    a_bits: tuple[float, ...]
    columns: tuple[str, ...]


def arrange(results: pd.DataFrame) -> Board:
    """All results as settings × tasks. A row is one setting of the study, or one measured run."""
    results = _with_costs(results.reset_index(drop=True))
    keyed = results[ROW_KEY].astype({"run_id": object}).fillna({"group_size": PER_ROW, "run_id": ""})
    row_of = keyed.groupby(ROW_KEY, sort=False).ngroup().to_numpy()
    columns = tuple(ordered(results["task"].unique().tolist()))
    place = {column.task: index for index, column in enumerate(columns)}
    column_of = results["task"].map(place).to_numpy()

    first = np.unique(row_of, return_index=True)[1]
    rows = _with_sizes(results.loc[first, [*ROW_KEY, "calibration", "stored_bits"]].reset_index(drop=True))
    options = results.loc[first, "options"].astype(object).fillna("{}")
    rows["chosen"] = [chosen_options(*pair) for pair in zip(rows["method"], options, strict=True)]
    shape = (len(rows), len(columns))
    values = np.full(shape, np.nan)
    cells = np.full(shape, Cell.MISSING, dtype=np.int8)
    reference = np.full(shape, np.nan)
    origin = np.full(shape, -1, dtype=np.int32)
    status = results["status"].map({"ok": Cell.OK, "collapsed": Cell.COLLAPSED})
    values[row_of, column_of] = results["value"].to_numpy()
    cells[row_of, column_of] = status.to_numpy(dtype=np.int8)
    origin[row_of, column_of] = np.arange(len(results))
    reference[row_of, column_of] = _references(results)
    _compute_average(columns, values, cells, reference)
    return Board(results, rows, columns, values, cells, reference, origin, _haystack(rows))


def view(board: Board, query: Query) -> View:
    """The rows and columns that a query asks for. Columns without any result in these rows are left out."""
    kept = np.flatnonzero(_mask(board, query))
    shown = np.flatnonzero((board.cells[kept] != Cell.MISSING).any(axis=0))
    if query.columns:
        shown = np.array([index for index in shown if board.columns[index].group in query.columns], dtype=int)
    columns = tuple(board.columns[index] for index in shown)
    at = np.ix_(kept, shown)
    values, cells, reference = board.values[at], board.cells[at].copy(), board.reference[at]
    costs = np.array([column.cost for column in columns], dtype=bool)
    lower = np.array([column.better == "lower" for column in columns], dtype=bool)
    shade = _shade(values, cells, reference, lower)
    shade[:, costs] = np.nan
    if query.mode != "absolute":
        compared = values - reference
        if query.mode == "retained":
            with np.errstate(divide="ignore", invalid="ignore"):
                compared = 100 * np.where(lower, reference / values, values / reference)
        known = np.isin(cells, (Cell.OK, Cell.COMPUTED))
        cells[known & np.isnan(compared) & ~costs] = Cell.NO_REFERENCE
        values = np.where(costs, values, compared)
    order = _order(board.rows.iloc[kept], columns, values, query)
    return View(
        query,
        board.rows.iloc[kept[order]].reset_index(drop=True),
        columns,
        values[order],
        cells[order],
        shade[order],
        board.origin[at][order],
        kept[order],
        board.results,
    )


def choices(board: Board, model: str | None, track: str) -> Choices:
    """What can be filtered for a model (None: all) and track."""
    rows = board.rows if model is None else board.rows[board.rows["model"] == model]
    tracks = tuple(track for track in TRACKS if (rows["track"] == track).any())
    rows = rows[rows["track"] == track]
    filled = (board.cells[rows.index] != Cell.MISSING).any(axis=0)
    groups = {column.group for column, any_ in zip(board.columns, filled, strict=True) if any_}
    return Choices(
        rows=len(rows),
        tracks=tracks,
        methods=tuple(rows["method"].unique()),
        bits=tuple(sorted(rows["w_bits"].unique(), reverse=True)),
        groups=tuple(sorted(int(size) for size in rows["group_size"].fillna(PER_ROW).unique())),
        sources=tuple(rows["source"].unique()),
        a_bits=tuple(sorted(rows["a_bits"].unique(), reverse=True)),
        columns=tuple(group for group in GROUPS if group in groups),
    )


def models(board: Board) -> list[str]:
    """The models that have results, the study's first."""
    return board.rows["model"].unique().tolist()


def _with_costs(results: pd.DataFrame) -> pd.DataFrame:
    """Adds what a setting costs as results of their own: the study's efficiency numbers beside the setting's scores
    in every track, and each measured run's stored bits, peak memory and duration."""
    key = [name for name in ROW_KEY if name != "track"]
    study = results[results["track"] == "efficiency"]
    scored = results.loc[results["track"] != "efficiency", ROW_KEY].drop_duplicates()
    beside = study.drop(columns="track").merge(scored, on=key)
    runs = results[results["source"] == "measured"]
    added = [beside]
    for task, field, unit in (
        ("stored_bits", "stored_bits", 1),
        ("peak_memory", "peak_memory_bytes", 1e9),
        ("duration", "duration_s", 60),
    ):
        known = runs.dropna(subset=field).drop_duplicates("run_id")
        of_run = runs.groupby("run_id")[field].agg("sum" if task == "duration" else "max")
        value = of_run.reindex(known["run_id"]).to_numpy() / unit
        added.append(known.assign(task=task, metric=task, value=value, status="ok", conditions=""))
    added = [frame for frame in added if len(frame)]
    return pd.concat([results, *added], ignore_index=True) if added else results


def _references(results: pd.DataFrame) -> np.ndarray:
    """For each result, FP16's value of the same model, source, task and conditions; NaN where there is none.

    The study prints an FP16 of its own in each track. One that was measured here serves all tracks.
    """
    key = ["model", "source", "track", "task", "conditions", "data_revision"]
    plain = results[[*key, "value"]].astype({"data_revision": object, "conditions": object})
    plain = plain.fillna({"data_revision": "", "conditions": ""})
    plain.loc[plain["source"] == "measured", "track"] = ""
    full = plain[(results["w_bits"] == 16) & (results["status"] == "ok")].drop_duplicates(key)
    return plain[key].merge(full, on=key, how="left")["value"].to_numpy()


def _compute_average(columns: tuple[Column, ...], values: np.ndarray, cells: np.ndarray, reference: np.ndarray) -> None:
    """Fills the mean of the five CommonSenseQA tasks where the source gives none but has all five."""
    place = {column.task: index for index, column in enumerate(columns)}
    if not {*COMMONSENSE, "commonsense_avg"} <= place.keys():
        return
    parts, target = [place[task] for task in COMMONSENSE], place["commonsense_avg"]
    rows = (cells[:, target] == Cell.MISSING) & (cells[:, parts] == Cell.OK).all(axis=1)
    values[rows, target] = values[np.ix_(rows, parts)].mean(axis=1)
    reference[rows, target] = reference[np.ix_(rows, parts)].mean(axis=1)
    cells[rows, target] = Cell.COMPUTED


def _with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Fills in stored bits where no run measured them, and adds the size of all weights in GB."""
    setting = rows[["model", "method", "w_bits", "group_size"]]
    place = setting.groupby(list(setting), dropna=False, sort=False).ngroup().to_numpy()
    different = setting.iloc[np.unique(place, return_index=True)[1]]
    counted = [sizes.counted_bits(*key) for key in different.itertuples(index=False, name=None)]
    bits = np.where(rows["stored_bits"].isna(), np.array(counted, dtype=float)[place], rows["stored_bits"])
    rows["stored_bits"] = bits
    gigabytes = [
        sizes.weight_bytes(model, stored) for model, stored in zip(rows["model"], rows["stored_bits"], strict=True)
    ]
    rows["size_gb"] = np.array(gigabytes, dtype=float) / 1e9
    return rows


def _haystack(rows: pd.DataFrame) -> pd.Series:
    """What the search looks at, per row: model, setting, source, run, calibration, options, in lower case."""
    group = rows["group_size"].map(lambda size: "per row" if np.isnan(size) else f"g{size:g}")
    bits = rows["w_bits"].map("w{:g}".format) + rows["a_bits"].map("a{:g}".format)
    setting = rows["w_bits"].map("{:g} bit ".format) + rows["w_bits"].map("{:g}-bit ".format)
    text = rows["model"] + " " + rows["method"] + " " + bits + " " + group + " " + setting + rows["source"]
    for column in ("run_id", "calibration", "chosen"):
        text = text + " " + rows[column].astype(object).fillna("").astype(str)
    return text.str.lower()


def _mask(board: Board, query: Query) -> np.ndarray:
    rows = board.rows
    mask = (rows["track"] == query.track).to_numpy(copy=True)
    if query.model is not None:
        mask &= (rows["model"] == query.model).to_numpy()
    for column, wanted in (
        ("method", query.methods),
        ("w_bits", query.bits),
        ("a_bits", query.a_bits),
        ("source", query.sources),
    ):
        if wanted:
            mask &= rows[column].isin(wanted).to_numpy()
    if query.groups:
        mask &= rows["group_size"].fillna(PER_ROW).isin(query.groups).to_numpy()
    for column, (least, most) in (("stored_bits", query.stored), ("size_gb", query.size)):
        values = rows[column].to_numpy()
        if least is not None:
            mask &= values >= least
        if most is not None:
            mask &= values <= most
    if query.statuses:
        mask &= np.logical_or.reduce([_has_status(board, status) for status in query.statuses])
    if query.search.strip():
        mask &= search.matches(
            query.search,
            rows,
            board.haystack,
            lambda name: _numbers(board, name),
            lambda status: _has_status(board, status) if status in STATUSES else None,
        )
    return mask


def _has_status(board: Board, status: str) -> np.ndarray:
    """For each row, whether one of its cells has the status; "ok" wants all of those with a result to be."""
    collapsed = (board.cells == Cell.COLLAPSED).any(axis=1)
    return ~collapsed if status == "ok" else collapsed


def _numbers(board: Board, name: str) -> np.ndarray | None:
    """The values of the task with this id or title, in lower case; None if there is none."""
    for index, column in enumerate(board.columns):
        if name in (column.task.lower(), column.title.lower()):
            return board.values[:, index]
    return None


def _shade(values: np.ndarray, cells: np.ndarray, reference: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """How far from FP16, from -1 to 1. The root keeps small losses visible beside collapses."""
    with np.errstate(divide="ignore", invalid="ignore"):
        by_ratio = np.log(reference / values) / np.log(LARGEST_RATIO)
        by_share = (values - reference) / np.abs(reference) / LARGEST_LOSS
    gain = np.clip(np.where(lower, by_ratio, by_share), -1, 1)
    gain[(cells == Cell.COLLAPSED) & np.isnan(gain)] = -1
    return np.sign(gain) * np.sqrt(np.abs(gain))


def descends(query: Query, column: Column | None) -> bool:
    """Whether a query's sort runs downwards. Bits do naturally, and numbers whose best is the highest: where percent
    of FP16 is shown, that is every task. `column` is None for a sort by a row field."""
    if column is None:
        natural = query.sort == "w_bits"
    else:
        natural = column.better == "higher" or (query.mode == "retained" and not column.cost)
    return natural != query.reverse


def _order(rows: pd.DataFrame, columns: tuple[Column, ...], values: np.ndarray, query: Query) -> np.ndarray:
    """Stable order on real numbers; cells without a number stay at the end both ways."""
    tasks = [column.task for column in columns]
    column = None
    if query.sort in tasks:
        column = columns[tasks.index(query.sort)]
        keys = values[:, tasks.index(query.sort)]
    elif query.sort in ("w_bits", "group_size"):
        keys = rows[query.sort].to_numpy(dtype=float)
    elif query.sort in ("model", "method", "source"):
        keys = rows[query.sort].str.lower().rank(method="dense").to_numpy(dtype=float)
    else:
        return np.arange(len(rows))
    falling = descends(query, column)
    return np.argsort(np.where(np.isnan(keys), np.inf, -keys if falling else keys), kind="stable")
