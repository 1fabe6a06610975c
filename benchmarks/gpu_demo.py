"""Stage "demo" of benchmarks/gpu.py: the demo model's own parts, trained for the time that is left.

What is trained stays in the report's folder, and goes on from there when the stage is run again. It needs the demo's
language model, but for its first part, the vision tower. Its goals are those of the model card.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_report import Report

from quant_engine import folders
from quant_engine.demo_training import tower
from quant_engine.models.catalog import MODELS, available

PARTS = {"tower": 0.4, "language": 0.3, "projector": 0.1, "joint": 0.2}
"""The share of the time that each part of training takes."""
GOALS = "95 / 90 / 90 / 85 / 95"
PREDICTED_GB = 8.0
"""A language model of 135 million weights, its adapter and optimizer, and the activations of a batch of pictures."""
SPARE_S = 20.0
"""Of each part, for loading and saving."""


def run(report: Report, dry: bool) -> None:
    report.add(predicted="peak memory", GB=PREDICTED_GB)
    report.add(goals=GOALS, of="the demo's five tasks, by its model card")
    if dry:
        report.case("tower", partial(train_dry, report))
        return
    seconds, has_language_model = report.seconds_left, available(MODELS["demo-llm"])
    for part, share in PARTS.items():
        if part == "tower" or has_language_model:
            report.case(part, partial(train, report, part, seconds * share - SPARE_S))
        else:
            report.leave_out(part, f"{MODELS['demo-llm'].title} is not on this machine")


def train_dry(report: Report) -> None:
    """A step of the tower, which is not validated."""
    with tempfile.TemporaryDirectory() as name, patch.object(tower, "validate", lambda *_: {}):
        tower.train(Path(name), 1e-4, torch.device("cpu"), 1, batch=2)
        report.add(part="tower", seconds=6e-3, steps=last_step(Path(name) / "tower.log.jsonl"))


def train(report: Report, part: str, seconds: float) -> None:
    """Trains a part in a process of its own, which ends and saves by itself."""
    folder = report.folder / "demo-training"
    command = [sys.executable, "-m", "quant_engine.demo_training", "--stages", part, "--folder", str(folder)]
    command += [f"--{part}-minutes", str(seconds / 60), "--device", report.device]
    done = subprocess.run(command, cwd=folders.PROJECT, capture_output=True, text=True, timeout=report.seconds_left)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    report.add(part=part, seconds=seconds, steps=last_step(folder / f"{part}.log.jsonl"))


def last_step(log: Path) -> str:
    """The last line of a part's log."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    if not lines:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in json.loads(lines[-1]).items())
