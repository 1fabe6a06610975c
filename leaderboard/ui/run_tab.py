"""The Run tab: compose a setting or a sweep, start it, follow it. All state comes from the queue, so reloading loses
nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from typing import NamedTuple

import gradio as gr

from leaderboard.lab import Lab
from leaderboard.ui import run_card
from leaderboard.ui.notice import notice
from leaderboard.ui.pressed import pressed
from leaderboard.ui.run_actions import RunActions
from leaderboard.ui.run_detail import RunDetail
from leaderboard.ui.run_form import SWEEP, RunForm
from leaderboard.ui.run_history import MORE_ROWS, RunHistory
from leaderboard.ui.sweep_grid import SweepGrid
from leaderboard.ui.theme import QUICK, html
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import PRIORITIES, Queue, QueuedRun
from quant_engine.spec import UserError

LOG_LINES = 200
RECENT = 12
_LOADING = '<div class="run empty">Looking at the queue …</div>'


class View(NamedTuple):
    """What the visitor looks at: the run, the one whose deletion waits for a second press, the form's mode, the sweep
    and its task, and what the history is searched for."""

    run_id: str | None
    asking: str | None
    mode: str
    sweep_id: str | None
    task: str | None
    search: str
    state: str
    rows: int


def run_to_show(queue: Queue, run_id: str | None, runs: list[QueuedRun]) -> QueuedRun | None:
    """The chosen run, else of the recent `runs` the one that runs, else the newest."""
    for run in runs:
        if run.run_id == run_id:
            return run
    if run_id:
        try:
            return queue.get(run_id)
        except UserError:
            pass  # it was chosen before the queue's file was replaced; show what is there now
    return next((run for run in runs if run.state == "running"), runs[0] if runs else None)


class RunTab:
    """The form, the grid of a sweep, and the shown run: `run_id` holds its id, and `see` leads to its row on the
    leaderboard.

    All state comes from the queue: the page asks it once a second, and draws what has changed.
    """

    def __init__(self, lab: Lab) -> None:
        """Lays out the tab and connects it."""
        self.lab, self.detail = lab, RunDetail(lab.store)
        with gr.Row(elem_classes="bench"):
            with gr.Column(elem_classes="bench-side form-side"):
                self.form = RunForm(lab)
            with gr.Column(elem_classes="bench-main"):
                self.grid = SweepGrid(lab)
                self.run_id = gr.State(None)
                card = html(_LOADING, elem_id="run")
                self.actions = RunActions()
                detail = html("", elem_id="run-detail")
                with gr.Accordion("Log", open=False, elem_classes="more-options"):
                    log = html("", elem_id="log")
                self.history = RunHistory(lab.queue)
        self.see = self.actions.see
        last = gr.State(None)
        self.outputs = [
            self.run_id, card, detail, log, *self.actions.outputs, *self.grid.outputs, *self.history.outputs, last
        ]  # fmt: skip
        self.view = [
            *(self.run_id, self.actions.asking, self.form.mode, self.grid.sweep, self.grid.task),
            *(self.history.search, self.history.state, self.history.rows),
        ]
        self._connect()

    def _connect(self) -> None:
        form, grid, history = self.form, self.grid, self.history
        composed = [form.token, *self.view, *form.controls, *form.sweep.controls]
        form.start.click(self._start, composed, [form.problem, *self.outputs], **QUICK)
        self._connect_actions()
        asked, answers = [form.token, *self.view], [grid.problem, *self.outputs]
        for button, action, runs in (
            (grid.pause, self.lab.queue.pause, grid.runs),
            (grid.resume, self.lab.queue.resume, grid.runs_to_resume),
            (grid.cancel, self.lab.queue.cancel, grid.runs),
        ):
            button.click(partial(self._act_on_sweep, action, runs), asked, answers, **QUICK)
        for part in (grid.grid, history.list):
            part.pick(self._pick, self.view, self.outputs, **QUICK)
        for change in (form.mode.change, grid.sweep.input, grid.task.input, history.state.input):
            change(self._look, self.view, self.outputs, **QUICK)
        history.search.input(self._look, self.view, self.outputs, trigger_mode="always_last", **QUICK)
        history.more.click(
            lambda *view: [view[-1] + MORE_ROWS, *self._look(*view[:-1], view[-1] + MORE_ROWS)],
            self.view,
            [history.rows, *self.outputs],
            **QUICK,
        )
        gr.Timer(1).tick(self._tick, [self.outputs[-1], *self.view], self.outputs, **QUICK)

    def _connect_actions(self) -> None:
        """Connects what can be done to the shown run."""
        queue, actions = self.lab.queue, self.actions
        asked, answers = [self.form.token, *self.view], [actions.problem, *self.outputs]
        for button, action in (
            (actions.pause, queue.pause), (actions.resume, queue.resume), (actions.cancel, queue.cancel),
        ):  # fmt: skip
            button.click(partial(self._act, action), asked, answers, **QUICK)
        actions.priority.input(self._prioritize, [actions.priority, *asked], answers, **QUICK)
        for noted in (actions.save.click, actions.note.submit):
            noted(self._annotate, [actions.note, *asked], answers, **QUICK)
        actions.delete.click(self._ask, self.view, self.outputs, **QUICK).then(
            None, None, None, js="() => document.querySelector('#delete-keep')?.focus()", **QUICK
        )
        actions.keep.click(self._forget, self.view, self.outputs, **QUICK)
        actions.confirm.click(self._delete, asked, answers, **QUICK)

    def _show(self, view: View, run_id: str | None) -> list:
        """The values of `outputs` for a run, else for the one that runs, else for the newest; the last output keeps all
        others for the next tick."""
        values = self._values(view, run_id)
        return [*values, values]

    def _values(self, view: View, run_id: str | None) -> list:
        try:
            runs = self.lab.queue.list(RECENT)
            run = run_to_show(self.lab.queue, run_id, runs)
            shown = run.run_id if run else None
            log = self.lab.queue.log_tail(shown, LOG_LINES) if run else ""
            grid = self.grid.show(view.sweep_id, view.task, shown, view.mode == SWEEP)
            history = self.history.show(view.search, view.state, view.rows, shown)
        except UserError as refusal:
            nothing = [gr.skip()] * (len(self.grid.outputs) + len(self.history.outputs))
            return [run_id, notice(str(refusal)), "", "", *self.actions.show(None, None, None), *nothing]
        return [
            shown,
            run_card.card(run),
            self.detail.html(run),
            f'<div class="tail"><pre>{escape(log)}</pre></div>' if log else '<p class="hint">Nothing yet.</p>',
            *self.actions.show(run, view.run_id, view.asking),
            *grid,
            *history,
        ]

    def _look(self, *view) -> list:
        """The same run, after something else of the view was chosen."""
        return self._show(View(*view), view[0])

    def _tick(self, last: list | None, *view) -> list:
        """The values that have changed since they were last written."""
        values = self._values(View(*view), view[0])
        if values == last:
            return [gr.skip()] * len(self.outputs)
        before = last or [None] * len(values)
        return [*(gr.skip() if value == old else value for value, old in zip(values, before, strict=True)), values]

    def _pick(self, event: gr.EventData, *view) -> list:
        return self._show(View(*view), pressed(event, "run"))

    def _start(self, token: str | None, *values) -> list:
        """Queues the run or the sweep of the form. A run whose results are gone from the disk is computed again."""
        view, controls = View(*values[: len(self.view)]), values[len(self.view) :]
        try:
            submitter = self.lab.check_may_start(token or "")  # first: reading the form may ask the hub
            if view.mode == SWEEP:
                planned = self.form.read_sweep(*controls)
                run_folder.check_writable()
                sweep = self.lab.queue.submit_sweep(planned.specs, planned.left_out, submitter)
                return ["", *self._show(view._replace(sweep_id=sweep.sweep_id, task=None), sweep.runs[0])]
            spec = self.form.read(*controls[: len(self.form.controls)])
            run_folder.check_writable()
            return ["", *self._show(view, self.lab.queue.submit(spec, submitter))]
        except UserError as refusal:
            return self._refuse(refusal)

    def _act(self, action: Callable[[str], object], token: str | None, *view) -> list:
        """Does something to the shown run."""
        try:
            self.lab.check_may_start(token or "")
            action(view[0])
        except UserError as refusal:
            return self._refuse(refusal)
        return ["", *self._look(*view)]

    def _act_on_sweep(
        self,
        action: Callable[[str], object],
        runs: Callable[[str | None], list[QueuedRun]],
        token: str | None,
        *view,
    ) -> list:
        """Does something to those `runs` of the shown sweep."""
        try:
            self.lab.check_may_start(token or "")
            for run in runs(View(*view).sweep_id):
                action(run.run_id)
        except UserError as refusal:
            return self._refuse(refusal)
        return ["", *self._look(*view)]

    def _prioritize(self, priority: str, token: str | None, *view) -> list:
        number = next((number for name, number in PRIORITIES.items() if name == priority), 0)
        return self._act(lambda run_id: self.lab.queue.prioritize(run_id, number), token, *view)

    def _annotate(self, note: str, token: str | None, *view) -> list:
        return self._act(lambda run_id: self.lab.queue.annotate(run_id, note or ""), token, *view)

    def _ask(self, *view) -> list:
        """Asks whether the shown run is to be deleted."""
        return self._look(view[0], view[0], *view[2:])

    def _forget(self, *view) -> list:
        """Takes the question back."""
        return self._look(view[0], None, *view[2:])

    def _delete(self, token: str | None, *values) -> list:
        """Deletes the shown run if that was asked."""
        view = View(*values)
        if view.asking != view.run_id:
            return ["", *self._look(*view)]
        try:
            self.lab.check_may_start(token or "")
            self.lab.queue.delete(view.run_id)
        except UserError as refusal:
            return self._refuse(refusal)
        return ["", *self._show(view, None)]

    def _refuse(self, refusal: UserError) -> list:
        return [notice(str(refusal)), *[gr.skip()] * len(self.outputs)]
