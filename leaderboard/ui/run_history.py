"""All runs of the queue, newest first: searched by words, by state, and a page at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

import gradio as gr

from leaderboard.store import method_name, model_name
from leaderboard.ui.run_card import RUNS_JS, WORDS, state_word
from leaderboard.ui.theme import html
from quant_engine.runs.queue import Queue, QueuedRun

FIRST_ROWS = 12
MORE_ROWS = 50
MOST_ROWS = 500
ANY = "any state"


class RunHistory:
    """Search box, filter by state, and the list."""

    def __init__(self, queue: Queue) -> None:
        """Lays out the part; the tab connects it."""
        self._queue = queue
        html("<h3>History</h3>")
        with gr.Row(elem_classes="choosers"):
            self.search = gr.Textbox(
                label="Find runs", placeholder="model, method, setting, note …", max_lines=1, elem_classes="search"
            )
            self.state = gr.Dropdown(
                [ANY, *WORDS.values()], value=ANY, label="State", filterable=False, elem_classes="narrow"
            )
        self.rows = gr.State(FIRST_ROWS)
        self.list = html("", js_on_load=RUNS_JS, elem_id="runs")
        self.more = gr.Button("Show more", visible=False, elem_id="more-runs", size="sm")
        self.outputs = [self.list, self.more]

    def show(self, search: str, state: str, rows: int, run_id: str | None) -> list:
        """The values of `outputs`; the run `run_id` is marked."""
        words, filtered = (search or "").casefold().split(), bool((search or "").strip()) or state != ANY
        runs = self._queue.list(MOST_ROWS if filtered else min(rows, MOST_ROWS - 1) + 1)
        found = [run for run in runs if matches(run, words, state)]
        listed = list_html(found[:rows], run_id, filtered=filtered)
        return [listed, gr.update(visible=len(found) > rows)]


def matches(run: QueuedRun, words: Sequence[str], state: str = ANY) -> bool:
    """Whether all words are found in what is known of a run, and it is in a state (a word of it, or any)."""
    if state not in (ANY, WORDS[run.state]):
        return False
    weights, setting = run.spec.weights, run.spec.weights.setting
    known = [
        *(weights.model, model_name(weights.model), setting.method, method_name(setting.method), setting.label),
        *(*run.spec.tasks, state_word(run), run.note, run.submitter, run.run_id),
    ]
    text = " ".join(known).casefold()
    return all(word in text for word in words)


def list_html(runs: Sequence[QueuedRun], run_id: str | None, *, filtered: bool = False) -> str:
    """The runs as buttons, each with its note; that of `run_id` is pressed."""
    if not runs:
        words = "No run fits: search for other words, or any state." if filtered else "Runs will be listed here."
        return f'<p class="hint">{words}</p>'
    return f'<ul class="runs">{"".join(_row(run, run_id) for run in runs)}</ul>'


def _row(run: QueuedRun, run_id: str | None) -> str:
    weights, note = run.spec.weights, " ".join(run.note.split())
    remark = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<li><button type="button" data-run="{run.run_id}" aria-pressed="{str(run.run_id == run_id).lower()}">'
        f"<b>{escape(weights.setting.label)}</b><span>{escape(model_name(weights.model))}</span>"
        f'<mark class="{run.state}">{state_word(run)}</mark><time>{ago(time.time() - run.created)}</time>'
        f"{remark}</button></li>"
    )


def ago(seconds: float) -> str:
    """How long ago something was: just now, 5 min ago, 3 h ago, 2 d ago."""
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {word} ago"
    return "just now"
