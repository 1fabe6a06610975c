"""What a run takes of memory and disk, before it is started: counted from the model's shape.

The parts of memory that have no exact count (libraries, what a product allocates on its way) have factors that were
fitted to runs of four models of 74 million to a billion weights on a CPU: `benchmarks/memory.py` holds the estimate
against such runs. Runs of earlier versions took up to half as much more, since the C library held what was freed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_engine import folders, memory, notation
from quant_engine.checkpoint_files import checkpoint_id
from quant_engine.evaluate import reads_windows
from quant_engine.evaluate.perplexity import TOKENS_AT_ONCE
from quant_engine.methods import METHODS
from quant_engine.models.catalog import model_card
from quant_engine.models.shapes import Shape, shape_of
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError

PROCESS = 690e6
"""Bytes of a process that has computed something: libraries, threads, compiled code."""
STATES, QUESTION_STATES = 2.2, 3.0
"""How often the hidden states of all blocks for a batch are held while it is measured, of texts and of questions."""
HEAD_WIDTH = 64
"""Taken for all models: scores of attention are held for each head."""
BLOCKS, HESSIANS, WINDOWS = 3.0, 3.0, 1.2
"""How often a float32 block, the Hessian of its widest linear and the calibration are held while it is quantized; the
calibration once more where a method also wants what the original blocks make of it."""
HEAD_ROWS = 512
"""Tokens whose logits are computed at once where not all are asked for."""
UNSURE = 0.85
"""A run is refused where this part of its estimate is more than there is."""


@dataclass(frozen=True)
class Needs:
    """Bytes; None for what is not known. `memory` is the peak of the process that does a run, `disk` what it stores."""

    memory: float | None
    disk: float | None


def needs(spec: RunSpec) -> Needs:
    """What a run takes. Its memory is known on a CPU alone, its disk is nothing where its weights are there."""
    shape = shape_of(model_card(spec.weights.model))
    if shape is None or spec.weights.checkpoint is not None:
        return Needs(None, None)
    setting = spec.weights.setting
    there = setting.method == "fp16" or (folders.checkpoints() / checkpoint_id(spec.weights)).is_dir()
    peak = peak_memory(shape, setting, spec.tasks, spec.text_windows, spec.window, spec.weights.calibration)
    return Needs(peak if spec.device == "cpu" else None, 0.0 if there else weight_bytes(shape, setting))


def peak_memory(
    shape: Shape,
    setting: QuantSetting,
    tasks: Sequence[str],
    limit: int | None,
    window: int,
    calibration: Calibration | None,
) -> float | None:
    """Bytes that quantizing on a CPU and then measuring take at most; None for what trains a model."""
    method = METHODS.get(setting.method)
    if method and (method.train or method.fine_tunes):
        return None
    measuring = weight_bytes(shape, setting) + max(
        (_measuring(shape, task, limit, window) for task in tasks), default=0.0
    )
    quantizing = 0.0
    if method:
        calibrated = calibration.samples * calibration.length * shape.hidden if calibration else 0
        hessian = max(columns for _, columns in shape.linears) ** 2 if calibration else 0
        block, windows = shape.quantized / shape.layers, WINDOWS + method.original_inputs
        quantizing = 4 * (BLOCKS * block + HESSIANS * hessian + windows * calibrated) + 2 * shape.unquantized
    return PROCESS + max(measuring, quantizing)


def _measuring(shape: Shape, task: str, limit: int | None, window: int) -> float:
    """Bytes that measuring a task takes at most beside the weights."""
    if not reads_windows((task,)):
        states = 4 * shape.layers * TOKENS_AT_ONCE * shape.hidden
        return 4 * HEAD_ROWS * shape.vocabulary + QUESTION_STATES * states
    windows = max(1, min(TOKENS_AT_ONCE // window, limit or TOKENS_AT_ONCE))
    tokens, heads = windows * window, shape.hidden // HEAD_WIDTH
    states = STATES * 4 * shape.layers * tokens * shape.hidden
    return 4 * tokens * shape.vocabulary + states + 4 * windows * heads * window**2


def stored_bits(shape: Shape, setting: QuantSetting) -> float:
    """Bits that a setting stores for each quantized weight of a model, with all side data, as its method says."""
    if setting.method not in METHODS:
        return 16.0
    method = METHODS[setting.method]
    options = method.options(setting)
    total = sum(rows * columns * method.stored_bits(rows, columns, setting, options) for rows, columns in shape.linears)
    return total * shape.layers / shape.quantized


def weight_bytes(shape: Shape, setting: QuantSetting) -> float:
    """Bytes of all weights, those that no method quantizes in 16 bits."""
    return shape.quantized * stored_bits(shape, setting) / 8 + shape.unquantized * 2


def check_room(spec: RunSpec) -> None:
    """Raises UserError, with the figures, for a run that memory or disk of this machine can't hold."""
    needed = needs(spec)
    if needed.memory is not None and UNSURE * needed.memory > memory.free():
        raise UserError(
            f"This run takes about {notation.size(needed.memory)} of memory, and {notation.size(memory.free())} are "
            "free: choose a smaller model or a shorter window, or close other programs."
        )
    free = _free_disk(folders.checkpoints())
    if needed.disk is not None and needed.disk > free:
        raise UserError(
            f"This run stores about {notation.size(needed.disk)} of weights, and {notation.size(free)} are free in "
            f"{folders.home()}: make room there, or set LOWBIT_HOME to a folder with room."
        )


def _free_disk(path: Path) -> float:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free if os.access(path, os.R_OK) else float("inf")
    except OSError:
        return float("inf")
