"""Do one run: quantize (or find the quantized weights), measure every task, write the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quant_engine import memory, notation
from quant_engine.checkpoints import Checkpoint
from quant_engine.evaluate import Outcome, Task, Watch, measure_together, measured_together, reads_windows
from quant_engine.evaluate.interim import InterimNumbers
from quant_engine.formats.load import model_ledger
from quant_engine.models.device import check_device
from quant_engine.models.load import Loaded
from quant_engine.progress import Hooks, Progress
from quant_engine.results import LayerRecord, Result
from quant_engine.runs import finished_items, folder, weights
from quant_engine.runs.about import provenance, result_rows
from quant_engine.runs.command import command
from quant_engine.runs.finished_items import FinishedItemsFile
from quant_engine.runs.needs import check_room
from quant_engine.runs.resolve import RunPlan, checked_revision, resolve
from quant_engine.spec import RunSpec, UserError

QUANTIZING_SHARE = 0.6
"""The part of a run's progress bar that quantizing fills, if it has to be done."""


def execute(spec: RunSpec, hooks: Hooks) -> Path:
    """The run's folder: found, if the same run was made before, else made.

    Quantization goes on behind the last finished block of an earlier try, measuring behind its last finished item.
    Raises UserError where the user can change something, and Stopped when asked to stop.
    """
    plan = resolve(spec)
    run_id = plan.spec.run_id
    if folder.exists(run_id):
        hooks.log(f"This run was made before: {folder.run_path(run_id)}")
        hooks.progress(Progress(stage="finished", fraction=1, message="found: this run was made before"))
        return folder.run_path(run_id)
    folder.check_writable()
    check_device(spec.device)
    check_room(plan.spec)
    memory.give_back_at_once()
    path = _Run(plan, hooks).do()
    finished_items.remove(run_id)
    hooks.progress(Progress(stage="finished", fraction=1))
    return path


@dataclass
class _Run:
    """A run that is being made. `share` is the part of its progress bar that was filled before measuring began;
    `layers` and `fine_tuning` are what its checkpoint says, `interims` its tasks' numbers so far."""

    plan: RunPlan
    hooks: Hooks
    lines: list[str] = field(default_factory=list)
    share: float = 0.0
    layers: list[LayerRecord] = field(default_factory=list)
    fine_tuning: dict[str, Any] = field(default_factory=dict)
    interims: InterimNumbers = field(default_factory=InterimNumbers)

    def do(self) -> Path:
        started = time.monotonic()
        spec = self.plan.spec
        self._log(command(spec))
        if spec.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the peak is of this run, not of what the process did before
        if reads_windows(spec.tasks):
            context = self.plan.weights.context_length()
            most = ", which is all that the model reads" if spec.window == context else ""
            self._log(f"texts are read in windows of {spec.window:,} tokens{most}")
        for task in self.plan.tasks:
            task.prepare()
        if any(task.pictures for task in self.plan.tasks):
            weights.check_takes_pictures(self.plan.weights, spec.dtype, spec.device)
        loaded = self._load()
        outcomes, seconds = {}, {}
        for tasks in measured_together(self.plan.tasks):
            if len(tasks) > 1:
                titles = ", ".join(task.title for task in tasks)
                self._log(f"{titles} are asked together, their time is divided by their questions")
            measured, seconds_of_task = self._measure(len(outcomes), tasks, loaded)
            for task, outcome, task_seconds in zip(tasks, measured, seconds_of_task, strict=True):
                outcomes[task.name], seconds[task.name] = outcome, task_seconds
                number = "no number" if outcome.value is None else f"{notation.number(outcome.value)} {task.unit}"
                shown = f"{number}, {outcome.items} items, {outcome.status}, {task_seconds:.1f} s"
                self._log(f"{task.title}: {shown}")
        self.hooks.progress(Progress(stage="writing", fraction=1, message="writing the run folder"))
        about = provenance(spec, time.monotonic() - started)
        results: list[Result] = []
        for task in self.plan.tasks:
            results += result_rows(self.plan, task, outcomes[task.name], seconds[task.name], loaded.stored_bits, about)
        items = {name: outcome.outputs for name, outcome in outcomes.items()}
        return folder.write(spec, about | self.fine_tuning, results, self.layers, items, "\n".join(self.lines) + "\n")

    def _log(self, line: str) -> None:
        self.lines.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}")
        self.hooks.log(line)

    def _load(self) -> Loaded:
        spec, plan = self.plan.spec, self.plan.weights
        hooks = Hooks(self._quantizing, self.hooks.should_stop, self._log)
        if plan.method:
            weights.quantize(plan, spec.device, hooks)
            self.layers = weights.layer_records(plan, spec.device, replace(hooks, progress=self._measuring))
        loaded = weights.load(plan, spec.dtype, spec.device, hooks)
        if plan.published:
            whole = model_ledger(loaded.model)
            bits = (
                f"{loaded.stored_bits:.4f} stored bits per weight, {whole.bits_per_weight:.4f} with embedding and head"
            )
            self._log(f"published weights: {spec.weights.checkpoint.revision}, {bits}")
        if plan.method:
            checkpoint = Checkpoint(weights.checkpoint_folder(spec.weights))
            if plan.fine_tunes:
                self.fine_tuning = {"fine_tuning": checkpoint.about()["fine_tuning"]}
            bits = f"{loaded.stored_bits:.4f} stored bits per weight"
            self._log(f"quantized weights: {checkpoint.path.name}, {bits}")
        return loaded

    def _quantizing(self, progress: Progress) -> None:
        if progress.stage not in ("loading", "waiting"):
            self.share = QUANTIZING_SHARE
        self.hooks.progress(progress.model_copy(update={"fraction": self.share * progress.fraction}))

    def _measuring(self, progress: Progress) -> None:
        """Of the linears' output errors: a moment between quantizing and the first task."""
        self.hooks.progress(progress.model_copy(update={"fraction": self.share}))

    def _measure(self, before: int, tasks: list[Task], loaded: Loaded) -> tuple[list[Outcome], list[float]]:
        """The outcomes and seconds of tasks that are measured at once, when so many tasks have been measured before."""
        begun, spec = time.monotonic(), self.plan.spec
        finished = [FinishedItemsFile(spec.run_id, task.name) for task in tasks]
        reports = self._reports(before, tasks, finished)
        reports[0](0, 1)
        for task in tasks:
            checked_revision(task, spec)  # before the work: quantizing may have taken hours
        watches = [Watch(report, self.hooks.should_stop, file) for report, file in zip(reports, finished, strict=True)]
        if len(tasks) > 1:
            outcomes = measure_together(tasks, loaded, spec, watches)
        else:
            outcomes = [tasks[0].measure(loaded, spec, watches[0])]
        for task, outcome in zip(tasks, outcomes, strict=True):
            if outcome.data_revision != spec.data[task.name]:
                raise UserError(f"The data of {task.title} changed while they were measured: start a new run.")
        new = [len(outcome.outputs) - file.earlier_count for outcome, file in zip(outcomes, finished, strict=True)]
        seconds = time.monotonic() - begun
        return outcomes, [seconds * count / max(sum(new), 1) for count in new]

    def _reports(
        self, before: int, measured: list[Task], finished: list[FinishedItemsFile]
    ) -> list[Callable[[int, int], None]]:
        """For each of the tasks that are measured at once, what reports its progress. The rate is of what this process
        did for all of them: items of an earlier try took it no time."""
        started, tasks = time.monotonic(), len(self.plan.tasks)
        counts: dict[int, tuple[int, int]] = {}  # of the tasks that have reported: done, total

        def report(index: int, done: int, total: int) -> None:
            counts[index] = done, total
            new = sum(max(done - finished[index].earlier_count, 0) for index, (done, _) in counts.items())
            rate = new / max(time.monotonic() - started, 1e-9)
            share = (1 - self.share) / tasks
            fraction = before + sum(done / total for done, total in counts.values())
            # A task that has not reported yet is taken for one like this.
            left = sum(total - done for done, total in counts.values()) + (len(measured) - len(counts)) * total
            self.interims.update(measured[index], finished[index].items, total)
            self.hooks.progress(
                Progress(
                    stage="evaluating",
                    fraction=self.share + share * fraction,
                    task=measured[index].title,
                    item=done,
                    items=total if total > 1 or done else None,
                    items_per_s=rate or None,
                    eta_s=left / rate if rate else None,
                    interims=self.interims.numbers(),
                )
            )

        return [partial(report, index) for index in range(len(measured))]
