"""The whole view of a visitor as the query part of an address, and back.

What is not said is the default, so that addresses stay short; what can't be understood is left out, so that an old or
mistyped link still opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaderboard.analysis import Board, Query, Range

FIRST_MODEL = "LLaMA3-8B"
EVERY_MODEL = "all"
MOST_PINS = 4
Tab = Literal["leaderboard", "explore", "ask", "run", "methods"]


class Explored(BaseModel):
    """What the Explore tab is set to. `quality` is a task; None lets the model decide. `within` is in points of FP16
    (percent of it where the measure is no percentage). `run` is the measured run whose layers are shown, `linear` the
    one of them whose weights are, `against` the run that it is compared with item by item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = FIRST_MODEL
    quality: str | None = None
    within: float = Field(5.0, ge=0, le=100)
    bits: float = Field(4.0, ge=1, le=8)
    run: str | None = None
    linear: str | None = None
    against: str | None = None


class Fitted(BaseModel):
    """What *what fits my GPU* is set to. `card` is a card's name; `memory` in GiB is asked for where it is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = FIRST_MODEL
    card: str | None = "RTX 4090"
    memory: float | None = Field(None, gt=0, le=100_000)
    context: int = Field(4096, ge=1, le=1_000_000)
    batch: int = Field(1, ge=1, le=4096)
    pictures: int = Field(0, ge=0, le=64)


class PageView(BaseModel):
    """Everything that a link carries. `pins` and `row` are row keys (see `row_key`); `row` is the open one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tab: Tab = "leaderboard"
    query: Query = Query(model=FIRST_MODEL)
    pins: tuple[str, ...] = Field((), max_length=MOST_PINS)
    row: str | None = None
    explored: Explored = Explored()
    fitted: Fitted = Fitted()


def address(view: PageView) -> str:
    """The view as the query part of an address, without the question mark; empty for the first view."""
    query, plain = view.query, PageView()
    said: list[tuple[str, str]] = []

    def say(name: str, value: Any, default: Any, write: Callable[[Any], str] = str) -> None:
        if value != default:
            said.append((name, write(value)))

    say("tab", view.tab, plain.tab)
    say("model", query.model, plain.query.model, lambda model: model or EVERY_MODEL)
    say("track", query.track, plain.query.track)
    say("show", query.mode, plain.query.mode)
    for name, field, one in _LISTS:
        say(name, getattr(query, field), (), lambda values, one=one: ",".join(one.write(value) for value in values))
    say("stored", query.stored, (None, None), _write_range)
    say("size", query.size, (None, None), _write_range)
    say("q", query.search, "")
    say("sort", (query.sort, query.reverse), (None, False), lambda sort: f"{'-' * sort[1]}{sort[0] or ''}")
    said += [("pin", key) for key in view.pins]
    say("row", view.row, None)
    for prefix, part, default in (("x", view.explored, plain.explored), ("fit", view.fitted, plain.fitted)):
        for field, value in part.model_dump().items():
            if value != getattr(default, field):
                said.append((f"{prefix}.{field}", "" if value is None else _short(value)))
    return urlencode(said)


def read_address(search: str) -> PageView:
    """The view that an address asks for; what it says wrongly is as if it were not said."""
    given = {name: values[-1] for name, values in parse_qs(search.removeprefix("?"), keep_blank_values=True).items()}
    query: dict[str, Any] = {}
    if "model" in given:
        query["model"] = None if given["model"] == EVERY_MODEL else given["model"]
    for name, field in (("track", "track"), ("show", "mode"), ("q", "search")):
        if name in given:
            query[field] = given[name]
    for name, field, one in _LISTS:
        if name in given:
            query[field] = _read_list(given[name], one.read)
    for name in ("stored", "size"):
        if name in given:
            query[name] = _read_range(given[name])
    if given.get("sort"):
        query |= {"sort": given["sort"].removeprefix("-"), "reverse": given["sort"].startswith("-")}
    pins = parse_qs(search.removeprefix("?")).get("pin", [])
    fields: dict[str, Any] = {
        "query": _valid(Query, {"model": FIRST_MODEL} | query),
        "pins": tuple(dict.fromkeys(pins))[:MOST_PINS],
        "explored": _valid(Explored, _part(given, "x.")),
        "fitted": _valid(Fitted, _part(given, "fit.")),
    }
    return _valid(PageView, fields | {name: given[name] for name in ("tab", "row") if given.get(name)})


def row_key(row: dict) -> str:
    """What names a row in an address: a measured run by its id, a row of the study by its setting."""
    if row["source"] == "measured":
        return f"run~{row['run_id']}"
    group = 0 if pd.isna(row["group_size"]) else row["group_size"]
    parts = [row["model"], row["track"], row["method"], f"{row['w_bits']:g}", f"{row['a_bits']:g}", f"{group:g}"]
    return "~".join(parts)


def find_row(board: Board, key: str) -> int | None:
    """The place of a row in `board.rows`, or None if it is not there (any more)."""
    rows, parts = board.rows, key.split("~")
    if parts[0] == "run" and len(parts) == 2:
        found = (rows["run_id"] == parts[1]).to_numpy().nonzero()[0]
    elif len(parts) == 6:
        try:
            w_bits, a_bits, group = map(float, parts[3:])
        except ValueError:
            return None
        same = (rows["source"] == "paper") & (rows["model"] == parts[0]) & (rows["track"] == parts[1])
        same &= (rows["method"] == parts[2]) & (rows["w_bits"] == w_bits) & (rows["a_bits"] == a_bits)
        found = (same & (rows["group_size"].fillna(0) == group)).to_numpy().nonzero()[0]
    else:
        return None
    return int(found[0]) if len(found) else None


class _Number:
    read = float
    write = staticmethod(lambda value: f"{value:g}")


class _Whole:
    read = int
    write = staticmethod(str)


class _Text:
    read = str
    write = staticmethod(str)


_LISTS = (
    ("method", "methods", _Text),
    ("bits", "bits", _Number),
    ("abits", "a_bits", _Number),
    ("group", "groups", _Whole),
    ("source", "sources", _Text),
    ("status", "statuses", _Text),
    ("columns", "columns", _Text),
)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_range(bounds: Range) -> str:
    return "..".join("" if bound is None else f"{bound:g}" for bound in bounds)


def _read_range(text: str) -> Range:
    least, _, most = text.partition("..")
    return _bound(least), _bound(most)


def _bound(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _read_list(text: str, read: Callable[[str], Any]) -> tuple:
    found = []
    for part in filter(None, text.split(",")):
        try:
            found.append(read(part))
        except ValueError:
            continue
    return tuple(found)


def _part(given: dict[str, str], prefix: str) -> dict[str, str | None]:
    return {name.removeprefix(prefix): value or None for name, value in given.items() if name.startswith(prefix)}


def _valid(kind: type[BaseModel], fields: dict[str, Any]) -> Any:
    """The type made of those fields that it accepts."""
    for _ in range(len(fields) + 1):
        try:
            return kind(**fields)
        except ValidationError as error:
            wrong = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
            fields = {name: value for name, value in fields.items() if name not in wrong}
    return kind()
