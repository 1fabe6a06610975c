"""What a run will take before it is started: time, memory and the size of its weights, by the runs that were made.

Time is taken apart: quantizing (with loading), which grows with a model's weights and for a calibrated method with the
tokens it looks at; and measuring, which grows with weights and items. Of each part the runs that are most alike count:
of this model on this machine, then of other models here, then of any machine; the median of those that are alike, or
from three runs with more and fewer tokens on a line through them. Memory is counted from the model's shape on a CPU;
where that is not possible it is the most that such runs took.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from leaderboard import room
from leaderboard.sizes import counted_bits, weight_bytes
from leaderboard.store import method_name
from quant_engine import folders, notation
from quant_engine.evaluate import reads_windows
from quant_engine.methods import METHODS
from quant_engine.models.catalog import ModelCard
from quant_engine.models.device import default_device
from quant_engine.models.shapes import shape_of, shapes
from quant_engine.runs.needs import peak_memory
from quant_engine.spec import Calibration, QuantSetting

FOR_A_LINE = 3
"""Runs that a line is drawn through."""


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes; None for what is not known. `runs` of this model and method were made on this machine; 0 makes
    the time a guess. `untimed` are tasks that no run has measured, or whose number of items is not known."""

    seconds: float | None
    runs: int
    memory: float | None
    weights: float | None
    untimed: tuple[str, ...] = ()

    def words(self) -> str:
        """A sentence or two for the form."""
        if self.seconds is None:
            time = "How long it takes is not known: no run of this method was made yet."
        else:
            about = f"About {roughly(self.seconds)}"
            runs = f"{self.runs} run{'s' * (self.runs != 1)} of this model and method on this machine"
            time = f"{about}, by {runs}." if self.runs else f"{about}: a guess, by runs of other models or machines."
        if self.untimed:
            time += f" Not counted: {', '.join(self.untimed)}."
        sizes = [
            f"{notation.size(size)} {words}"
            for size, words in ((self.memory, "of memory"), (self.weights, "of weights"))
            if size
        ]
        return f"{time} About {' and '.join(sizes)}." if sizes else time


@dataclass(frozen=True)
class SweepCost:
    """Seconds of all runs whose time is known, and how many those are not (`unknown`); whether part of it is a guess;
    the most bytes that a run takes. `untimed` as in `Cost`."""

    seconds: float
    unknown: int
    guessed: bool
    memory: float | None
    untimed: tuple[str, ...] = ()

    def words(self, runs: int) -> str:
        """A sentence or two about so many runs."""
        if self.unknown == runs:
            sentences = ["How long they take is not known: no run of these methods was made yet."]
        else:
            guess = ", partly a guess by runs of other models or machines" if self.guessed else ""
            sentences = [f"About {roughly(self.seconds)} of work in all{guess}."]
            if self.unknown:
                sentences.append(f"Not counted: {self.unknown} run{'s' * (self.unknown > 1)} of methods not timed yet.")
        if self.untimed:
            sentences.append(f"Not counted: {', '.join(self.untimed)}.")
        if self.memory:
            sentences.append(f"The largest takes about {notation.size(self.memory)} of memory.")
        return " ".join(sentences)


def roughly(seconds: float) -> str:
    """A time as an estimate is: 5 s, 25 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def cost(
    results: pd.DataFrame,
    card: ModelCard,
    setting: QuantSetting,
    tasks: Sequence[str],
    limit: int | None,
    calibration: Calibration | None,
    windows: int | None = None,
    window: int | None = None,
) -> Cost:
    """What a run of these will take on this machine, by all `results`. `windows` is how many of a text are read, where
    that is not the `limit`, and `window` their tokens (None: the model's own)."""
    measured = results[results["source"] == "measured"]
    model, method = card.title, method_name(setting.method)
    tokens = calibration.samples * calibration.length if calibration else 0
    quantizing = _quantizing(measured, method, tokens)
    seconds, alike = _scaled(quantizing, "quantizing_s", model)
    line = _line(alike, tokens)
    seconds = seconds if line is None else line
    untimed: list[str] = []
    for task in tasks:
        of_task = measured[(measured["task"] == task) & (measured["items"] > 0)].dropna(subset=["duration_s"])
        most = (windows or limit) if reads_windows((task,)) else limit
        items = most or (of_task["items"].max() if len(of_task) else None)
        each, _ = _scaled(of_task.assign(each_s=of_task["duration_s"] / of_task["items"]), "each_s", model)
        if items is None or each is None:
            untimed.append(task)
        elif seconds is not None:
            seconds += each * items
    bits = counted_bits(model, method, setting.w_bits, setting.group_size)
    return Cost(
        seconds=seconds,
        runs=len(alike),
        memory=_counted_memory(card, setting, tasks, windows or limit, window, calibration)
        or _memory(quantizing[quantizing["model"] == model], alike)
        or _answering_memory(card, setting),
        weights=weight_bytes(model, bits) if bits else None,
        untimed=tuple(untimed),
    )


def sweep_cost(
    results: pd.DataFrame,
    cards: Sequence[ModelCard],
    settings: Sequence[QuantSetting],
    tasks: Sequence[str],
    limit: int | None,
    calibration: Calibration,
    windows: int | None = None,
    window: int | None = None,
) -> SweepCost:
    """What the runs of all settings on all models will take together, by all `results`."""
    by_method: dict[str, list[QuantSetting]] = {}
    for setting in settings:
        by_method.setdefault(setting.method, []).append(setting)
    seconds, unknown, guessed, memory, untimed = 0.0, 0, False, 0.0, set()
    for card, (method, alike) in product(cards, by_method.items()):
        looked_at = calibration if method in METHODS and METHODS[method].card.calibrated else None
        widest = max(alike, key=lambda setting: (setting.w_bits, -(setting.group_size or sys.maxsize)))
        expected = cost(
            results, card, widest, tasks, limit, looked_at, windows
        )  # a run's time depends on its method alone
        if expected.seconds is None:
            unknown += len(alike)
        else:
            seconds += expected.seconds * len(alike)
            guessed |= not expected.runs
        memory = max(memory, expected.memory or 0)
        untimed |= set(expected.untimed)
    return SweepCost(seconds, unknown, guessed, memory or None, tuple(sorted(untimed)))


def _quantizing(measured: pd.DataFrame, method: str, tokens: int) -> pd.DataFrame:
    """A row for each run of a method, with the seconds that quantizing took, as if for so many tokens."""
    runs = measured[measured["method"] == method].dropna(subset=["run_s"])
    spent = runs.groupby("run_id")["duration_s"].sum()
    runs = runs.drop_duplicates("run_id")
    spent_quantizing = (runs["run_s"] - runs["run_id"].map(spent).astype(float)).clip(lower=0)
    quantizing = spent_quantizing.copy()
    if tokens:
        quantizing *= (tokens / runs["calibration_tokens"].where(runs["calibration_tokens"] > 0)).fillna(1)
    return runs.assign(quantizing_s=quantizing, spent_s=spent_quantizing)


def _line(own: pd.DataFrame, tokens: int) -> float | None:
    """The seconds of quantizing by the line through runs that looked at more and fewer tokens, which part of the work
    does not hang on; None where there are fewer than three, or all looked at as many."""
    if len(own) < FOR_A_LINE or own["calibration_tokens"].nunique() < 2:
        return None
    slope, constant = np.polyfit(own["calibration_tokens"], own["spent_s"], 1)
    if slope <= 0 or constant < 0:
        return None
    return float(constant + slope * tokens)


def _scaled(rows: pd.DataFrame, column: str, model: str) -> tuple[float | None, pd.DataFrame]:
    """The median of a column for a model, by the rows that are most alike; and those of this model and machine."""
    alike = pd.DataFrame()
    for level, candidates in enumerate(_alike(rows, model)):
        if level == 0:
            alike = candidates
        factors = candidates["model"].map(lambda name: _times_as_large(model, name)).astype(float)
        values = (candidates[column] * factors.where(candidates["model"] != model, 1.0)).dropna()
        if len(values):
            return float(values.median()), alike
    return None, alike


def made_here() -> set[str]:
    """The ids of runs that were made on this machine."""
    try:
        return set(os.listdir(folders.results()))
    except OSError:
        return set()


def _times_as_large(model: str, other: str) -> float:
    """How many times the quantized weights of another model a model has; NaN where that is not known."""
    both = (shapes().get(name) for name in (model, other))
    sizes = [shape.quantized if shape else float("nan") for shape in both]
    return sizes[0] / sizes[1]


def _alike(rows: pd.DataFrame, model: str) -> Iterator[pd.DataFrame]:
    """Of this model on this machine, of any model here, of this model anywhere, all. Runs that came with the project
    were made elsewhere."""
    here = (rows["device"] == default_device()) & rows["run_id"].isin(made_here())
    own = rows["model"] == model
    yield from (rows[here & own], rows[here], rows[own], rows)


def _memory(own: pd.DataFrame, alike: pd.DataFrame) -> float | None:
    """The most that runs of this model and method took on this machine, else on the same device elsewhere; None if none
    was made."""
    for runs in (alike, own[own["device"] == default_device()]):
        peaks = runs["peak_memory_bytes"].dropna() if len(runs) else runs
        if len(peaks):
            return float(peaks.max())
    return None


def _counted_memory(
    card: ModelCard,
    setting: QuantSetting,
    tasks: Sequence[str],
    windows: int | None,
    window: int | None,
    calibration: Calibration | None,
) -> float | None:
    """The peak on a CPU as it is counted from the model's shape; None where it can't be, and on a GPU."""
    shape = shape_of(card)
    if default_device() != "cpu" or shape is None or not tasks:
        return None
    return peak_memory(shape, setting, tasks, windows, window or card.window, calibration)


def _answering_memory(card: ModelCard, setting: QuantSetting) -> float | None:
    needed = room.need(card, setting)
    return needed.total if needed else None
