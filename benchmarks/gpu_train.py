"""Stage "train" of benchmarks/gpu.py: QLoRA and IR-QLoRA with 4 bits and DB-LLM with 2, of a random model in the shape
of LLaMA3-8B, at the study's sizes: steps per second and peak memory.

Each takes its share of the time; what it had no time for is said. Steps are those that were finished, without what
comes before the first.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpu_versions  # noqa: F401
from gpu_models import shape, write_folder
from gpu_report import Report, peak_bytes, reset_peak

from quant_engine.models.shapes import Shape
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.runs import needs, weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, WeightSpec

STEPS, DRY_STEPS = 300, 2
SHARES = {"qlora": 0.33, "ir_qlora": 0.5, "db_llm": 1.0}
"""The part of the time left that a method may take, in this order."""
BYTES_OF_ADAPTER = 16
"""Of each adapter's value in float32: itself, its gradient and AdamW's two moments."""


def run(report: Report, dry: bool) -> None:
    of = shape(dry)
    with tempfile.TemporaryDirectory(prefix="low-bit-lab-model-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "model"
        if not report.case("writing the model", lambda: write_folder(folder, of, report.device) and None):
            return
        for method, share in SHARES.items():
            report.case(method, partial(measure, report, method, folder, of, share, dry))
            gc.collect()


def setting(method: str, dry: bool) -> QuantSetting:
    """At the study's sizes: batches of 16 with prompts of 384 and answers of 128 tokens, rank 64; in groups of 64."""
    steps: dict[str, Any] = {"steps": DRY_STEPS if dry else STEPS}
    if method == "db_llm":
        options = steps | ({"batch": 2, "generated": 2} if dry else {})
        return QuantSetting(method=method, w_bits=2, group_size=16 if dry else 64, options=options)
    options = steps | {"held_out": 0}
    options |= {"rank": 4, "batch": 2, "source_length": 24, "target_length": 24} if dry else {}
    return QuantSetting(method=method, w_bits=4, options=options)


def predicted_bytes(of: Shape, asked: QuantSetting) -> float | None:
    """Weights and what training holds for adapters; activations are left out. None for what trains a dense model."""
    rank = asked.options.get("rank", 64)
    if asked.method == "db_llm":
        return None
    adapters = of.layers * sum(rank * (rows + columns) for rows, columns in of.linears)
    frozen = asked.model_copy(update={"method": "normal_float", "options": {}})
    return needs.weight_bytes(of, frozen) + BYTES_OF_ADAPTER * adapters


@dataclass
class Watched:
    """When training was seen to come further."""

    ends: list[float] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def note(self, progress: Progress) -> None:
        if progress.stage == "training" and progress.message.startswith("step "):
            self.ends.append(time.monotonic())
            self.losses.append(progress.message)


def measure(report: Report, method: str, folder: Path, of: Shape, share: float, dry: bool) -> None:
    asked, watched = setting(method, dry), Watched()
    calibration = Calibration(samples=2, length=24) if dry else Calibration(samples=128, length=2048)
    plan = resolve_weights(WeightSpec(model=str(folder), setting=asked, calibration=calibration, dtype="bfloat16"))
    reset_peak(report.device)
    started, limit = time.monotonic(), share * report.seconds_left
    try:
        weights.quantize(plan, report.device, Hooks(watched.note, lambda: time.monotonic() - started > limit))
    except Stopped:
        report.leave_out(f"{asked.label}, the rest", f"stopped after {limit:.0f} s")
    ends, predicted = watched.ends, predicted_bytes(of, asked)
    rate = (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else None
    report.add(
        method=asked.label, steps=len(ends), steps_per_s=rate, seconds_before_steps=ends and ends[0] - started,
        peak_GB=peak_bytes(report.device) / 1e9, predicted_GB_without_activations=predicted and predicted / 1e9,
        last=watched.losses[-1] if watched.losses else "no step was finished",
    )  # fmt: skip
