"""What is shown below a run's card: what its numbers say when it is done, and what each of its linears lost."""

from __future__ import annotations

import logging
from html import escape

from leaderboard.error_map import error_map
from leaderboard.run_outcome import Outcomes
from leaderboard.store import Store
from leaderboard.ui.error_grid import grid_html
from leaderboard.ui.outcome_table import outcome_html
from quant_engine.runs.queue import QueuedRun
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

_COMPARING = '<p class="hint">Comparing item by item …</p>'


class RunDetail:
    """The details of runs among the results of a store."""

    def __init__(self, store: Store) -> None:
        self._outcomes = Outcomes(store)

    def html(self, run: QueuedRun | None) -> str:
        """The parts that there are, one below the other; nothing for a run that has none."""
        if run is None:
            return ""
        errors = error_map(run)
        return (self._outcome(run.run_id) if run.state == "done" else "") + (grid_html(errors) if errors else "")

    def _outcome(self, run_id: str) -> str:
        """What a run's numbers say. What goes wrong is a sentence in its place."""
        try:
            outcome = self._outcomes.of(run_id)
        except UserError as refusal:
            return f'<p class="hint">{escape(str(refusal))}</p>'
        except Exception:
            logger.exception("The numbers of run %s can't be compared.", run_id)
            return '<p class="hint">These numbers could not be compared; the server\'s log says why.</p>'
        return _COMPARING if outcome is None else outcome_html(outcome)
