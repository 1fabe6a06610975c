"""What a run has to say of itself: its numbers as results, and what they were made with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quant_engine import __version__, folders
from quant_engine.evaluate import Outcome, Task
from quant_engine.results import Result
from quant_engine.runs.command import command
from quant_engine.runs.resolve import RunPlan
from quant_engine.spec import RunSpec

NUMBER = ("value", "standard_error", "items", "status")
"""What a task's outcome and each of its parts have in common."""
LIBRARIES = ("torch", "transformers", "peft", "numba", "numpy", "safetensors", "pillow")


def provenance(spec: RunSpec, seconds: float) -> dict[str, Any]:
    """What run.json says beyond the spec: versions, hardware, time, memory, and the command that makes the run."""
    threads = os.environ.get("OMP_NUM_THREADS")  # another number of threads adds up in another order
    return {
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": (f"OMP_NUM_THREADS={threads} " if threads else "") + command(spec),
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


def result_rows(
    plan: RunPlan, task: Task, outcome: Outcome, seconds: float, stored_bits: float, about: dict[str, Any]
) -> list[Result]:
    """A task's number as a result, then its parts. The task's time is said once, with its number."""
    weights, setting, calibration = plan.spec.weights, plan.spec.weights.setting, plan.spec.weights.calibration
    headline = Result(
        run_id=plan.spec.run_id,
        source="measured",
        model=plan.weights.card.title,
        model_revision=weights.revision,
        track="lora_ft" if plan.weights.fine_tunes else plan.weights.card.track,
        **setting.model_dump(exclude={"options"}),
        options=json.dumps(
            setting.options | ({"only": ", ".join(weights.only)} if weights.only else {}), sort_keys=True
        ),
        stored_bits=stored_bits,
        task=task.name,
        metric=task.metric,
        **{name: getattr(outcome, name) for name in NUMBER},
        calibration=calibration
        and f"{calibration.source}, {calibration.samples} x {calibration.length} tokens, seed {calibration.seed}",
        engine_version=about["engine"]["version"],
        engine_commit=about["engine"]["commit"],
        libraries=json.dumps(about["libraries"]),
        hardware=about["hardware"],
        seed=weights.seed,
        data_revision=outcome.data_revision,
        duration_s=seconds,
        peak_memory_bytes=about["peak_memory_bytes"],
        command=about["command"],
        created=about["created"],
    )
    parts = [
        {"task": part.name, "metric": part.metric, **{name: getattr(part, name) for name in NUMBER}}
        for part in outcome.parts
    ]
    return [headline, *(headline.model_copy(update={**part, "duration_s": None}) for part in parts)]


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
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
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
