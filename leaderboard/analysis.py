"""From tidy results to the table: settings as rows, tasks as columns, everything compared with FP16.

`arrange` does the slow part once per snapshot (a Board); `view` answers every filter, sort and mode from it with
array operations only. A number is compared with FP16 of the same model, source, task and conditions, or with nothing.
Statistics between runs, item by item, are in quant_engine/runs/paired.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from leaderboard import against_fp16, orders, search, sizes, votes
from leaderboard.columns import COMMONSENSE, GROUPS, Column, ordered
from leaderboard.search import MOST_CHARACTERS
from leaderboard.store import options_text, split_parts
from quant_engine import notation
from quant_engine.spec import Text

Mode = Literal["absolute", "difference", "retained"]
MODES: tuple[str, ...] = get_args(Mode)
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


class Cell(IntEnum):
    """What a cell holds, and why if it holds no number."""

    MISSING = 0
    OK = 1
    COMPUTED = 2
    COLLAPSED = 3
    NO_REFERENCE = 4


CELL_WORDS = {Cell.COLLAPSED: "collapsed", Cell.NO_REFERENCE: "no FP16"}
"""What stands in a cell without a number; in others without one it is a dot."""


class Query(BaseModel):
    """What a visitor asks of the table. Empty filters let everything through; `sort` is a column's task or a row field.

    `groups` holds group sizes, with 0 for one group per row. `stored` is a range of stored bits per weight, `size` one
    of GB of all weights; None is open. `statuses` keeps rows with such a cell, `columns` names the groups of columns to
    show. A sort puts the best first, or the worst if `reverse`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Text | None = None
    track: Text = "llm_ptq"
    methods: tuple[Text, ...] = ()
    bits: tuple[float, ...] = ()
    groups: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = ()
    sources: tuple[Text, ...] = ()
    a_bits: tuple[float, ...] = ()
    statuses: tuple[Text, ...] = ()
    stored: Range = (None, None)
    size: Range = (None, None)
    columns: tuple[Text, ...] = ()
    search: Annotated[Text, Field(max_length=MOST_CHARACTERS)] = ""
    sort: Text | None = None
    reverse: bool = False
    mode: Mode = "absolute"


@dataclass(frozen=True)
class Board:
    """Every result arranged: arrays are [rows, columns]. `origin` is the result's row in `results`, or -1. `reference`
    is FP16's number, and `reference_run` the run that it is of, None where it was not measured here. `lowest` and
    `highest` are a number's range over orders of sums (see orders), the number itself where one is known. Besides what
    names a row, `rows` holds `stored_bits` and `size_gb`: measured where the run says so, else counted (see sizes); and
    `options`, those of a run that are not its method's defaults. `haystack` [rows] is what a search looks at.
    `parts` are the results of parts that were quantized alone (store.split_parts), which are in no row."""

    results: pd.DataFrame
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    values: np.ndarray
    cells: np.ndarray
    reference: np.ndarray
    reference_run: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    origin: np.ndarray
    haystack: pd.Series
    parts: pd.DataFrame


@dataclass(frozen=True)
class View:
    """The part of a board that was asked for, in order. Arrays are [rows, columns]; `shade` runs from -1 (lost) over 0
    (as FP16) to 1 (above FP16), NaN where nothing can be compared; `chance` says where a difference may be chance, and
    the shade is 0. `values` are in the query's mode, `board_rows` the
    rows' indices in the board."""

    query: Query
    rows: pd.DataFrame
    columns: tuple[Column, ...]
    values: np.ndarray
    cells: np.ndarray
    shade: np.ndarray
    chance: np.ndarray
    origin: np.ndarray
    board_rows: np.ndarray
    results: pd.DataFrame

    @cached_property
    def measured(self) -> np.ndarray:
        """For each row, whether it was measured here."""
        return (self.rows["source"] == "measured").to_numpy()

    def text(self, row: int, column: int) -> str:
        """How a cell is written."""
        value, kind = self.values[row, column], self.columns[column]
        if np.isnan(value):
            return CELL_WORDS.get(Cell(self.cells[row, column]), "·")
        if kind.task == votes.TASK:
            return votes.rate_text(value, self.results["items"].iloc[self.origin[row, column]])
        if self.query.mode == "retained" and kind.compared:
            return notation.percent(value)
        text = kind.text(value, measured=self.measured[row])
        return notation.difference(text) if self.query.mode == "difference" and kind.compared else text


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


def _distinguished(rows: pd.DataFrame, conditions: list[str]) -> list[str]:
    """The options of rows, and before them how many items were measured where rows are else the same."""
    alike = rows[["model", "track", "method", "w_bits", "a_bits", "group_size", "options"]].fillna(PER_ROW)
    items = pd.Series([text.partition(",")[0] for text in conditions], index=rows.index)
    several = items.groupby([alike[name] for name in alike], sort=False).transform("nunique") > 1
    shown = items.where(several & (items != ""), "")
    return [", ".join(filter(None, pair)) for pair in zip(shown, rows["options"], strict=True)]


def arrange(results: pd.DataFrame) -> Board:
    """All results as settings × tasks. A row is one setting of the study, or one measured run."""
    results, of_parts = split_parts(results)
    results = _with_costs(orders.folded(results.reset_index(drop=True)))
    keyed = results[ROW_KEY].astype({"run_id": object}).fillna({"group_size": PER_ROW, "run_id": ""})
    row_of = keyed.groupby(ROW_KEY, sort=False).ngroup().to_numpy()
    columns = tuple(ordered(results["task"].unique().tolist()))
    index_of_task = {column.task: index for index, column in enumerate(columns)}
    column_of = results["task"].map(index_of_task).to_numpy()

    first = np.unique(row_of, return_index=True)[1]
    rows = _with_sizes(results.loc[first, [*ROW_KEY, "calibration", "stored_bits"]].reset_index(drop=True))
    options = results.loc[first, "options"].astype(object).fillna("{}")
    rows["options"] = [options_text(*pair) for pair in zip(rows["method"], options, strict=True)]
    rows["options"] = _distinguished(rows, results.loc[first, "conditions"].astype(object).fillna("").tolist())
    shape = (len(rows), len(columns))
    values = np.full(shape, np.nan)
    cells = np.full(shape, Cell.MISSING, dtype=np.int8)
    reference = np.full(shape, np.nan)
    reference_run = np.full(shape, None)
    lowest, highest = np.full(shape, np.nan), np.full(shape, np.nan)
    origin = np.full(shape, -1, dtype=np.int32)
    status = results["status"].map({"ok": Cell.OK, "collapsed": Cell.COLLAPSED})
    values[row_of, column_of] = results["value"].to_numpy()
    cells[row_of, column_of] = status.to_numpy(dtype=np.int8)
    origin[row_of, column_of] = np.arange(len(results))
    fp16 = _references(results)
    reference[row_of, column_of], reference_run[row_of, column_of] = fp16["value"], fp16["run_id"]
    lowest[row_of, column_of], highest[row_of, column_of] = results["lowest"], results["highest"]
    _compute_average(columns, values, cells, reference)
    compared = reference, reference_run, lowest, highest
    return Board(results, rows, columns, values, cells, *compared, origin, _haystack(rows), of_parts)


def view(board: Board, query: Query, differing: np.ndarray | None = None) -> View:
    """The rows and columns that a query asks for. Columns without any result in these rows are left out.

    `differing` says which of the board's numbers [rows, columns] differ from FP16's by more than chance; others get no
    shade. None, where nothing is known of that, stands for all.
    """
    rows = np.flatnonzero(_mask(board, query))
    filled = np.flatnonzero((board.cells[rows] != Cell.MISSING).any(axis=0))
    if query.columns:
        filled = np.array([index for index in filled if board.columns[index].group in query.columns], dtype=int)
    columns = tuple(board.columns[index] for index in filled)
    part = np.ix_(rows, filled)
    values, cells, reference = board.values[part], board.cells[part].copy(), board.reference[part]
    scores, lower = compared_columns(columns), lower_columns(columns)
    shade = against_fp16.shade(values, reference, lower, cells == Cell.COLLAPSED)
    shade[:, ~scores] = np.nan
    chance = np.zeros(shade.shape, dtype=bool) if differing is None else ~differing[part] & np.isfinite(shade)
    chance &= (cells != Cell.COLLAPSED) & (board.rows["w_bits"].to_numpy()[rows, None] < 16)
    shade[chance] = 0
    for index in (index for index, column in enumerate(columns) if column.task == votes.TASK):
        count = board.results["items"].to_numpy()[board.origin[part][:, index]]
        shade[:, index] = votes.shades(values[:, index], count)
    if query.mode != "absolute":
        percents = query.mode == "retained"
        compared = against_fp16.percent_of_fp16(values, reference, lower) if percents else values - reference
        with_number = np.isin(cells, (Cell.OK, Cell.COMPUTED))
        cells[with_number & np.isnan(compared) & scores] = Cell.NO_REFERENCE
        values = np.where(scores, compared, values)
    order = _order(board.rows.iloc[rows], columns, values, query)
    return View(
        query,
        board.rows.iloc[rows[order]].reset_index(drop=True),
        columns,
        values[order],
        cells[order],
        shade[order],
        chance[order],
        board.origin[part][order],
        rows[order],
        board.results,
    )


def compared_columns(columns: Sequence[Column]) -> np.ndarray:
    """For each column, whether its numbers are compared with FP16's."""
    return np.array([column.compared for column in columns], dtype=bool)


def lower_columns(columns: Sequence[Column]) -> np.ndarray:
    """For each column, whether lower is better."""
    return np.array([column.better == "lower" for column in columns], dtype=bool)


def choices(board: Board, model: str | None, track: str) -> Choices:
    """What can be filtered for a model (None: all) and track."""
    rows = board.rows if model is None else board.rows[board.rows["model"] == model]
    tracks = tuple(track for track in TRACKS if (rows["track"] == track).any())
    rows = rows[rows["track"] == track]
    filled = (board.cells[rows.index] != Cell.MISSING).any(axis=0)
    groups = {board.columns[index].group for index in np.flatnonzero(filled)}
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
    runs = results[results["source"] == "measured"]
    added = [study.drop(columns="track").merge(scored, on=key)]
    scores_only = {"conditions": "", "standard_error": np.nan, "items": np.nan, "data_revision": None, "orders": 1}
    for task, field, unit in (
        ("stored_bits", "stored_bits", 1),
        ("peak_memory", "peak_memory_bytes", 1e9),
        ("duration", "duration_s", 60),
    ):
        stated = runs.dropna(subset=field).drop_duplicates("run_id")
        totals = runs.groupby("run_id")[field].agg("sum" if task == "duration" else "max")
        value = totals.reindex(stated["run_id"]).to_numpy() / unit
        added.append(stated.assign(task=task, metric=task, value=value, status="ok", **scores_only))
    added = [frame for frame in added if len(frame)]
    return pd.concat([results, *added], ignore_index=True) if added else results


def _references(results: pd.DataFrame) -> pd.DataFrame:
    """For each result, FP16's `value` of the same model, source, task and conditions, NaN where there is none, and its
    `run_id`, None where there is no such run.

    The study prints an FP16 of its own in each track. One that was measured here serves all tracks.
    """
    key = ["model", "source", "track", "task", "conditions", "data_revision"]
    comparable = results[[*key, "value", "run_id"]].astype({"data_revision": object, "conditions": object})
    comparable = comparable.fillna({"data_revision": "", "conditions": ""})
    comparable.loc[comparable["source"] == "measured", "track"] = ""
    fp16 = comparable[(results["w_bits"] == 16) & (results["status"] == "ok")].drop_duplicates(key)
    found = comparable[key].merge(fp16, on=key, how="left")[["value", "run_id"]]
    runs = found["run_id"].astype(object)
    return found.assign(run_id=runs.where(runs.notna(), None))


def _compute_average(columns: tuple[Column, ...], values: np.ndarray, cells: np.ndarray, reference: np.ndarray) -> None:
    """Fills the mean of the five CommonSenseQA tasks where the source gives none but has all five."""
    index_of_task = {column.task: index for index, column in enumerate(columns)}
    if not {*COMMONSENSE, "commonsense_avg"} <= index_of_task.keys():
        return
    parts, target = [index_of_task[task] for task in COMMONSENSE], index_of_task["commonsense_avg"]
    rows = (cells[:, target] == Cell.MISSING) & (cells[:, parts] == Cell.OK).all(axis=1)
    values[rows, target] = values[np.ix_(rows, parts)].mean(axis=1)
    reference[rows, target] = reference[np.ix_(rows, parts)].mean(axis=1)
    cells[rows, target] = Cell.COMPUTED


def _with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Fills in stored bits where no run measured them, and adds the size of all weights in GB."""
    setting = rows[["model", "method", "w_bits", "group_size"]]
    number = setting.groupby(list(setting), dropna=False, sort=False).ngroup().to_numpy()
    different = setting.iloc[np.unique(number, return_index=True)[1]]
    counted = [sizes.counted_bits(*key) for key in different.itertuples(index=False, name=None)]
    bits = np.where(rows["stored_bits"].isna(), np.array(counted, dtype=float)[number], rows["stored_bits"])
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
    for column in ("run_id", "calibration", "options"):
        text = text + " " + rows[column].astype(object).fillna("").astype(str)
    return text.str.lower()


def _mask(board: Board, query: Query) -> np.ndarray:
    rows = board.rows
    mask = (rows["track"] == query.track).to_numpy(copy=True)
    if query.model is not None:
        mask &= (rows["model"] == query.model).to_numpy()
    for column, values in (
        ("method", query.methods),
        ("w_bits", query.bits),
        ("a_bits", query.a_bits),
        ("source", query.sources),
    ):
        if values:
            mask &= rows[column].isin(values).to_numpy()
    if query.groups:
        mask &= rows["group_size"].fillna(PER_ROW).isin(query.groups).to_numpy()
    for column, (least, most) in (("stored_bits", query.stored), ("size_gb", query.size)):
        numbers = rows[column].to_numpy()
        if least is not None:
            mask &= numbers >= least
        if most is not None:
            mask &= numbers <= most
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


def descends(query: Query, column: Column | None) -> bool:
    """Whether a query's sort runs downwards. Bits do naturally, and numbers whose best is the highest: where percent
    of FP16 is shown, that is every task. `column` is None for a sort by a row field."""
    if column is None:
        natural = query.sort == "w_bits"
    else:
        natural = column.better == "higher" or (query.mode == "retained" and column.compared)
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
