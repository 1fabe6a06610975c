"""The whole view of a visitor as the query part of an address, and back.

What is at its default is left out, so that addresses stay short; what can't be understood is ignored, so that an old or
mistyped link still opens. Programs get a refusal instead (see queries.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaderboard import votes
from leaderboard.analysis import Board, Query, Range
from quant_engine.answers.messages import MOST_NEW_TOKENS, MOST_QUESTION_CHARACTERS
from quant_engine.spec import Text

FIRST_MODEL = "LLaMA3-8B"
EVERY_MODEL = "all"
MOST_PINS = 4
Tab = Literal["leaderboard", "explore", "findings", "ask", "run", "methods"]


class Explored(BaseModel):
    """What the Explore tab is set to. `quality` is a task; None lets the model decide. `within` is in points of FP16
    (percent of it where the measure is no percentage). `run` is the measured run whose layers are shown, `linear` the
    one of them whose weights are, `against` the run that it is compared with item by item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text = FIRST_MODEL
    quality: Text | None = None
    within: float = Field(5.0, ge=0, le=100)
    bits: float = Field(4.0, ge=1, le=8)
    run: Text | None = None
    linear: Text | None = None
    against: Text | None = None


class Fitted(BaseModel):
    """What *what fits my GPU* is set to. `card` is a card's name; `memory` in GiB is asked for where it is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text = FIRST_MODEL
    card: Text | None = "RTX 4090"
    memory: float | None = Field(None, gt=0, le=100_000)
    context: int = Field(4096, ge=1, le=1_000_000)
    batch: int = Field(1, ge=1, le=4096)
    pictures: int = Field(0, ge=0, le=64)


class Asked(BaseModel):
    """What the Ask tab is set to. `settings` are codes (`QuantSetting.code`) with commas between them, FP16 left out;
    `example` is the number of a picture that comes with the project: a visitor's own is in no link."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text | None = None
    settings: Text = "rtn-4-g64"
    question: Text = Field("", max_length=MOST_QUESTION_CHARACTERS)
    example: int | None = Field(None, ge=1, le=99)
    tokens: int = Field(64, ge=1, le=MOST_NEW_TOKENS)


class PageView(BaseModel):
    """Everything that a link carries. `pins` and `row` are row keys (see `row_key`); `row` is the open one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tab: Tab = "leaderboard"
    query: Query = Query(model=FIRST_MODEL)
    pins: tuple[Text, ...] = Field((), max_length=MOST_PINS)
    row: Text | None = None
    explored: Explored = Explored()
    fitted: Fitted = Fitted()
    asked: Asked = Asked()


PARTS: dict[str, tuple[str, type[BaseModel]]] = {
    "x": ("explored", Explored),
    "fit": ("fitted", Fitted),
    "ask": ("asked", Asked),
}
"""The parts of a view whose parameters have a prefix and a dot before their names, with the type of each."""


def address(view: PageView) -> str:
    """The view as the query part of an address, without the question mark; empty for the first view."""
    query, first = view.query, PageView()
    parameters: list[tuple[str, str]] = []

    def add(name: str, value: Any, default: Any, write: Callable[[Any], str] = str) -> None:
        if value != default:
            parameters.append((name, write(value)))

    add("tab", view.tab, first.tab)
    add("model", query.model, first.query.model, lambda model: model or EVERY_MODEL)
    add("track", query.track, first.query.track)
    add("show", query.mode, first.query.mode)
    for name, field, _ in LISTS:
        add(name, getattr(query, field), (), lambda values: ",".join(map(_short, values)))
    add("stored", query.stored, (None, None), _write_range)
    add("size", query.size, (None, None), _write_range)
    add("q", query.search, "")
    add("sort", (query.sort, query.reverse), (None, False), lambda sort: f"{'-' * sort[1]}{sort[0] or ''}")
    parameters += [("pin", key) for key in view.pins]
    add("row", view.row, None)
    for prefix, (name, _) in PARTS.items():
        for field, value in getattr(view, name).model_dump().items():
            add(f"{prefix}.{field}", value, getattr(getattr(first, name), field), _short)
    return urlencode(parameters)


def read_address(search: str | None) -> PageView:
    """The view that an address asks for; what can't be understood is as if it were not there."""
    parameters = parse_qs((search or "").removeprefix("?"), keep_blank_values=True)
    last = {name: values[-1] for name, values in parameters.items()}
    query: dict[str, Any] = {"model": FIRST_MODEL}
    if last.get("model"):
        query["model"] = None if last["model"] == EVERY_MODEL else last["model"]
    for name, field in (("track", "track"), ("show", "mode"), ("q", "search")):
        if name in last:
            query[field] = last[name]
    for name, field, read in LISTS:
        if name in last:
            query[field] = _read_list(last[name], read)
    for name in ("stored", "size"):
        if name in last:
            query[name] = _read_range(last[name])
    if last.get("sort"):
        query |= {"sort": last["sort"].removeprefix("-"), "reverse": last["sort"].startswith("-")}
    fields: dict[str, Any] = {
        "query": as_valid(Query, query),
        "pins": tuple(dict.fromkeys(filter(None, parameters.get("pin", []))))[:MOST_PINS],
        **{name: as_valid(kind, part_of(last, f"{prefix}.")) for prefix, (name, kind) in PARTS.items()},
    }
    return as_valid(PageView, fields | {name: last[name] for name in ("tab", "row") if last.get(name)})


def row_key(row: dict) -> str:
    """What names a row in an address: a measured run by its id, a row of the study or of votes alone by its setting."""
    if row["source"] == "measured":
        return f"run~{row['run_id']}"
    group = 0 if pd.isna(row["group_size"]) else row["group_size"]
    parts = [row["model"], row["track"], row["method"], f"{row['w_bits']:g}", f"{row['a_bits']:g}", f"{group:g}"]
    return "~".join(([votes.SOURCE] if row["source"] == votes.SOURCE else []) + parts)


def find_row(board: Board, key: str) -> int | None:
    """The index of a row in `board.rows`, or None if it is not there (any more)."""
    rows, parts, source = board.rows, key.split("~"), "paper"
    if parts[0] == votes.SOURCE and len(parts) == 7:
        source, *parts = parts
    if parts[0] == "run" and len(parts) == 2:
        mask = rows["run_id"] == parts[1]
    elif len(parts) == 6:
        try:
            w_bits, a_bits, group = map(float, parts[3:])
        except ValueError:
            return None
        mask = (rows["source"] == source) & (rows["model"] == parts[0]) & (rows["track"] == parts[1])
        mask &= (rows["method"] == parts[2]) & (rows["w_bits"] == w_bits) & (rows["a_bits"] == a_bits)
        mask &= rows["group_size"].fillna(0) == group
    else:
        return None
    indices = mask.to_numpy().nonzero()[0]
    return int(indices[0]) if len(indices) else None


def finite(text: str) -> float:
    """The number that a text is. Raises ValueError if it is none, or no finite one."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


# A parameter with commas, the query's field, and how a part of it is read.
LISTS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("method", "methods", str),
    ("bits", "bits", finite),
    ("abits", "a_bits", finite),
    ("group", "groups", int),
    ("source", "sources", str),
    ("status", "statuses", str),
    ("columns", "columns", str),
)


def _short(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _write_range(bounds: Range) -> str:
    return "..".join(map(_short, bounds))


def _read_range(text: str) -> Range:
    least, _, most = text.partition("..")
    return _bound(least), _bound(most)


def _bound(text: str) -> float | None:
    try:
        return finite(text)
    except ValueError:
        return None


def _read_list(text: str, read: Callable[[str], Any]) -> tuple:
    values = []
    for part in filter(None, text.split(",")):
        try:
            values.append(read(part))
        except ValueError:
            continue
    return tuple(values)


def part_of(parameters: Mapping[str, str], prefix: str) -> dict[str, str | None]:
    """Those parameters of an address whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value or None for name, value in parameters.items() if name.startswith(prefix)}


def as_valid(kind: type[BaseModel], fields: dict[str, Any]) -> Any:
    """The type with those of the fields that it accepts."""
    for _ in range(len(fields) + 1):
        try:
            return kind(**fields)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
            fields = {name: value for name, value in fields.items() if name not in wrong}
    return kind()
