"""A run as HTML, with its progress."""

from __future__ import annotations

from html import escape

from leaderboard.columns import column_of
from leaderboard.store import model_name
from leaderboard.ui.table import bit_bar
from quant_engine import folders, notation
from quant_engine.evaluate import reads_windows
from quant_engine.evaluate.interim import count_text, number_text
from quant_engine.progress import Progress
from quant_engine.runs.queue import QueuedRun, State
from quant_engine.spec import RunSpec

WORDS = {
    "queued": "waiting",
    "running": "running",
    "paused": "paused",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
"""The states as they are written."""
RUNS_JS = (folders.PROJECT / "leaderboard" / "ui" / "runs.js").read_text(encoding="utf-8")
"""For HTML in which runs are buttons: pressing one triggers `pick`."""


def card(run: QueuedRun | None) -> str:
    """A run: its setting and tasks, its progress, and its error if it has one."""
    if run is None:
        return '<div class="run empty"><b>No run yet.</b> Compose a setting and start it: it shows here.</div>'
    spec = run.spec
    limit = f"{spec.limit} items a task" if spec.limit else "all items"
    if reads_windows(spec.tasks):
        limit += f", {f'{spec.windows} ' if spec.windows else ''}windows of {spec.window:,} tokens"
    summary = f"{escape(model_name(spec.weights.model))} · {escape(_tasks(spec))} · {limit}"
    return (
        f'<article class="run {run.state}" data-run="{run.run_id}"><header><b>{escape(spec.weights.setting.label)}</b>'
        f"{bit_bar(spec.weights.setting.w_bits)}<mark>{state_word(run)}</mark></header><p class='what'>{summary}</p>"
        f"{_bar(run)}<p class='where'>{escape(_status(run))}</p>{_interims(run)}{_error(run)}"
        f"<p class='id'>Run <code>{run.run_id}</code></p></article>"
    )


def _tasks(spec: RunSpec) -> str:
    return ", ".join(column_of(task).title for task in spec.tasks)


def state_word(run: QueuedRun | State) -> str:
    """The state of a run, or a state, as it is written."""
    if isinstance(run, str):
        return WORDS[run]
    if run.state == "running" and (run.cancelling or run.pausing):
        return "stopping" if run.cancelling else "pausing"
    return WORDS[run.state]


def _bar(run: QueuedRun) -> str:
    share = 100 * min(max(run.progress.fraction, 0.0), 1.0)
    return (
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div>'
    )


def _status(run: QueuedRun) -> str:
    """The state in words: stage, block and linear, task and item, time left."""
    if run.state == "queued":
        return "Waiting for its turn."
    if run.state == "running":
        return " · ".join([*_steps(run.progress), _time_left(run.progress)]).strip(" ·")
    if run.started and run.ended:
        spent = notation.seconds(max(run.ended - run.started, 0))
        return {
            "done": f"Finished in {spent}. Its numbers are on the leaderboard.",
            "paused": f"Paused after {spent}: what is finished is kept.",
        }.get(run.state, f"Ended after {spent}.")
    return {
        "cancelled": "Cancelled before it started.",
        "paused": "Paused before it started: it waits until you resume it.",
    }.get(run.state, "")


def _interims(run: QueuedRun) -> str:
    """The numbers so far of the tasks that are measured; a finished run has its own."""
    if run.state != "running" or not run.progress.interims:
        return ""
    rows = "".join(
        f"<div><dt>{escape(number.title)}</dt><dd>{escape(number_text(number))},"
        f" <small>{escape(count_text(number))}</small></dd></div>"
        for number in run.progress.interims
    )
    return f"<dl class='interims'>{rows}</dl>"


def _steps(progress: Progress) -> list[str]:
    steps = [progress.stage.capitalize()]
    if progress.stage in ("quantizing", "calibrating") and progress.block is not None:
        steps.append(f"block {progress.block}" + (f" of {progress.blocks}" if progress.blocks else ""))
        if progress.linear:
            steps.append(progress.linear)
        if progress.output_error is not None:
            steps.append(f"output error {progress.output_error:.2g}")
    if progress.stage == "evaluating" and progress.task:
        steps.append(column_of(progress.task).title)
        if progress.item is not None and progress.items:
            steps.append(f"item {progress.item} of {progress.items}")
        if progress.items_per_s:
            steps.append(f"{progress.items_per_s:.3g} items a second")
    if len(steps) == 1 and progress.message:
        steps.append(progress.message)
    return steps


def _time_left(progress: Progress) -> str:
    """The engine's estimate, which is for the present step."""
    if progress.eta_s is None:
        return ""
    left = max(round(progress.eta_s), 1)
    return f"about {f'{left} s' if left < 60 else notation.seconds(left)} left in this step"


def _error(run: QueuedRun) -> str:
    return f'<p class="sorry" role="alert">{escape(run.error)}</p>' if run.error else ""
