"""`queue`: the runs that wait, work or have ended, on the page and the command line alike."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from quant_engine import folders, notation, terminal
from quant_engine.commands.options import AsJson, ExecutorName, console, errors
from quant_engine.runs import executors
from quant_engine.runs.queue import PRIORITIES, Queue, QueuedRun
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import UserError

app = typer.Typer(no_args_is_help=True, help="See, stop and take up the runs that the page and commands have queued.")
RunId = Annotated[str, typer.Argument(help="A run's id, or the start of it.")]
Priority = Literal["low", "normal", "high"]
MOST = 500


def _queue() -> Queue:
    return Queue(folders.queue())


def _find(start: str) -> QueuedRun:
    """The run of the queue whose id begins so. Raises UserError if there is none or more than one."""
    found = [run for run in _queue().list(MOST) if run.run_id.startswith(start)]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise UserError(f"The queue has {what} whose id begins with {start!r}: see the command queue list.")
    return found[0]


@app.command("list")
def list_(
    most: Annotated[int, typer.Option(min=1, max=MOST, help="So many, the newest first.")] = 20, as_json: AsJson = False
) -> None:
    """Show the newest runs of the queue, with where they stand."""
    runs = _queue().list(most)
    if as_json:
        sys.stdout.write(json.dumps([run.model_dump(mode="json") for run in runs], indent=1) + "\n")
        return
    table = Table("run", "model", "setting", "state", "", box=None, header_style="bold", pad_edge=False)
    for run in runs:
        weights = run.spec.weights
        table.add_row(run.run_id, escape(weights.model), weights.setting.label, run.state, escape(_standing(run)))
    console.print(table if runs else "The queue is empty.")


def _standing(run: QueuedRun) -> str:
    """Where a run stands, in words."""
    if run.state == "running":
        stopping = run.cancelling or run.pausing
        return f"{run.progress.stage}, {run.progress.fraction:.0%}" + (", stopping" if stopping else "")
    if run.error:
        return run.error
    return f"{notation.seconds(max(run.ended - run.started, 0))}" if run.started and run.ended else ""


@app.command()
def cancel(run: RunId) -> None:
    """Take a waiting run out of the queue, or ask a running one to stop; its finished blocks stay."""
    found = _queue().cancel(_find(run).run_id)
    console.print(f"{found.run_id}: {'stopping' if found.cancelling else found.state}", highlight=False)


@app.command()
def resume(run: RunId) -> None:
    """Queue a failed, cancelled or paused run again: a page or `queue work` goes on behind its last finished block."""
    found = _queue().resume(_find(run).run_id)
    console.print(f"{found.run_id}: {found.state}", highlight=False)


@app.command()
def log(run: RunId, lines: Annotated[int, typer.Option(min=1, help="The last so many lines.")] = 200) -> None:
    """Print a run's log."""
    console.print(_queue().log_tail(_find(run).run_id, lines), highlight=False, markup=False, soft_wrap=True)


@app.command()
def pause(run: RunId) -> None:
    """Hold a waiting run back, or stop a running one for now: `queue resume` goes on behind its last finished block."""
    found = _queue().pause(_find(run).run_id)
    console.print(f"{found.run_id}: {'stopping' if found.pausing else found.state}", highlight=False)


@app.command()
def priority(
    run: RunId, level: Annotated[Priority, typer.Argument(help="high runs go before normal ones, low behind.")] = "high"
) -> None:
    """Let a waiting run go before others, or behind them."""
    found = _queue().prioritize(_find(run).run_id, PRIORITIES[level])
    console.print(f"{found.run_id}: {level} priority", highlight=False)


@app.command()
def note(run: RunId, words: Annotated[str, typer.Argument(help="What to remember; empty for nothing.")]) -> None:
    """Keep words with a run."""
    console.print(f"{_queue().annotate(_find(run).run_id, words).run_id}: noted", highlight=False)


@app.command()
def delete(run: RunId, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")] = False) -> None:
    """Remove a run that has ended: its results on this machine and its log. Asks first."""
    found = _find(run)
    words = (
        f"Delete run {found.run_id} ({found.spec.weights.model}, {found.spec.weights.setting.label}) and its results?"
    )
    if yes or typer.confirm(words):
        _queue().delete(found.run_id)
        console.print(f"{found.run_id}: deleted", highlight=False)


@app.command()
def work(executor: ExecutorName = None) -> None:
    """Do the runs that wait, one after another, until none is left. A page that is open does the same."""
    queue, failed, done = _queue(), 0, 0
    chosen = executors.executor(executor)
    while True:
        run_id = queue.next_to_start()
        if run_id is None:
            break
        run = queue.get(run_id)
        errors.print(f"{run.spec.weights.model}, {run.spec.weights.setting.label}", highlight=False, markup=False)
        with terminal.progress_bar(errors) as show:
            ended = run_claimed(queue, run_id, show, chosen)
        done += ended.state == "done"
        failed += ended.state == "failed"
        if ended.error:
            errors.print(ended.error, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{done} done, {failed} failed; nothing waits.")
    if failed:
        raise typer.Exit(1)
