"""Do one run: quantize (or find the quantized weights), measure every task, write the run folder."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from quant_engine import __version__, folders
from quant_engine.checkpoints import Checkpoint, load_quantized
from quant_engine.evaluate import Outcome, Watch, parse_task
from quant_engine.methods import METHODS
from quant_engine.models.catalog import model_card
from quant_engine.models.load import Loaded, load_dense
from quant_engine.progress import Hooks, Progress
from quant_engine.quantize.stream import checkpoint_id, quantize
from quant_engine.results import Result
from quant_engine.runs import finished_items, folder
from quant_engine.runs.command import command
from quant_engine.runs.finished_items import FinishedItemsFile
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec, UserError

QUANTIZING_SHARE = 0.6
"""The part of a run's progress bar that quantizing fills, if it has to be done."""

LIBRARIES = ("torch", "transformers", "peft", "numba", "numpy", "safetensors", "pillow")


def execute(
    spec: RunSpec,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    log: Callable[[str], None],
) -> Path:
    """The run's folder: found, if the same run was made before, else made.

    Quantization goes on behind the last finished block of an earlier try, measuring behind its last finished item.
    Raises UserError where the user can change something, and Stopped when `should_stop` said so.
    """
    spec = resolve(spec)
    if folder.exists(spec.run_id):
        log(f"This run was made before: {folder.place(spec.run_id)}")
        on_progress(Progress(stage="finished", fraction=1, message="found: this run was made before"))
        return folder.place(spec.run_id)
    folder.check_writable()
    check_device(spec.device)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}")
        log(line)

    started = time.monotonic()
    say(command(spec))
    # Time and memory are of this run alone, not of what the process did before.
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for name in spec.tasks:
        parse_task(name).prepare()
    loaded, share, records = _ready(spec, on_progress, should_stop, say)
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, float] = {}
    for place, name in enumerate(spec.tasks):
        task = parse_task(name)
        task_started = time.monotonic()
        finished = FinishedItemsFile(spec.run_id, name)
        report = partial(_report, on_progress, task.title, share, place, len(spec.tasks), task_started, finished)
        report(0, 1)
        outcome = task.measure(loaded, spec, Watch(report, should_stop, finished))
        outcomes[name], seconds[name] = outcome, time.monotonic() - task_started
        shown = "no number" if outcome.value is None else f"{outcome.value:.4g} {task.unit}"
        say(f"{task.title}: {shown}, {outcome.items} items, {outcome.status}, {seconds[name]:.1f} s")
    on_progress(Progress(stage="writing", fraction=1, message="writing the run folder"))
    about = _about(spec, time.monotonic() - started)
    if _fine_tuned(spec):
        about["fine_tuning"] = Checkpoint(folders.checkpoints() / checkpoint_id(spec)).about()["fine_tuning"]
    results = [
        result
        for name, outcome in outcomes.items()
        for result in _results(spec, loaded, name, outcome, seconds[name], about)
    ]
    items = {name: outcome.outputs for name, outcome in outcomes.items()}
    made = folder.write(spec, about, results, records, items, "\n".join(lines) + "\n")
    finished_items.remove(spec.run_id)
    on_progress(Progress(stage="finished", fraction=1))
    return made


def _ready(
    spec: RunSpec,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[Loaded, float, list]:
    """The model in its setting, the part of the progress bar that is behind, and what each linear cost."""
    if spec.setting.method == "fp16":
        on_progress(Progress(stage="loading", message="loading the unquantized model"))
        card = model_card(spec.model)
        return load_dense(card, _hub_revision(spec), spec.dtype, spec.device), 0.0, []
    share = 0.0

    def quantizing(progress: Progress) -> None:
        nonlocal share
        share = QUANTIZING_SHARE
        on_progress(progress.model_copy(update={"fraction": QUANTIZING_SHARE * progress.fraction}))

    path = quantize(spec, Hooks(quantizing, should_stop, say))
    gc.collect()
    on_progress(Progress(stage="loading", fraction=share, message="loading the quantized model"))
    loaded = load_quantized(path, spec.dtype, spec.device)
    say(f"quantized weights: {path.name}, {loaded.stored_bits:.4f} stored bits per weight")
    return loaded, share, Checkpoint(path).records()


def _report(
    on_progress: Callable[[Progress], None],
    title: str,
    share: float,
    place: int,
    tasks: int,
    started: float,
    finished: FinishedItemsFile,
    done: int,
    total: int,
) -> None:
    """Rate and time left are of the items that this process did; those of an earlier try took it no time."""
    rate = max(done - finished.earlier_count, 0) / max(time.monotonic() - started, 1e-9)
    on_progress(
        Progress(
            stage="evaluating",
            fraction=share + (1 - share) * (place + done / total) / tasks,
            task=title,
            item=done,
            items=total if total > 1 or done else None,
            items_per_s=rate or None,
            eta_s=(total - done) / rate if rate else None,
        )
    )


def load_setting(
    model: str,
    setting: QuantSetting,
    on_progress: Callable[[Progress], None],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    dtype: str = "float32",
    device: str = "cpu",
) -> Loaded:
    """A model in any setting, ready to answer: quantized now, with the default calibration, if it never was.

    Quantization computes in float32 whatever `dtype` the model then answers in, so runs and answers share weights.
    """
    spec = resolve(RunSpec(model=model, setting=setting, tasks=("perplexity",), device=device))
    if setting.method == "fp16":
        on_progress(Progress(stage="loading", message=f"loading {model_card(model).title}"))
        return load_dense(model_card(model), _hub_revision(spec), dtype, device)
    path = quantize(spec, Hooks(on_progress, should_stop))
    on_progress(Progress(stage="loading", fraction=1, message="loading the quantized model"))
    return load_quantized(path, dtype, device)


def _fine_tuned(spec: RunSpec) -> bool:
    return spec.setting.method != "fp16" and METHODS[spec.setting.method].fine_tunes


def _hub_revision(spec: RunSpec) -> str | None:
    return spec.revision if model_card(spec.model).origin == "hub" else None


def check_device(device: str) -> None:
    """Raises UserError if the machine has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("This machine has no CUDA device that torch can use; choose device cpu.")


def _results(spec: RunSpec, loaded: Loaded, name: str, outcome: Outcome, seconds: float, about: dict) -> list[Result]:
    """A task's number as a result, then its parts. The task's time is said once, with its number."""
    setting, calibration = spec.setting, spec.calibration
    head = Result(
        run_id=spec.run_id,
        source="measured",
        model=loaded.card.title,
        # The hub's cache names the folder of a snapshot by its commit, also where a branch was asked for.
        model_revision=loaded.folder.name if loaded.card.origin == "hub" else spec.revision,
        track="lora_ft" if _fine_tuned(spec) else loaded.card.track,
        method=setting.method,
        w_bits=setting.w_bits,
        a_bits=setting.a_bits,
        group_size=setting.group_size,
        options=json.dumps(setting.options, sort_keys=True),
        stored_bits=loaded.stored_bits,
        task=name,
        metric=parse_task(name).metric,
        value=outcome.value,
        standard_error=outcome.standard_error,
        items=outcome.items,
        status=outcome.status,
        calibration=calibration
        and f"{calibration.source}, {calibration.samples} x {calibration.length} tokens, seed {calibration.seed}",
        engine_version=about["engine"]["version"],
        engine_commit=about["engine"]["commit"],
        libraries=json.dumps(about["libraries"]),
        hardware=about["hardware"],
        seed=spec.seed,
        data_revision=outcome.data_revision,
        duration_s=seconds,
        peak_memory_bytes=about["peak_memory_bytes"],
        command=about["command"],
        created=about["created"],
    )
    return [head] + [
        head.model_copy(
            update={
                "task": part.name,
                "metric": part.metric,
                "value": part.value,
                "standard_error": part.standard_error,
                "items": part.items,
                "status": part.status,
                "duration_s": None,
            }
        )
        for part in outcome.parts
    ]


def _about(spec: RunSpec, seconds: float) -> dict:
    """What a run has to say of itself beyond its numbers."""
    chosen = os.environ.get("OMP_NUM_THREADS")  # another number of threads adds up in another order
    return {
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": (f"OMP_NUM_THREADS={chosen} " if chosen else "") + command(spec),
        "engine": {"version": __version__, "commit": engine_commit()},
        "libraries": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "hardware": hardware(spec.device),
        "threads": torch.get_num_threads(),
        "duration_s": round(seconds, 2),
        "peak_memory_bytes": peak_memory(spec.device),
    }


def peak_memory(device: str) -> int:
    """The most bytes held at once: on the GPU, or by this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib if platform.system() == "Darwin" else kib * 1024


def hardware(device: str) -> str:
    """The processor or GPU, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = named[0].partition(":")[2].strip() if named else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def engine_commit() -> str | None:
    """The commit of the project's checkout, marked if files differ from it; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match", "no-tags-wanted"],
            cwd=folders.PROJECT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
