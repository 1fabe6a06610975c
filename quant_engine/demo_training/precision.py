"""Training in bfloat16 with float32 master weights.

The live modules compute in bfloat16 (on a recent CPU, matrix products run about six times faster than in float32, and
half the memory moves); AdamW works on float32 copies, so that small updates are not rounded away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Master:
    """AdamW on float32 copies of bfloat16 parameters. Each group is (parameters, learning-rate factor)."""

    def __init__(self, *groups: tuple[Iterable[nn.Parameter], float], weight_decay: float = 0.02) -> None:
        self.live = [(list(parameters), factor) for parameters, factor in groups]
        self.copies = [[p.detach().float().clone() for p in parameters] for parameters, _ in self.live]
        self.optimizer = torch.optim.AdamW(
            [{"params": copies} for copies in self.copies], betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
        )

    def step(self, learning_rate: float, clip: float = 1.0) -> float:
        """One update from the gradients of the live parameters, which are cleared; returns the gradients' norm."""
        for (parameters, factor), copies, group in zip(
            self.live, self.copies, self.optimizer.param_groups, strict=True
        ):
            group["lr"] = learning_rate * factor
            for parameter, copy in zip(parameters, copies, strict=True):
                copy.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_([c for copies in self.copies for c in copies], clip)
        self.optimizer.step()
        self._publish()
        return norm.item()

    @torch.no_grad()
    def _publish(self) -> None:
        for (parameters, _), copies in zip(self.live, self.copies, strict=True):
            torch._foreach_copy_(parameters, copies)

    def state_dict(self) -> dict[str, Any]:
        return {"copies": self.copies, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for copies, saved in zip(self.copies, state["copies"], strict=True):
            for copy, value in zip(copies, saved, strict=True):
                copy.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self._publish()
