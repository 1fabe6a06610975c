"""The command that reproduces a run: what stands beside every measured number."""

from __future__ import annotations

import shlex

from quant_engine.hub import COMMIT
from quant_engine.models.catalog import model_card
from quant_engine.spec import RunSpec, WeightSpec


def command(spec: RunSpec) -> str:
    """The `run` command of a resolved spec, to be typed in the project's folder."""
    weights = spec.weights
    words = checkpoint_words(weights) if weights.checkpoint else setting_words(weights)
    return shlex.join(["python", "-m", "quant_engine", "run", *words, *_measuring(spec)])


def checkpoint_words(weights: WeightSpec) -> list[str]:
    """The options that name a published checkpoint and its base model."""
    words = ["--model", weights.model, "--checkpoint", weights.checkpoint.location]
    # The revision of a folder is a hash of its files: it can be checked, but not asked for.
    commit = COMMIT.fullmatch(weights.checkpoint.revision or "")
    return [*words, "--revision", weights.checkpoint.revision] if commit else words


def setting_words(weights: WeightSpec) -> list[str]:
    """The options that name a model and how it is quantized."""
    setting, calibration = weights.setting, weights.calibration
    words = ["--model", weights.model, "--method", setting.method]
    # The revision of a demo model or a folder is a hash of its files: it can be checked, but not asked for.
    if weights.revision and model_card(weights.model).origin == "hub":
        words += ["--revision", weights.revision]
    if setting.method != "fp16":
        words += ["--bits", f"{setting.w_bits:g}"]
    if setting.group_size is not None:
        words += ["--group-size", str(setting.group_size)]
    if setting.a_bits != 16:
        words += ["--a-bits", str(setting.a_bits)]
    for name, value in setting.options.items():
        words += ["--option", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    words += ["--only", ",".join(weights.only)] if weights.only else []
    if calibration:
        words += ["--calibration", calibration.source, "--samples", str(calibration.samples)]
        words += ["--length", str(calibration.length), "--calibration-seed", str(calibration.seed)]
        words += ["--at-once", str(calibration.at_once)] if calibration.at_once else []
    if weights.dtype != "float32":
        words += ["--quantize-dtype", weights.dtype]
    return words


def _measuring(spec: RunSpec) -> list[str]:
    limit = [] if spec.limit is None else ["--limit", str(spec.limit)]
    windows = [] if spec.windows is None else ["--windows", str(spec.windows)]
    return [
        *("--tasks", ",".join(spec.tasks), *limit, *windows, "--window", str(spec.window)),
        *("--seed", str(spec.weights.seed), "--dtype", spec.dtype, "--device", spec.device),
    ]
