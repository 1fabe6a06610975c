"""What can be typed into the search: plain words, and `field:value` terms.

    gptq w4 g128              every word stands somewhere in the row
    method:gptq group:row     a field is, or begins with, a value; several values with commas: method:gptq,awq
    bits:<=3 stored:2.5-4     numbers compare with < <= > >=, or lie in a range a-b
    wikitext2:<8 piqa:>70     tasks are fields too, by their id or the name in the header
    status:collapsed          rows with such a cell

A term with a field that nobody knows is looked for as plain text.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

MOST_CHARACTERS = 1000
TEXT_FIELDS = {
    "model": "model", "method": "method", "source": "source", "run": "run_id", "track": "track",
    "calibration": "calibration",
}  # fmt: skip
NUMBER_FIELDS = {
    "bits": "w_bits", "w": "w_bits", "abits": "a_bits", "a": "a_bits", "group": "group_size", "g": "group_size",
    "stored": "stored_bits", "size": "size_gb",
}  # fmt: skip
PER_ROW_WORDS = ("row", "perrow", "per-row", "0")
_COMPARISON = re.compile(r"(<=|>=|<|>|=)?(-?\d+(?:\.\d+)?)")
_RANGE = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")
_OPERATORS: dict[str, Callable] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": np.isclose, "": np.isclose,
}  # fmt: skip


@dataclass(frozen=True)
class Term:
    """A term of a search; `field` is empty for a plain word."""

    field: str
    value: str


def terms(search: str) -> list[Term]:
    """The terms of a search, in lower case. Quotes keep words together: calibration:"my text.txt"."""
    parts = re.findall(r'(?:([\w-]+):)?(?:"([^"]*)"|(\S+))', search.lower())
    return [Term(field, quoted or plain) for field, quoted, plain in parts]


def is_condition(term: Term) -> bool:
    """Whether the value of a term about numbers is made of numbers, comparisons and ranges."""
    words = PER_ROW_WORDS if NUMBER_FIELDS.get(term.field) == "group_size" else ()
    parts = [part for part in term.value.split(",") if part not in words]
    return all(_RANGE.fullmatch(part) or _COMPARISON.fullmatch(part) for part in parts)


def matches(
    search: str,
    rows: pd.DataFrame,
    haystack: pd.Series,
    numbers: Callable[[str], np.ndarray | None],
    has_status: Callable[[str], np.ndarray | None],
) -> np.ndarray:
    """For each row, whether every term of a search holds.

    Args:
        search: As it was typed.
        rows: The rows of a board.
        haystack: For each row the text, in lower case, in which plain words are looked for.
        numbers: Gives the values of a task by the field's name; None for no task.
        has_status: Gives whether a row has a cell of a status; None for no status.
    """
    mask = np.ones(len(rows), dtype=bool)
    for term in terms(search):
        matching = _field(term, rows, numbers, has_status) if term.field else None
        if matching is None:
            word = f"{term.field}:{term.value}" if term.field else term.value
            matching = haystack.str.contains(word, regex=False).to_numpy()
        mask &= matching
    return mask


def _field(term: Term, rows: pd.DataFrame, numbers: Callable, has_status: Callable) -> np.ndarray | None:
    """Whether a term with a field holds for each row; None if the field or its value means nothing."""
    if term.field == "status":
        return has_status(term.value)
    if term.field in TEXT_FIELDS:
        column = rows[TEXT_FIELDS[term.field]].astype(object).fillna("").astype(str).str.lower()
        return column.str.startswith(tuple(term.value.split(","))).to_numpy()
    if term.field in NUMBER_FIELDS:
        values = rows[NUMBER_FIELDS[term.field]].to_numpy(dtype=float)
        if NUMBER_FIELDS[term.field] == "group_size":
            return _group(values, term.value)
    else:
        values = numbers(term.field)
    return None if values is None else _compare(values, term.value)


def _group(values: np.ndarray, condition: str) -> np.ndarray | None:
    """Whether group sizes meet a condition, in which "row" stands for one group per row (NaN in `values`)."""
    parts = condition.split(",")
    sizes = [part for part in parts if part not in PER_ROW_WORDS]
    per_row = np.isnan(values) & (len(sizes) < len(parts))
    matching = _compare(values, ",".join(sizes)) if sizes else per_row
    return None if matching is None else matching | per_row


def _compare(values: np.ndarray, condition: str) -> np.ndarray | None:
    """Whether one of the comparisons of a condition ("<=3", "2.5-4,8") holds; None if it is none."""
    matching = np.zeros(len(values), dtype=bool)
    for part in condition.split(","):
        between, single = _RANGE.fullmatch(part), _COMPARISON.fullmatch(part)
        with np.errstate(invalid="ignore"):
            if between:
                matching |= (values >= float(between[1])) & (values <= float(between[2]))
            elif single:
                matching |= _OPERATORS[single[1] or ""](values, float(single[2]))
            else:
                return None
    return matching
