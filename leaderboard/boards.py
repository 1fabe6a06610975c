"""The results that the page draws from, arranged once per change, and what identifies a drawing of them."""

from __future__ import annotations

from functools import lru_cache

from leaderboard import analysis
from leaderboard.analysis import Board, Query
from leaderboard.differences import Differences
from leaderboard.ranks import Comparisons
from leaderboard.store import Problem, Store, read_notes
from leaderboard.view import PageView
from quant_engine.spec import digest


class Boards:
    """The board of the store's newest snapshot, arranged again only when the store changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notes = read_notes()
        self.comparisons = Comparisons()
        self.differences = Differences()
        self._arranged = lru_cache(maxsize=1)(lambda version: analysis.arrange(store.snapshot().frame))

    def current(self) -> Board:
        return self._arranged(self.store.snapshot().version)

    def state(self) -> str:
        """Changes whenever what tables are drawn from does: the results, or what is known of their ranks and of which
        differences are more than chance."""
        return digest([self.store.version(), self.comparisons.finished(), self.differences.finished()])

    def problems(self) -> tuple[Problem, ...]:
        return self.store.snapshot().problems


def sign_table(state: str, query: Query) -> str:
    """What identifies a table: what it is drawn from (see `Boards.state`), and the query."""
    return digest([state, query.model_dump(mode="json")])


def sign_details(state: str, view: PageView) -> str:
    """What identifies the open card and the pins; empty if there are none, whatever the results are."""
    return digest([state, list(view.pins), view.row]) if view.pins or view.row else ""
