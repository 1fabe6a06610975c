"""What is shown below a run's card: how far its numbers are from others', and what each of its linears lost."""

from __future__ import annotations

from leaderboard.error_map import error_map
from leaderboard.ui.error_grid import grid_html
from quant_engine.runs.queue import QueuedRun


def run_detail(run: QueuedRun | None) -> str:
    """The parts that there are, one below the other; nothing for a run that has none."""
    if run is None:
        return ""
    errors = error_map(run)
    return grid_html(errors) if errors else ""
