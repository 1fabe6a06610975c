"""The model card of exported weights: how they were made, what they score, and the command."""

from __future__ import annotations

import shlex

from quant_engine import notation
from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.results import Result
from quant_engine.runs import folder
from quant_engine.runs.command import setting_words
from quant_engine.spec import UserError, WeightSpec


def model_card(checkpoint: Checkpoint, layout: str) -> str:
    """The text of README.md for a finished checkpoint that is exported to `layout`."""
    spec, base = checkpoint.spec(), checkpoint.base_model()
    records = checkpoint.records()
    weights = sum(record.out_features * record.in_features for record in records)
    stored = sum(record.stored_bits * record.out_features * record.in_features for record in records) / weights
    name = base.location if base.origin == "hub" else base.id
    calibration = spec.calibration
    source = f"{calibration.samples} x {calibration.length} tokens of {calibration.source}" if calibration else "none"
    command = shlex.join([*setting_words(spec), "--seed", str(spec.seed)])
    lines = [
        *("---", f"base_model: {name}", "tags:", f"- {layout}", "---", f"# {base.title}, {spec.setting.label}", ""),
        f"Quantized by Low-Bit Lab from {name}, revision {spec.revision}, and exported to {layout}.",
        *("", "| | |", "| --- | --- |", f"| Setting | {spec.setting.label} |"),
        f"| Stored bits per quantized weight, before the export | {stored:.4f} |",
        f"| Calibration | {source} |",
        *(f"| {result.task} ({result.metric}) | {_score(result)} |" for result in _results(spec)),
        *("", "Made with:", "", f"    python -m quant_engine quantize {command}"),
    ]
    return "\n".join(lines) + "\n"


def _results(spec: WeightSpec) -> list[Result]:
    """The numbers that runs on this machine have of these weights."""
    found = []
    for path in folder.run_folders():
        try:
            run = folder.read(path)
        except UserError:  # a damaged run takes no export down
            continue
        if run.spec.weights == spec:
            found += run.results
    return found


def _score(result: Result) -> str:
    if result.value is None:
        return result.status
    error = "" if result.standard_error is None else f" ± {notation.number(result.standard_error)}"
    return f"{notation.number(result.value)}{error}, {result.items} items"
