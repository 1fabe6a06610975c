"""What a finished run's numbers say: with their intervals, against our FP16 item by item, and against the study's.

Against FP16 the same items count in pairs, so a difference is known better than either number. The study's numbers come
without items: all that can be said of one is whether it lies in the interval of ours, and how the items differ.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from leaderboard.columns import Column, column_of
from leaderboard.store import Store
from quant_engine import notation
from quant_engine.evaluate import parse_result_name, reads_windows
from quant_engine.results import ItemOutput
from quant_engine.runs import folder as run_folder
from quant_engine.runs import paired
from quant_engine.runs.folder import RunFolder
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

STUDY_WINDOW = 2048
"""Tokens of the windows that the study measures perplexity on."""
SAME_ITEMS = ["model", "model_revision", "task", "data_revision"]
"""What two measured numbers have in common if they can be of the same items."""
MOST_OUTCOMES = 64
PATIENCE_S = 0.05
_UNREADABLE = (UserError, OSError, ValueError, KeyError)

Where = Literal["inside", "above", "below"]


@dataclass(frozen=True)
class StudyNumber:
    """The study's number of the same setting; `value` is None for a collapse. `where` it lies, of the interval of ours;
    None where that can't be said. `caveat` says how its items differ from ours, empty if they don't."""

    value: float | None
    where: Where | None
    caveat: str


@dataclass(frozen=True)
class RunNumber:
    """A number of a run with its 95% interval, and what it is compared with. `fp16` is None where there is no FP16 run
    of these items."""

    column: Column
    value: float | None
    interval: tuple[float, float] | None
    items: int
    counted: str
    collapsed: bool
    study: StudyNumber | None
    fp16: paired.Comparison | None

    def text(self, value: float) -> str:
        """How a value of this number is written."""
        parsed = parse_result_name(self.column.task)
        if parsed and parsed[0].unit == "nats" and not parsed[1]:
            return notation.number(value)
        return self.column.text(value, measured=True)


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run, and `remarks`, sentences on what they can't be compared with."""

    numbers: tuple[RunNumber, ...]
    remarks: tuple[str, ...]


class Outcomes:
    """The outcomes of runs, found in a thread of its own: many items take seconds. Safe to share between threads."""

    def __init__(self, store: Store, patience: float = PATIENCE_S) -> None:
        self._store, self._patience = store, patience
        self._pool = ThreadPoolExecutor(1, "outcomes")
        self._lock = threading.Lock()
        self._ask = lru_cache(maxsize=MOST_OUTCOMES)(self._submit)

    def of(self, run_id: str) -> Outcome | None:
        """A run's outcome; None while it is being found. Raises UserError if its files can't be read."""
        with self._lock:
            future = self._ask(run_id, self._store.version())
        try:
            return future.result(self._patience)
        except TimeoutError:
            return None

    def _submit(self, run_id: str, version: str) -> Future[Outcome]:
        return self._pool.submit(lambda: outcome(self._store.snapshot().frame, run_id))


def outcome(results: pd.DataFrame, run_id: str) -> Outcome:
    """The outcome of a run among all results. Raises UserError if its files can't be read."""
    run = run_folder.read(run_folder.run_path(run_id))
    own = results[results["run_id"] == run_id]
    intervals = _intervals(run)
    is_fp16 = run.spec.weights.setting.method == "fp16"
    comparisons = {} if is_fp16 else _comparisons(results, own, run)
    study, study_remark = study_rows(results, own.iloc[0].to_dict())
    numbers = tuple(
        _number(row, run, intervals.get(row["task"]), comparisons.get(row["task"]), study.get(row["task"]))
        for row in own.to_dict("records")
    )
    remarks = [study_remark or _study_lacks(numbers)]
    if not is_fp16:
        remarks.append(_fp16_lacks(numbers))
    return Outcome(numbers, tuple(filter(None, remarks)))


def _number(
    row: dict[str, Any],
    run: RunFolder,
    interval: tuple[float, float] | None,
    comparison: paired.Comparison | None,
    study: dict[str, Any] | None,
) -> RunNumber:
    collapsed, task = row["status"] == "collapsed", row["task"]
    value = None if pd.isna(row["value"]) else float(row["value"])
    interval = None if collapsed else interval
    return RunNumber(
        column=column_of(task),
        value=value,
        interval=interval,
        items=0 if pd.isna(row["items"]) else int(row["items"]),
        counted="windows" if reads_windows((task,)) else "items",
        collapsed=collapsed,
        study=None if study is None else _study_number(study, run, task, interval),
        fp16=comparison,
    )


def _intervals(run: RunFolder) -> dict[str, tuple[float, float] | None]:
    """The 95% interval of each number of a run, by its name; of those alone whose items can be read."""
    found: dict[str, tuple[float, float] | None] = {}
    for name in run.spec.tasks:
        parsed = parse_result_name(name)
        if parsed is None:
            continue
        task = parsed[0]
        try:
            units = task.units(run_folder.read_items(run.path, name))
        except _UNREADABLE as error:
            logger.warning("The items of run %s can't be read: %s", run.path.name, error)
            continue
        found |= {task.result_name(suffix): task.interval(of, suffix) for suffix, of in units.items() if of}
    return found


def fp16_run(results: pd.DataFrame, row: dict[str, Any]) -> str | None:
    """The id of the FP16 run with the items of a measured number: that of the same conditions first, else the one with
    the most items. None if there is none."""
    same = (results["source"] == "measured") & (results["w_bits"] == 16) & (results["status"] == "ok")
    for field in SAME_ITEMS:
        same &= results[field].fillna("") == ("" if pd.isna(row[field]) else row[field])
    if reads_windows((row["task"],)):
        same &= results["window"] == row["window"]
    found = results[same]
    if found.empty:
        return None
    ranked = found.assign(alike=found["conditions"] == row["conditions"], computed=found["dtype"] == row["dtype"])
    ranked = ranked.sort_values(["computed", "alike", "items"], ascending=False, kind="stable")
    return str(ranked["run_id"].iloc[0])


def _comparisons(results: pd.DataFrame, own: pd.DataFrame, run: RunFolder) -> dict[str, paired.Comparison]:
    """The numbers of a run against FP16's over the items that both have, by the number's name."""
    found: list[paired.Comparison] = []
    for row in own[own["task"].isin(run.spec.tasks)].to_dict("records"):
        parsed = parse_result_name(row["task"])
        fp16 = None if parsed is None or measures_fp16(row["task"]) else fp16_run(results, row)
        if fp16 is None:
            continue
        try:
            sides = [_items(path, row["task"]) for path in (run_folder.run_path(fp16), run.path)]
            found += paired.compare_items(parsed[0], *sides)
        except _UNREADABLE as error:
            logger.warning("Run %s can't be compared with run %s: %s", run.path.name, fp16, error)
    return {number.name: number for number in found if math.isfinite(number.difference)}


def _items(path: Path, task: str) -> list[ItemOutput]:
    """A task's items. Windows are known by their index alone: earlier versions wrote more of their text."""
    outputs = run_folder.read_items(path, task)
    return [output.model_copy(update={"prompt": ""}) for output in outputs] if reads_windows((task,)) else outputs


def measures_fp16(task: str) -> bool:
    """Whether a number is a distance to FP16 by itself."""
    parsed = parse_result_name(task)
    return parsed is not None and parsed[0].metric == "KL divergence"


def study_rows(results: pd.DataFrame, row: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """The study's results of the same model and setting by task, and a sentence if it has none."""
    of_model = results[(results["source"] == "paper") & (results["model"] == row["model"])]
    if of_model.empty:
        return {}, f"The study has no {row['model']}."
    like = of_model[(of_model["track"] == row["track"]) & (of_model["method"] == row["method"])]
    like = like[(like["w_bits"] == row["w_bits"]) & (like["a_bits"] == row["a_bits"])]
    groups = like["group_size"].fillna(0)
    found = like[groups == (0 if pd.isna(row["group_size"]) else row["group_size"])]
    if not found.empty:
        return {result["task"]: result for result in found.to_dict("records")}, ""
    setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
    others = sorted(groups.unique())
    has = " or ".join("one group a row" if not size else f"groups of {size:g}" for size in others)
    return {}, f"The study has no {setting} of {row['model']}{f', but one with {has}' if has else ''}."


def _study_number(
    study: dict[str, Any], run: RunFolder, task: str, interval: tuple[float, float] | None
) -> StudyNumber:
    caveats = []
    if reads_windows((task,)) and run.spec.window != STUDY_WINDOW:
        caveats.append(f"on windows of {STUDY_WINDOW:,} tokens, ours of {run.spec.window:,}")
    most = run.spec.text_windows if reads_windows((task,)) else run.spec.limit
    if most is not None:
        caveats.append(f"of the whole set, ours of {most} items")
    value = None if pd.isna(study["value"]) or study["status"] == "collapsed" else float(study["value"])
    other_number = bool(caveats) and "windows" in caveats[0]
    where = None if value is None or interval is None or other_number else where_of(value, interval)
    return StudyNumber(value, where, "; ".join(caveats))


def where_of(value: float, interval: tuple[float, float]) -> Where:
    """Where a printed value lies of an interval. It is inside if a value that is printed like that is."""
    low, high = interval
    rounding = rounding_of(value)
    if value + rounding < low:
        return "below"
    return "above" if value - rounding > high else "inside"


def rounding_of(value: float) -> float:
    """How far a number may be from what the study prints: a decimal below 100, whole below 1,000, then two digits."""
    size = abs(value)
    if size < 100:
        return 0.05
    return 0.5 if size < 1000 else 0.05 * 10 ** math.floor(math.log10(size))


def _study_lacks(numbers: Sequence[RunNumber]) -> str:
    """The tasks that the study has no number of, of none of their parts either."""
    tasks = _by_task(numbers)
    missing = [of[0].column.title for of in tasks if all(number.study is None for number in of)]
    if not missing:
        return ""
    if len(missing) == len(tasks):
        return f"The study has this setting, but {'not this task' if len(tasks) == 1 else 'none of these tasks'}."
    return f"The study has no {', '.join(missing)} of this setting."


def _fp16_lacks(numbers: Sequence[RunNumber]) -> str:
    """What to do where there is no FP16 to compare with."""
    heads = [of[0] for of in _by_task(numbers)]
    missing = [n.column.title for n in heads if n.fp16 is None and not n.collapsed and not measures_fp16(n.column.task)]
    if not missing:
        return ""
    of = f" of {', '.join(missing)}" if len(missing) < len(heads) else ""
    return (
        f"No FP16 run with the same items{of} is on this machine. Start one, with method FP16 and all else as here, to"
        " see which losses are more than chance."
    )


def _by_task(numbers: Sequence[RunNumber]) -> list[list[RunNumber]]:
    """The numbers of each task, its own first and then those of its parts."""
    tasks: dict[str, list[RunNumber]] = {}
    for number in numbers:
        parsed = parse_result_name(number.column.task)
        tasks.setdefault(parsed[0].name if parsed else number.column.task, []).append(number)
    return list(tasks.values())
