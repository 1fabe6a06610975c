"""What a method trains on the whole dense model, before any block is quantized."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from quant_engine import disk
from quant_engine.data.texts import calibration_windows
from quant_engine.methods.contract import Training
from quant_engine.models.architecture import SEQUENTIAL_SETS
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks, Progress
from quant_engine.quantize.plan import WeightPlan
from quant_engine.spec import UserError

TRAINING_SHARE = 0.9
"""The part of quantization's progress that training fills, where a method trains."""


def trained_tensors(plan: WeightPlan, folder: Path, device: str, hooks: Hooks) -> tuple[dict[str, torch.Tensor], float]:
    """What `plan.method.train` returned, by name, and the seconds that it took.

    It is found in `folder` if it was made before an interruption, else made, and kept there. Raises UserError if the
    folder can't be written or read back.
    """
    path = folder / "trained.safetensors"
    try:
        if not path.exists():
            _train(plan, path, device, hooks)
        tensors = load_file(path, device=device)
    except (OSError, SafetensorError):
        raise UserError(f"{path} can't be written or read back: delete {folder}.") from None
    return tensors, tensors.pop("seconds").item()


def _train(plan: WeightPlan, path: Path, device: str, hooks: Hooks) -> None:
    started, spec = time.monotonic(), plan.spec
    path.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_dense(plan.card, spec.revision, spec.dtype, device)
    training = Training(
        model=loaded.model,
        decoder=loaded.model.get_decoder(),
        sets=SEQUENTIAL_SETS,
        windows=calibration_windows(spec.calibration, loaded.tokenizer).to(device),
        at_once=spec.calibration.at_once,
        setting=spec.setting,
        options=plan.options,
        seed=spec.seed,
        folder=path.parent,
        progress=lambda share, message: hooks.progress(
            Progress(stage="training", fraction=TRAINING_SHARE * share, message=message)
        ),
        check_stop=hooks.check_stop,
        log=hooks.log,
    )
    tensors = {name: tensor.cpu() for name, tensor in plan.method.train(training).items()}
    seconds = torch.tensor(time.monotonic() - started, dtype=torch.float64)
    with disk.replacing(path) as aside:
        save_file({**tensors, "seconds": seconds}, aside)
    del loaded, training, tensors
    gc.collect()
