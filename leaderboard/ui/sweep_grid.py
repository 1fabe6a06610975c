"""A sweep as a grid that fills: methods and groups × bits, a table for each model, and a button for each run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr
import pandas as pd

from leaderboard.columns import column_of, ordered
from leaderboard.lab import Lab
from leaderboard.store import method_name, model_name
from leaderboard.ui.run_card import RUNS_JS, state_word
from leaderboard.ui.sweep_form import count, left_out_html
from leaderboard.ui.table import bit_bar
from leaderboard.ui.theme import html
from quant_engine import notation
from quant_engine.runs.queue import QueuedRun, QueuedSweep
from quant_engine.spec import QuantSetting

UNFINISHED = ("queued", "running", "paused")
RESUMABLE = {"paused": "Resume all", "failed": "Retry failed"}
"""What goes on by one button: what was paused, else what has failed."""
_STATES = ("done", "running", "queued", "paused", "failed", "cancelled")
_EMPTY = '<div class="run empty"><b>No sweep yet.</b> Compose one and start it: its grid fills here.</div>'

Numbers = Mapping[tuple[str, str], Mapping]
"""Rows of results by (run id, task)."""


class SweepGrid:
    """The chosen sweep, choosers of sweep and task, and what is done to all its runs."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part; the tab connects it."""
        self._queue, self._store = lab.queue, lab.store
        with gr.Column(visible=False, elem_id="sweeps", elem_classes="sweeps") as self.column:
            with gr.Row(elem_classes="choosers"):
                self.sweep = gr.Dropdown([], label="Sweep", visible=False, filterable=False, elem_classes="narrow")
                self.task = gr.Dropdown([], label="Task", visible=False, filterable=False, elem_classes="narrow")
            self.grid = html("", elem_id="sweep-grid", js_on_load=RUNS_JS)
            with gr.Row(elem_classes="run-buttons"):
                self.pause = gr.Button("Pause all", visible=False, elem_id="pause-all", size="sm", min_width=88)
                self.resume = gr.Button("Resume all", visible=False, elem_id="resume-all", size="sm", min_width=88)
                self.cancel = gr.Button("Cancel all", visible=False, elem_id="cancel-all", size="sm", min_width=88)
            self.problem = html("", elem_id="sweep-grid-problem")
        self.outputs = [self.column, self.sweep, self.task, self.grid, self.pause, self.resume, self.cancel]

    def runs(self, sweep_id: str | None) -> list[QueuedRun]:
        """The runs of a sweep, else of the newest, that have not been deleted."""
        sweep = chosen(self._queue.sweeps(), sweep_id)
        return list(self._queue.several(sweep.runs).values()) if sweep else []

    def runs_to_resume(self, sweep_id: str | None) -> list[QueuedRun]:
        """Of these those that go on next."""
        runs = self.runs(sweep_id)
        return [run for run in runs if run.state == resumed(runs)]

    def show(self, sweep_id: str | None, task: str | None, run_id: str | None, sweeping: bool) -> list:
        """The values of `outputs`. Where the form is for one setting, a sweep shows only while it has runs to do."""
        sweeps = self._queue.sweeps()
        sweep = chosen(sweeps, sweep_id)
        if sweep is None:
            hidden = gr.update(visible=False)
            return [gr.update(visible=sweeping), hidden, hidden, _EMPTY, hidden, hidden, hidden]
        runs = list(self._queue.several(sweep.runs).values())
        states = Counter(run.state for run in runs)
        if not (sweeping or any(states[state] for state in UNFINISHED)):
            return [gr.update(visible=False), *[gr.update()] * (len(self.outputs) - 1)]
        numbers = self._numbers(sweep)
        tasks = tasks_of(runs, numbers)
        task = task if task in tasks else next(iter(tasks), None)
        titles = [(column_of(name).title, name) for name in tasks]
        return [
            gr.update(visible=True),
            gr.update(choices=[(title(other), other.sweep_id) for other in sweeps], value=sweep.sweep_id,
                      visible=len(sweeps) > 1),
            gr.update(choices=titles, value=task, visible=len(tasks) > 1),
            grid_html(sweep, runs, numbers, task, run_id),
            gr.update(visible=any(run.state in ("queued", "running") and not run.pausing for run in runs)),
            gr.update(visible=any(states[state] for state in RESUMABLE), value=RESUMABLE[resumed(runs)]),
            gr.update(visible=any(run.state in UNFINISHED and not run.cancelling for run in runs)),
        ]  # fmt: skip

    def _numbers(self, sweep: QueuedSweep) -> Numbers:
        frame = self._store.snapshot().frame
        rows = frame.loc[frame["run_id"].isin(sweep.runs), ["run_id", "task", "value", "standard_error", "status"]]
        return {(row["run_id"], row["task"]): row for row in rows.to_dict("records")}


def chosen(sweeps: Sequence[QueuedSweep], sweep_id: str | None) -> QueuedSweep | None:
    """The sweep of an id, else the newest, if there is one."""
    return next((sweep for sweep in sweeps if sweep.sweep_id == sweep_id), sweeps[0] if sweeps else None)


def resumed(runs: Sequence[QueuedRun]) -> str:
    """The state of the runs that go on next: those that were paused, else those that failed."""
    return "paused" if any(run.state == "paused" for run in runs) else "failed"


def title(sweep: QueuedSweep) -> str:
    """What a list of sweeps calls one."""
    return f"{time.strftime('%d %b, %H:%M', time.localtime(sweep.created))}: {count(len(sweep.runs), 'run')}"


def tasks_of(runs: Sequence[QueuedRun], numbers: Numbers) -> list[str]:
    """The tasks that have numbers, else those that will: a task may have several numbers, and none of its own name."""
    tasks = [task for _, task in numbers] or [task for run in runs for task in run.spec.tasks]
    return [column.task for column in ordered(tasks)]


def grid_html(
    sweep: QueuedSweep, runs: Sequence[QueuedRun], numbers: Numbers, task: str | None, run_id: str | None
) -> str:
    """The tables of a sweep; the button of the run `run_id` is pressed."""
    by_model: dict[str, list[QueuedRun]] = {}
    for run in runs:
        by_model.setdefault(run.spec.weights.model, []).append(run)
    tables = "".join(_table(model, own, numbers, task, run_id) for model, own in by_model.items())
    return (
        f'<section class="sweep-grid"><p class="summary">{_summary(sweep, runs, task)}</p>{tables}'
        f"{left_out_html(sweep.left_out)}</section>"
    )


def _summary(sweep: QueuedSweep, runs: Sequence[QueuedRun], task: str | None) -> str:
    """How many runs are in which state, and what the numbers are, as HTML."""
    states = Counter(run.state for run in runs)
    counts = [f"{states[state]} {state_word(state)}" for state in _STATES if states[state]]
    gone = len(sweep.runs) - len(runs)
    counts += [f"{gone} deleted"] if gone else []
    column = column_of(task) if task else None
    what = f". Numbers are {escape(column.title)}, {column.better} is better." if column else "."
    return f"<b>Sweep of {count(len(sweep.runs), 'run')}</b>: {', '.join(counts)}{what}"


def _table(model: str, runs: Sequence[QueuedRun], numbers: Numbers, task: str | None, run_id: str | None) -> str:
    """Rows are methods with groups, columns bits, the most first; the unquantized model goes across."""
    widths = sorted({_setting(run).w_bits for run in runs if not _is_fp16(run)}, reverse=True)
    rows: dict[str, dict[float, list[QueuedRun]]] = {}
    for run in sorted(runs, key=_is_fp16, reverse=True):
        rows.setdefault(_row_title(_setting(run)), {}).setdefault(_setting(run).w_bits, []).append(run)
    heads = "".join(f'<th scope="col">{width:g} bits{bit_bar(width)}</th>' for width in widths)
    body = ""
    for name, cells in rows.items():
        across = [16.0] if 16.0 in cells else widths
        span = f' colspan="{max(len(widths), 1)}"' if across == [16.0] else ""
        parts = "".join(
            f"<td{span}>{''.join(_cell(run, numbers, task, run_id) for run in cells.get(width, ()))}</td>"
            for width in across
        )
        body += f'<tr><th scope="row">{name}</th>{parts}</tr>'
    name = escape(model_name(model))
    return (
        f'<div class="of-model"><div class="scroll" role="region" aria-label="Sweep of {name}"><table><thead><tr>'
        f'<th scope="col">{name}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="detail" aria-hidden="true"></p></div>'
    )


def _setting(run: QueuedRun) -> QuantSetting:
    return run.spec.weights.setting


def _is_fp16(run: QueuedRun) -> bool:
    return _setting(run).method == "fp16"


def _row_title(setting: QuantSetting) -> str:
    """A method with what else tells its rows apart."""
    more = [f"A{setting.a_bits}"] if setting.a_bits < 16 else []
    more += [f"g{setting.group_size}"] if setting.group_size else []
    return f"{escape(method_name(setting.method))} <small>{' '.join(more)}</small>"


def _cell(run: QueuedRun, numbers: Numbers, task: str | None, run_id: str | None) -> str:
    """A run as a button: its number if it is done, else its state."""
    number = numbers.get((run.run_id, task or "")) if run.state == "done" else None
    kind, shown, words = run.state, escape(state_word(run)), state_word(run)
    if run.state == "running" and not (run.cancelling or run.pausing):
        share = f"{100 * min(max(run.progress.fraction, 0.0), 1.0):.0f}%"
        shown, words = f'{share}<span class="bar"><i style="width:{share}"></i></span>', f"running, {share}"
    elif number and number["status"] == "collapsed":
        kind = shown = words = "collapsed"
    elif number and pd.notna(number["value"]):
        value, error = column_of(task).text(number["value"], measured=True), number["standard_error"]
        error = "" if pd.isna(error) else f"± {notation.standard_error(error)}"
        shown, words = f"<b>{value}</b><small>{error}</small>", f"{value} {error}".strip()
    detail = escape(f"{_setting(run).label}: {words}. {run.error or ''}".strip())
    pressed = str(run.run_id == run_id).lower()
    return (
        f'<button type="button" class="{kind}" data-run="{run.run_id}" aria-pressed="{pressed}"'
        f' aria-label="{detail}" data-detail="{detail}">{shown}</button>'
    )
