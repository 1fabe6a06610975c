"""What linears lose whose method looks at no data: measured when a run wants to know, not when it quantizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.methods.block import CalibratedBlock
from quant_engine.models.architecture import LINEARS
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton
from quant_engine.quantize.inputs import calibration_inputs
from quant_engine.quantize.plan import WeightPlan
from quant_engine.quantize.record import losses_of
from quant_engine.quantize.statistics import collect
from quant_engine.spec import Calibration
from quant_engine.weights.low_rank import LowRank

MEASURED_ON = Calibration(samples=1)
"""The built-in text that goes through the model: its tokens are the inputs."""


@torch.inference_mode()
def measure_losses(
    plan: WeightPlan, checkpoint: Checkpoint, device: str, watch: Callable[[int, int], None]
) -> dict[str, dict[str, Any]]:
    """What each linear of a finished checkpoint lost (`losses_of`), by BLOCK.LINEAR ("0.self_attn.q_proj").

    A linear gets what its dense block makes of the outputs of the quantized blocks before it; adapters are left out.
    One block is in memory at a time. `watch(block, blocks)` is called before each.
    """
    skeleton = Skeleton(plan.card, folder_of(plan.card, plan.spec.revision), getattr(torch, plan.spec.dtype), device)
    context = skeleton.model.config.get_text_config().max_position_embeddings
    text = MEASURED_ON.model_copy(update={"length": min(MEASURED_ON.length, context)})
    hidden, kwargs = calibration_inputs(skeleton, text)
    losses: dict[str, dict[str, Any]] = {}
    for index, module in enumerate(skeleton.blocks):
        watch(index, len(skeleton.blocks))
        block = CalibratedBlock(skeleton.fill_block(index), hidden, kwargs)
        inputs = collect(block, LINEARS, input_tokens=hidden.shape[0] * hidden.shape[1], hessian=False)
        dense = {name: module.get_submodule(name) for name in LINEARS}
        checkpoint.fill_block(index, module, device, skeleton.dtype)
        for name in LINEARS:
            quantized = module.get_submodule(name)
            if isinstance(quantized.weight, LowRank):
                quantized.weight = quantized.weight.base
            losses[f"{index}.{name}"] = losses_of(dense[name], quantized, inputs[name])
        block.advance(hidden)
        skeleton.release_block(index)
    return losses
