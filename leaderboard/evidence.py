"""What claims are judged by: the study's numbers as they are printed, ours with what they are known to lie between.

Both sides answer the same questions about settings, so that one rule judges both. Ours are compared item by item, in
pairs; a 95% interval is stretched by the range over orders of sums where that is known (orders.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from leaderboard.analysis import Board, Cell
from leaderboard.columns import COMMONSENSE
from leaderboard.items import unit_scores
from quant_engine.evaluate.intervals import reach_of_error
from quant_engine.evaluate.task import mean_and_error
from quant_engine.spec import UserError

TEXT = "wikitext2"
Unit = Literal["points", "times", "bits"]


@dataclass(frozen=True)
class Setting:
    """A method at a width, with groups or a row at a time."""

    method: str
    w_bits: float
    a_bits: int = 16
    grouped: bool = False

    @property
    def label(self) -> str:
        if self.method == "FP16":
            return "FP16"
        return f"{self.method} W{self.w_bits:g}{'' if self.a_bits == 16 else f'A{self.a_bits}'}"


FP16 = Setting("FP16", 16)


class NotMeasured(UserError):
    """A side has no such number."""


@dataclass(frozen=True)
class Amount:
    """A quantity of a setting, and what it is known to lie between: itself, where there are no items."""

    label: str
    unit: Unit
    value: float
    low: float
    high: float

    def above(self, limit: float) -> bool | None:
        """Whether it lies above; None where that can't be told."""
        return None if self.low <= limit < self.high else self.low > limit

    def below(self, limit: float) -> bool | None:
        return None if self.low < limit <= self.high else self.high < limit

    @property
    def text(self) -> str:
        write = {"points": lambda v: f"{v:+.1f}".replace("-", "−"), "times": _times, "bits": lambda v: f"{v:+.2f}"}
        written = [write[self.unit](value) for value in (self.value, self.low, self.high)]
        return written[0] if self.low == self.high else f"{written[0]} ({written[1]} to {written[2]})"


def _times(value: float) -> str:
    if math.isinf(value):
        return "∞"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}×" if rounded >= 100 else f"{rounded:g}×"


def every(answers: Iterable[bool | None]) -> bool | None:
    """Whether all are true; None where that can't be told."""
    found = list(answers)
    return False if False in found else None if None in found else True


@dataclass(frozen=True)
class Side:
    """The numbers of one source about a language model and the multimodal model that is built on it."""

    board: Board
    source: Literal["paper", "measured"]
    language: str
    multimodal: str

    @cached_property
    def _column_of(self) -> dict[str, int]:
        return {column.task: index for index, column in enumerate(self.board.columns)}

    def accuracy(self, setting: Setting, track: str = "llm_ptq") -> Amount:
        """By how many points the mean accuracy on the five zero-shot tasks is above FP16's. Raises NotMeasured."""
        if self.source == "paper":
            task, rows = "commonsense_avg", [self.row(self.language, s, track=track) for s in (setting, FP16)]
            value, reference = (self._value(row, task) for row in rows)
            if value is None or reference is None:
                raise NotMeasured(f"{setting.label} has no zero-shot accuracy.")
            return _exact(setting.label, "points", value - reference)
        row = self.row(self.language, setting, COMMONSENSE)
        differences = [self._paired(setting, row, self._fp16(row, task), task) for task in COMMONSENSE]
        means, errors = zip(*differences, strict=True)
        mean = float(np.mean(means))
        reach = 1.96 * math.sqrt(sum(error**2 for error in errors)) / len(errors)
        return Amount(setting.label, "points", mean, mean - reach, mean + reach)

    def perplexity(self, setting: Setting, over: Setting = FP16) -> Amount:
        """How many times that of another setting the perplexity on WikiText-2 is. Raises NotMeasured."""
        row = self.row(self.language, setting, (TEXT,))
        other = self._fp16(row, TEXT) if over == FP16 and self.source == "measured" else None
        label = setting.label if over == FP16 else f"{setting.label} over {over.label}"
        return self._ratio(label, row, self.row(self.language, over, (TEXT,)) if other is None else other)

    def language_after_pictures(self) -> Amount:
        """How many times the language model's the multimodal model's perplexity on WikiText-2 is, both unquantized."""
        tracks = ("mllm_ptq", "llm_ptq") if self.source == "paper" else (None, None)
        rows = [
            self.row(model, FP16, (TEXT,), track=track)
            for model, track in zip((self.multimodal, self.language), tracks, strict=True)
        ]
        return self._ratio(self.multimodal, *rows)

    def hidden_bits(self, setting: Setting) -> Amount:
        """By how much the stored bits of a weight are more than its setting says. Raises NotMeasured."""
        row = self.row(self.language, setting)
        stored = float(self.board.rows["stored_bits"].iloc[row])
        if math.isnan(stored):
            raise NotMeasured(f"The stored bits of {setting.label} are not known.")
        return _exact(setting.label, "bits", stored - setting.w_bits)

    def row(self, model: str, setting: Setting, tasks: tuple[str, ...] = (), track: str | None = None) -> int:
        """The row of a setting that has the tasks, the one with the most items and, of these, with the method's own
        options. Raises NotMeasured."""
        rows = self.board.rows
        found = (rows["model"] == model) & (rows["source"] == self.source) & (rows["method"] == setting.method)
        found &= (rows["w_bits"] == setting.w_bits) & (rows["a_bits"] == setting.a_bits)
        found &= rows["group_size"].notna() == setting.grouped
        if self.source == "paper" and (track or tasks):
            found &= rows["track"] == (track or "llm_ptq")
        numbers = found[found].index
        columns = [self._column_of.get(task, -1) for task in tasks]
        numbers = [n for n in numbers if all(c >= 0 and self.board.cells[n, c] != Cell.MISSING for c in columns)]
        if not numbers:
            raise NotMeasured(f"{model} {setting.label}")
        if not tasks:
            return int(numbers[0])
        items = self.board.results["items"].to_numpy()
        plain = rows["options"].str.contains("=").to_numpy()
        return int(max(numbers, key=lambda n: (items[self.board.origin[n, columns[0]]], not plain[n])))

    def protocol(self, row: int, task: str) -> pd.Series:
        """The result of a row's number."""
        return self.board.results.iloc[self.board.origin[row, self._column_of[task]]]

    def _value(self, row: int, task: str) -> float | None:
        value = self.board.values[row, self._column_of[task]]
        return None if math.isnan(value) else float(value)

    def _fp16(self, row: int, task: str) -> int:
        """The row of the FP16 run with the same items."""
        run = self.board.reference_run[row, self._column_of[task]]
        found = np.flatnonzero(self.board.rows["run_id"] == run) if run else []
        if not len(found):
            raise NotMeasured(f"FP16 on the items of {self.board.rows['model'].iloc[row]}")
        return int(found[0])

    def _paired(self, setting: Setting, row: int, other: int, task: str) -> tuple[float, float]:
        """The mean difference of a row's unit scores from another's, and its standard error."""
        runs = [self.board.rows["run_id"].iloc[number] for number in (row, other)]
        sides = [unit_scores(run, task) for run in runs]
        if None in sides or sides[0][0] != sides[1][0]:
            raise NotMeasured(f"{setting.label} on the items of the other run")
        mean, error = mean_and_error(list(sides[0][1] - sides[1][1]))
        return mean, error or 0.0

    def _ratio(self, label: str, row: int, other: int) -> Amount:
        """The perplexity of a row over that of another. A number that is not finite counts as infinite."""
        column = self._column_of[TEXT]
        value, reference = self._value(row, TEXT), self._value(other, TEXT)
        if value is None or reference is None or not math.isfinite(value / reference):
            return _exact(label, "times", math.inf if value is None else 0.0)
        if self.source == "paper":
            return _exact(label, "times", value / reference)
        _, error = self._paired(replace(FP16, method=label), row, other, TEXT)
        units = int(self.protocol(row, TEXT)["items"])
        reach = math.exp(reach_of_error(error, units)) if units > 1 else 1.0
        ends = [
            (self.board.lowest[number, column], self.board.highest[number, column], self.board.values[number, column])
            for number in (row, other)
        ]
        low = ends[0][0] / ends[0][2] * ends[1][2] / ends[1][1] / reach
        high = ends[0][1] / ends[0][2] * ends[1][2] / ends[1][0] * reach
        ratio = value / reference
        return Amount(label, "times", ratio, ratio * low, ratio * high)


def _exact(label: str, unit: Unit, value: float) -> Amount:
    return Amount(label, unit, value, value, value)
