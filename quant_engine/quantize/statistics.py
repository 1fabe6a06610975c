"""What calibration sees at the inputs of a block's linears."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quant_engine.methods.block import CalibratedBlock
from quant_engine.methods.contract import Statistics
from quant_engine.models.architecture import SEQUENTIAL_SETS

FIRST_OF_SET = {name: names[0] for names in SEQUENTIAL_SETS for name in names}
"""The linear that stands for all that share its input."""


def collect(
    block: CalibratedBlock, names: Sequence[str], input_tokens: int, *, hessian: bool = True
) -> dict[str, Statistics]:
    """The statistics of the named linears, in the order in which the block uses them.

    Linears that share their input share one Hessian, if wanted, and `input_tokens` single inputs, evenly spaced over
    all calibration tokens (none for 0).
    """
    samples, length = block.hidden.shape[:2]
    leaders = list(dict.fromkeys(FIRST_OF_SET[name] for name in names))
    stride = max(1, samples * length // input_tokens) if input_tokens else 0
    hessians: dict[str, torch.Tensor] = {}
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in leaders}
    tokens = dict.fromkeys(leaders, 0)

    def add(name: str, x: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        if hessian:
            if name not in hessians:
                hessians[name] = torch.zeros((x.shape[1],) * 2, device=x.device)
            # Scaled as it is added up: the mean over samples of 2 x x^T.
            hessians[name].addmm_(x.T, x, alpha=2 / samples)
        if stride:
            inputs[name].append(x[-tokens[name] % stride :: stride].clone())
            tokens[name] += len(x)

    block.watch(leaders, add)
    sampled = {name: torch.cat(parts) if parts else None for name, parts in inputs.items()}
    shared: dict[str, dict[str, torch.Tensor]] = {name: {} for name in leaders}
    return {
        name: Statistics(hessians.get(leader), linear=name, inputs=sampled[leader], shared=shared[leader])
        for name in names
        for leader in (FIRST_OF_SET[name],)
    }
