"""The table that the Leaderboard tab shows for a query, and what clicks and typed ranges make of a query."""

from __future__ import annotations

import re
from dataclasses import dataclass

from leaderboard import analysis
from leaderboard.analysis import Query, Range, View
from leaderboard.boards import Boards, sign_table
from leaderboard.ranks import Ranking, rank
from leaderboard.view import FIRST_MODEL, MOST_PINS

FILTERS = ("methods", "bits", "groups", "sources", "a_bits", "columns")
"""The fields of a query, and of the choices, that narrow the table to some of what there is."""


@dataclass(frozen=True)
class TableView:
    """The part of the results that the tab shows, with its ranks, and what the model chooser and the filters offer.

    `view.query` is the query without what the model and track can't have. `signature` identifies the table's content.
    """

    view: View
    ranking: Ranking | None
    signature: str
    choices: analysis.Choices
    models: list[str]

    @property
    def query(self) -> Query:
        return self.view.query


def select_table(boards: Boards, query: Query) -> TableView:
    """The table for a query. Filters that model and track can't have are dropped, so that no choice empties it."""
    state, board = boards.state(), boards.current()
    models = analysis.models(board)
    if query.model is not None and query.model not in models:
        query = query.model_copy(update={"model": FIRST_MODEL})
    choices = analysis.choices(board, query.model, query.track)
    if query.track not in choices.tracks:
        query = query.model_copy(update={"track": choices.tracks[0]})
        choices = analysis.choices(board, query.model, query.track)
    possible = {name: tuple(v for v in getattr(query, name) if v in getattr(choices, name)) for name in FILTERS}
    view = analysis.view(board, query.model_copy(update=possible), boards.differences.of(board))
    ranking = rank(board, view, boards.comparisons)
    return TableView(view, ranking, sign_table(state, view.query), choices, models)


def toggle_pin(pins: tuple[str, ...], row: str) -> tuple[str, ...]:
    """The pins after a press on a row's: it goes if it was pinned; a fifth one replaces the oldest."""
    return tuple(pin for pin in pins if pin != row) if row in pins else (*pins, row)[-MOST_PINS:]


def next_sort(sort: str | None, reverse: bool, column: str) -> tuple[str | None, bool]:
    """What a click on a header makes of the sort: best first, then worst first, then the study's order."""
    if sort != column:
        return column, False
    return (None, False) if reverse else (column, True)


def parse_range(text: object) -> Range:
    """A typed range: "2.5-4", "<4", ">=3", or a single number. Anything else is open on both sides."""
    text = str(text or "").strip()
    match = re.fullmatch(r"(<=?|>=?)?\s*(\d+(?:\.\d+)?)(?:\s*(?:-|–|\.\.)\s*(\d+(?:\.\d+)?))?", text)
    if not match:
        return None, None
    sign, first, second = match[1] or "", float(match[2]), match[3]
    if second is not None:
        return first, float(second)
    return (None, first) if sign.startswith("<") else (first, None) if sign else (first, first)


def range_text(bounds: Range) -> str:
    """A range as one would type it."""
    least, most = bounds
    if least is None:
        return "" if most is None else f"<{most:g}"
    return f">{least:g}" if most is None else f"{least:g}" if least == most else f"{least:g}-{most:g}"
