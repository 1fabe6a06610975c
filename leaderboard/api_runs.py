"""What programs can ask of the queue of runs: see it, start a run, and stop, resume or delete one.

The same rules as on the page hold (`Lab.check_may_start`): on a public page everybody sees the queue, and only the
owner and those whom it allows change it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from leaderboard import requests
from leaderboard.api import Values, checked
from leaderboard.lab import Lab
from quant_engine.methods import METHODS
from quant_engine.runs import folder
from quant_engine.runs.queue import QueuedRun
from quant_engine.spec import Text, UserError

MOST = 500


def endpoints(lab: Lab) -> list[Callable[..., Values]]:
    """The functions, over a lab. They raise UserError alone."""
    runs = _Runs(lab)
    return [checked(function) for function in (runs.runs, runs.start_run, runs.change_run)]


class _Runs:
    """The functions over a lab. Their names, arguments and docstrings are what callers see."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def runs(self, newest: int = 20) -> Values:
        """The newest runs of the queue, with where they stand.

        Args:
            newest: So many, 1 to 500.

        Returns:
            One object per run: id, model, setting, tasks, state, progress, error, note, and who started it.
        """
        if not 1 <= newest <= MOST:
            raise UserError(f"newest is a number from 1 to {MOST}, not {newest}.")
        return {"runs": [_described(run) for run in self._lab.queue.list(newest)]}

    def start_run(
        self,
        model: Text,
        method: Text,
        bits: float = 4,
        group_size: int = 0,
        activation_bits: int = 16,
        tasks: Text = "perplexity",
        items: int = 8,
        token: Text = "",
    ) -> Values:
        """Queue a run, or find the same one that was queued or made before.

        Args:
            model: A model that runs can be made of, such as demo-llm.
            method: A method's id such as gptq, or fp16.
            bits: Weight bits, 1 to 8; of no meaning for fp16.
            group_size: Weights that share a scale; 0 for a whole row.
            activation_bits: 16, or what the method rounds activations to.
            tasks: Tasks with commas between them, such as "perplexity, arc-easy".
            items: The most items of each task; 0 for all.
            token: The owner's token, which a public page asks for.

        Returns:
            The run as the function runs describes it.
        """
        submitter = self._lab.check_may_start(token)
        setting = requests.setting(
            method.strip().lower(), bits, group_size or None, a_bits=activation_bits, hosted=self._lab.hosted
        )
        calibrated = setting.method in METHODS and METHODS[setting.method].card.calibrated
        spec = requests.run(
            model.strip(),
            setting,
            [task.strip() for task in tasks.split(",") if task.strip()],
            limit=items or None,
            calibration=requests.calibration("", None, None) if calibrated else None,
            hosted=self._lab.hosted,
        )
        folder.check_writable()
        return _described(self._lab.queue.get(self._lab.queue.submit(spec, submitter)))

    def change_run(
        self, run: Text, action: Literal["cancel", "pause", "resume", "delete"] = "cancel", token: Text = ""
    ) -> Values:
        """Stop, hold back, take up again or delete a run.

        Args:
            run: The run's id.
            action: cancel, pause, resume, or delete with its results.
            token: The owner's token, which a public page asks for.

        Returns:
            The run as the function runs describes it; a deleted one as it was.
        """
        self._lab.check_may_start(token)
        queue = self._lab.queue
        found = queue.get(run.strip())
        if action == "delete":
            queue.delete(found.run_id)
            return _described(found)
        change = {"cancel": queue.cancel, "pause": queue.pause, "resume": queue.resume}[action]
        return _described(change(found.run_id))


def _described(run: QueuedRun) -> Values:
    weights = run.spec.weights
    return {
        "run": run.run_id,
        "model": weights.model,
        "setting": weights.setting.code,
        "tasks": list(run.spec.tasks),
        "state": run.state,
        "progress": run.progress.model_dump(mode="json"),
        "error": run.error,
        "note": run.note,
        "by": run.submitter,
    }
