"""peft's low-rank adapters on linears whose weights are packed, and IR-QLoRA's with two shortcuts.

    LoRA    y = base(x) + (alpha / r) B A x
    IEC     y = base(x) + (alpha / r) U2(U1(x)),    U1(x) = A x + b1 P x,    U2(x') = B x' + b2 R x'

P [r, in] averages neighbouring features in chunks, R [out, r] repeats its input; both are fixed and never made as
matrices while training. Merged, A' = A + b1 P and B' = B + b2 R are a plain low-rank adapter with the same output
(without dropout, which the first shortcut does not pass through). Qin et al., IR-QLoRA, arXiv 2402.05445, section 3.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods.ir_qlora import IrQloraOptions
from quant_engine.methods.qlora import ALPHA, QloraOptions
from quant_engine.models.architecture import LINEARS
from quant_engine.spec import UserError
from quant_engine.weights.low_rank import LowRank

NAME = "default"


class LoraQuantLinear(nn.Module, LoraLayer):
    """A frozen `QuantLinear` with one low-rank adapter, which computes in float32."""

    def __init__(
        self, base: QuantLinear, name: str, config: LoraConfig, r: int, lora_alpha: float, **_: object
    ) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base)
        self._active_adapter = name
        self.update_layer(name, r, lora_alpha=lora_alpha, config=config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        return base_layer.weight.device, torch.float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] to [..., out_features], in the type of `x`."""
        y = self.base_layer(x)
        if self.disable_adapters:
            return y
        return y + (self.scaling[NAME] * self.change(x.float())).to(y.dtype)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds, before scaling: [..., in_features] to [..., out_features]."""
        return self.lora_B[NAME](self.lora_A[NAME](self.lora_dropout[NAME](x)))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the plain low-rank adapter that this is equal to: [r, in_features], [out_features, r]."""
        return self.lora_A[NAME].weight.detach(), self.lora_B[NAME].weight.detach()


class ElasticQuantLinear(LoraQuantLinear):
    """A `LoraQuantLinear` with information elastic connections; `tile` repeats whole copies instead of each value."""

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_shortcut_in", "lora_shortcut_out")

    def __init__(self, base: QuantLinear, name: str, config: LoraConfig, *, tile: bool, **kwargs: object) -> None:
        self.tile = tile
        super().__init__(base, name, config, **kwargs)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: LoraConfig, **kwargs: object) -> None:
        self.lora_shortcut_in = nn.ParameterDict({adapter_name: nn.Parameter(torch.zeros(()))})
        self.lora_shortcut_out = nn.ParameterDict({adapter_name: nn.Parameter(torch.zeros(()))})
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        rank = self.r[NAME]
        inner = self.lora_A[NAME](self.lora_dropout[NAME](x))
        inner = inner + self.lora_shortcut_in[NAME] * connect(x, rank, self.tile)
        return self.lora_B[NAME](inner) + self.lora_shortcut_out[NAME] * connect(inner, self.out_features, self.tile)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = super().factors()
        pool = connect(torch.eye(self.in_features, device=a.device), len(a), self.tile).T
        repeat = connect(torch.eye(len(a), device=a.device), self.out_features, self.tile).T
        return a + self.lora_shortcut_in[NAME].detach() * pool, b + self.lora_shortcut_out[NAME].detach() * repeat


def connect(x: torch.Tensor, target: int, tile: bool) -> torch.Tensor:
    """`x` [..., source] to [..., target] without parameters: averages of g chunks, g the greatest common divisor of
    source and target, each repeated target / g times, in a row or (`tile`) copy after copy."""
    chunks = math.gcd(x.shape[-1], target)
    means = x.unflatten(-1, (chunks, -1)).mean(-1)
    times = target // chunks
    return means.repeat(*[1] * (means.dim() - 1), times) if tile else means.repeat_interleave(times, -1)


def attach(model: nn.Module, blocks: str, options: QloraOptions) -> None:
    """Puts an adapter on every quantized linear of the decoder blocks, whose modules' names start with `blocks`.

    A is drawn from torch's global generator. All other parameters are frozen.
    """
    config = LoraConfig(
        r=options.rank,
        lora_alpha=ALPHA,
        lora_dropout=options.dropout,
        target_modules=rf"{re.escape(blocks)}\d+\.({'|'.join(map(re.escape, LINEARS))})",
        bias="none",
    )
    elastic = isinstance(options, IrQloraOptions)
    config._register_custom_module(
        {QuantLinear: partial(ElasticQuantLinear, tile=options.tile) if elastic else LoraQuantLinear}
    )
    inject_adapter_in_model(config, model, NAME)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_gradients(model: nn.Module) -> None:
    """Raises UserError if any adapter would not learn, after a backward pass.

    A's own gradient is zero as long as B is, so it only has to be there; B's has to be other than zero.
    """
    for name, layer in adapted(model):
        parts = {kind: list(getattr(layer, kind)[NAME].parameters()) for kind in ("lora_A", "lora_B")}
        if isinstance(layer, ElasticQuantLinear):
            parts["shortcuts"] = [layer.lora_shortcut_in[NAME], layer.lora_shortcut_out[NAME]]
        if any(parameter.grad is None for parameters in parts.values() for parameter in parameters):
            raise UserError(f"The adapter of {name} has no gradient: it would not learn.")
        if not any(parameter.grad.any() for parameter in parts["lora_B"]):
            raise UserError(f"The gradient of the adapter of {name} is zero: it would not learn.")


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraQuantLinear]]:
    """Every linear with an adapter, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraQuantLinear))


def settle(model: nn.Module) -> None:
    """Replaces every linear with an adapter by a `QuantLinear` that stores both, shortcuts merged."""
    for name, layer in list(adapted(model)):
        base = layer.base_layer
        parent, _, leaf = name.rpartition(".")
        weight = LowRank(base.weight, *layer.factors(), layer.scaling[NAME])
        setattr(model.get_submodule(parent), leaf, QuantLinear(weight, base.bias))


def unsettle(model: nn.Module) -> None:
    """Takes stored adapters off again, so that training can go on from its own state."""
    for module in model.modules():
        if isinstance(module, QuantLinear) and isinstance(module.weight, LowRank):
            module.weight = module.weight.base
