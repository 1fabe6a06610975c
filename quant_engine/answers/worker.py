"""The resident answering process: `python -m quant_engine.answers.worker`.

Reads one JSON request per line from standard input and writes one JSON event per line to standard output; everything
else that anything prints goes to standard error. Ends when standard input does, so it never outlives its page.
"""

from __future__ import annotations

import os
import sys
import threading

import torch

from quant_engine import memory
from quant_engine.answers import quantizing
from quant_engine.answers.line import RequestLine
from quant_engine.answers.model_cache import ModelCache, OnProgress
from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.kernels import ahead
from quant_engine.models.catalog import fingerprint, model_card
from quant_engine.models.device import default_device, default_dtype, gpu_memory, prompt_dtype
from quant_engine.models.files import folder_of
from quant_engine.models.load import Loaded, Skeleton, get_ready
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import QuantSetting, WeightSpec

MEMORY_FRACTION = FREE_FRACTION = 0.5
GPU_FRACTION = 0.8
"""Of a GPU's memory, which has no other use: the rest is for keys and values, activations, and a block that is being
quantized."""


def memory_budget() -> int:
    """How many bytes of weights to keep loaded: a fraction of what the GPU had free, or else of what this machine, or
    the container, has."""
    on_gpu = gpu_memory() if default_device() == "cuda" else None
    return int(MEMORY_FRACTION * memory.installed() if on_gpu is None else GPU_FRACTION * on_gpu)


def main() -> None:
    """Answer until standard input ends, on the GPU where there is one."""
    # Libraries print to standard output as they like, down to C code: give them standard error instead.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    models = ModelCache(load_weights, memory_budget())
    line = RequestLine(models, resolve, has_room, output, quantizing.COMMAND)
    threading.Thread(target=_listen, args=(line,), name="listener", daemon=True).start()
    line.serve()


def resolve(model: str, setting: QuantSetting) -> tuple[WeightSpec, bool]:
    """The weights of the model in a setting, and whether they have to be quantized before they can be loaded."""
    plan = resolve_weights(WeightSpec(model=model, setting=setting))
    return plan.spec, plan.method is not None and not Checkpoint(weights.checkpoint_folder(plan.spec)).is_complete()


def has_room(model: str) -> bool:
    """Whether a model that nobody has asked yet takes no more than half of the memory that is free now, or fits the
    GPU."""
    card, device = model_card(model), default_device()
    folder = folder_of(card, fingerprint(card))
    room = memory_budget() if device == "cuda" else min(memory_budget(), FREE_FRACTION * memory.free())
    if 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) < room:
        return True  # as it would be if no weight were held in 16 bits; the sum below takes a moment
    skeleton = Skeleton(card, folder, getattr(torch, default_dtype(device)), device, in_halves=True)
    return skeleton.weight_bytes < room


def load_weights(spec: WeightSpec, sibling: Loaded | None, on_progress: OnProgress) -> Loaded:
    """The model of a resolved spec, on the GPU where there is one; quantized now if its weights vanished meanwhile."""
    device = default_device()
    plan = resolve_weights(spec)
    loaded = weights.load(plan, default_dtype(device), device, Hooks(on_progress), sibling)
    loaded.prompt_dtype = prompt_dtype(device)
    with ahead.at_work():
        pass  # what is compiled there need not be compiled here
    get_ready(loaded)
    return loaded


def _listen(line: RequestLine) -> None:
    line.read(iter(sys.stdin.buffer.readline, b""))
    os._exit(0)  # the page is gone: whatever is being computed, nobody waits for it


if __name__ == "__main__":
    main()
