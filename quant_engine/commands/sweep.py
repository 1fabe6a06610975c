"""`sweep`: many settings as one job."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from quant_engine import folders, notation, terminal
from quant_engine.commands.options import (
    AsJson,
    Device,
    Dtype,
    ExecutorName,
    Length,
    Limit,
    Samples,
    Seed,
    Window,
    Windows,
    console,
    errors,
)
from quant_engine.evaluate import split_tasks
from quant_engine.progress import Progress
from quant_engine.runs import executors, folder
from quant_engine.runs.executors import Executor
from quant_engine.runs.queue import Queue, QueuedRun
from quant_engine.runs.sweep import Sweep, plan, read_sweep
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import Calibration, RunSpec, UserError, sentence

Begin = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
"""Begins a progress bar with a label."""


def sweep(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file with the fields models, methods, bits, group_sizes, tasks, …")
    ] = None,
    models: Annotated[str, typer.Option("--models", "-m", help="Models, with commas between them.")] = "",
    methods: Annotated[str, typer.Option(help="Methods, with commas between them; fp16 is one.")] = "",
    bits: Annotated[str, typer.Option("--bits", "-b", help="Weight bits, with commas between them.")] = "",
    group_sizes: Annotated[str, typer.Option("--group-sizes", "-g", help="Groups; 0 for a whole row.")] = "0",
    settings: Annotated[str, typer.Option(help="Settings such as gptq-4-g64, besides those of methods.")] = "",
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Tasks, with commas between them.")] = "",
    limit: Limit = None,
    windows: Windows = None,
    window: Window = None,
    calibration: Annotated[str, typer.Option(help="What calibrated methods look at; see run.")] = "builtin",
    samples: Samples = 32,
    length: Length = 512,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    executor: ExecutorName = None,
    new: Annotated[bool, typer.Option("--new", help="Leave out runs that came with the project, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure all settings that methods, bits and groups make, one run after another, and show their numbers together.

    Settings that a method is not defined for are left out, with why. Runs that are there are not repeated; one that
    fails does not keep the others from being made. Ctrl-C stops, and the same sweep goes on from there.

    A YAML file can also name options, by method, and several calibrations; see assets/sweeps.

    Example: sweep -m demo-llm --methods fp16,rtn,gptq --bits 4,3 -g 64 --tasks perplexity --limit 8
    """
    asked = (
        read_sweep(file)
        if file
        else _asked(
            models=models,
            methods=methods,
            bits=bits,
            group_sizes=[None if part.strip() == "0" else part for part in group_sizes.split(",")],
            settings=settings,
            tasks=split_tasks(tasks),
            limit=limit,
            windows=windows,
            window=window,
            calibration=Calibration(source=calibration, samples=samples, length=length),
            seed=seed,
            dtype=dtype,
            device=device,
        )
    )
    ended = make(_planned(asked, new), executors.executor(executor))
    if as_json:
        sys.stdout.write(json.dumps([_row(spec, run) for spec, run in ended], indent=1) + "\n")
    else:
        console.print(table(ended))
    if any(run is not None and run.state != "done" for _, run in ended):
        raise typer.Exit(1)


def _asked(**fields: object) -> Sweep:
    try:
        return Sweep.model_validate(fields)
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def _planned(asked: Sweep, new: bool) -> Sequence[RunSpec]:
    """The runs of a sweep; of settings that are left out it is said why."""
    planned = plan(asked)
    for reason in planned.left_out:
        errors.print(f"Left out: {escape(reason)}", highlight=False, soft_wrap=True)
    return _new(planned.specs) if new else planned.specs


def _new(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Those that neither came with the project nor were made here."""
    missing = [spec for spec in specs if not folder.run_path(spec.run_id).is_dir()]
    if len(missing) < len(specs):
        errors.print(f"{len(specs) - len(missing)} of {len(specs)} runs are there.", highlight=False)
    return missing


def make(specs: Sequence[RunSpec], executor: Executor) -> list[tuple[RunSpec, QueuedRun | None]]:
    """Does all runs that are not there under the queue's claims, as many at once as the executor does; each with how it
    ended, or None where it was there. Ctrl-C also takes those that still wait out of the queue."""
    queue = Queue(folders.queue())
    missing = [spec for spec in specs if not folder.exists(spec.run_id)]
    if missing:
        queue.submit_sweep(missing)
    ended: dict[str, QueuedRun] = {}
    try:
        with terminal.progress_bars(errors) as begin:
            for run in _done(queue, missing, executor, begin):
                ended[run.run_id] = run
                if run.error:
                    errors.print(run.error, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        for spec in missing:
            if spec.run_id not in ended:
                queue.cancel(spec.run_id)
        raise
    return [(spec, ended.get(spec.run_id)) for spec in specs]


def _done(queue: Queue, specs: Sequence[RunSpec], executor: Executor, begin: Begin) -> Iterator[QueuedRun]:
    """The runs as they end."""
    shutdown = threading.Event()

    def work(number: int, spec: RunSpec) -> QueuedRun:
        label = f"Run {number} of {len(specs)}: {spec.weights.model}, {spec.weights.setting.label}"
        errors.print(label, highlight=False, markup=False, soft_wrap=True)
        with begin(spec.weights.setting.label if executor.at_once > 1 else "") as show:
            return run_claimed(queue, spec.run_id, show, executor, shutdown)

    if executor.at_once == 1:  # in this thread, which Ctrl-C interrupts
        yield from (work(number, spec) for number, spec in enumerate(specs, 1))
        return
    pool = ThreadPoolExecutor(executor.at_once)
    try:
        futures = [pool.submit(work, number, spec) for number, spec in enumerate(specs, 1)]
        yield from (future.result() for future in as_completed(futures))
    finally:
        shutdown.set()
        pool.shutdown(cancel_futures=True)


def _row(spec: RunSpec, run: QueuedRun | None) -> dict[str, object]:
    """A run as JSON."""
    found = folder.exists(spec.run_id)
    results = folder.read(folder.run_path(spec.run_id)).results if found else []
    return {
        "run_id": spec.run_id,
        "model": spec.weights.model,
        "setting": spec.weights.setting.code,
        "state": run.state if run else "done",
        "error": run.error if run else None,
        "results": [result.model_dump(mode="json") for result in results],
    }


def table(ended: Sequence[tuple[RunSpec, QueuedRun | None]]) -> Table:
    """A row for each run, and a column for each task's first number."""
    tasks = list(dict.fromkeys(task for spec, _ in ended for task in spec.tasks))
    shown = Table("model", "setting", "stored bits", *tasks, "state")
    for spec, run in ended:
        weights, numbers, bits = spec.weights, dict.fromkeys(tasks, ""), ""
        if folder.exists(spec.run_id):
            results = folder.read(folder.run_path(spec.run_id)).results
            bits = f"{results[0].stored_bits:.2f}"
            for result in reversed(results):  # a task's first number last
                task = result.task.partition("/")[0]
                if task in numbers:
                    number, error = notation.number(result.value), result.standard_error
                    numbers[task] = number if error is None else f"{number} ± {notation.standard_error(error)}"
        state = run.state if run else "done"
        shown.add_row(weights.model, weights.setting.label, bits, *numbers.values(), state)
    return shown
