"""Low-rank adaptation of SmolLM2's linears (LoRA, arXiv 2106.09685): y = W x + B A x, with W frozen.

Written out here because training runs wholly in bfloat16 with float32 master weights, and because the adapter must be
switched off for a moment to ask what the unadapted model would have said.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quant_engine.demo.model import ADAPTED, RANK


class LoraLinear(nn.Module):
    """A frozen linear with a trainable low-rank addition. A is [rank, in], B is [out, rank] and starts at zero."""

    enabled = True

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = base.weight
        self.A = nn.Parameter(torch.empty(rank, base.in_features, dtype=base.weight.dtype, device=base.weight.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=base.weight.dtype, device=base.weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight)
        return y + linear(linear(x, self.A), self.B) if LoraLinear.enabled else y


class Adapter(nn.Module):
    """All low-rank additions of a decoder, by name: layers.0.self_attn.q_proj, ... Replaces the linears in place."""

    def __init__(self, decoder: nn.Module, rank: int = RANK) -> None:
        super().__init__()
        decoder.requires_grad_(False)
        self.parts = nn.ModuleDict()
        for index, block in enumerate(decoder.layers):
            for name in ADAPTED:
                parent = block.get_submodule(name.rpartition(".")[0])
                leaf = name.rpartition(".")[2]
                adapted = LoraLinear(getattr(parent, leaf), rank)
                setattr(parent, leaf, adapted)
                self.parts[f"layers.{index}.{name}".replace(".", "/")] = adapted

    def own_parameters(self) -> list[nn.Parameter]:
        return [p for part in self.parts.values() for p in (part.A, part.B)]

    def tensors(self) -> dict[str, Tensor]:
        """What ships: `<linear>.A` and `<linear>.B` for each adapted linear."""
        return {
            f"{key.replace('/', '.')}.{side}": getattr(part, side).detach()
            for key, part in self.parts.items()
            for side in ("A", "B")
        }

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.tensors()

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True) -> None:
        with torch.no_grad():
            for name, own in self.tensors().items():
                own.copy_(state[name])


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """The model as it was before adaptation."""
    LoraLinear.enabled = False
    try:
        yield
    finally:
        LoraLinear.enabled = True
