"""The results and votes that the page draws from, arranged once per change, and what identifies a drawing of them."""

from __future__ import annotations

from functools import lru_cache

from leaderboard import analysis
from leaderboard.analysis import Board, Query
from leaderboard.differences import Differences
from leaderboard.ranks import Comparisons
from leaderboard.sharing import Sharing
from leaderboard.store import Problem, Store, read_notes
from leaderboard.view import PageView
from leaderboard.votes import Votes, with_votes
from quant_engine import folders
from quant_engine.spec import digest


class Boards:
    """The board of the store's newest snapshot with the votes, arranged again only when one of them changes."""

    def __init__(self, store: Store, votes: Votes | None = None, sharing: Sharing | None = None) -> None:
        self.store, self.votes, self._sharing = store, votes or Votes(folders.votes()), sharing
        self.notes = read_notes()
        self.comparisons = Comparisons()
        self.differences = Differences()
        self._arranged = lru_cache(maxsize=1)(
            lambda version, rates: analysis.arrange(with_votes(store.snapshot().frame, rates))
        )

    def current(self) -> Board:
        return self._arranged(self.store.snapshot().version, self.votes.tally().rates)

    def state(self) -> str:
        """Changes whenever what tables are drawn from does: the results, the votes, or what is known of their
        ranks and of which differences are more than chance."""
        tally = self.votes.tally()
        votes = [[rate.model_dump() for rate in tally.rates], tally.problem]
        known = [self.comparisons.finished(), self.differences.finished()]
        return digest([self.store.version(), votes, *known, self.sharing_problem()])

    def problems(self) -> tuple[Problem, ...]:
        return self.store.snapshot().problems

    def sharing_problem(self) -> str:
        """Why results are not shared at present; empty where they are, or are not meant to be."""
        return self._sharing.problem if self._sharing else ""


def sign_table(state: str, query: Query) -> str:
    """What identifies a table: what it is drawn from (see `Boards.state`), and the query."""
    return digest([state, query.model_dump(mode="json")])


def sign_details(state: str, view: PageView) -> str:
    """What identifies the open card and the pins; empty if there are none, whatever the results are."""
    return digest([state, list(view.pins), view.row]) if view.pins or view.row else ""
