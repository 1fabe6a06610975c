"""What a method is: one file that says what it does, validates its options, and quantizes one linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from quant_engine.spec import QuantSetting, UserError

if TYPE_CHECKING:
    import torch

    from quant_engine.weights.form import StoredWeight


class Options(BaseModel):
    """Base of every method's options: unknown names are refused, and a resolved setting never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class MethodCard:
    """How a method describes itself, for the page's cards and `python -m quant_engine list`.

    `formula` is LaTeX. `bits` are the weight widths the method is defined for. `calibrated` says whether it looks at
    data; `grouped` whether a group size can be chosen.
    """

    name: str
    title: str
    idea: str
    formula: str
    stored: str
    bits: tuple[int, ...]
    grouped: bool
    calibrated: bool
    reference: str
    url: str


@dataclass
class Statistics:
    """What calibration saw at one linear's input.

    `hessian` [in_features, in_features] float32 is (2 / samples) * sum over tokens of x x^T.
    """

    hessian: torch.Tensor
    samples: int


@dataclass(frozen=True)
class Method:
    """A quantization algorithm: its card, its options class, and its function on one linear layer.

    `quantize(weight, statistics, setting, options, log)` gets the weight [out_features, in_features] in float32 and
    may overwrite it, and returns the stored low-bit weight. `statistics` is None unless the card says calibrated.
    `log` takes one line of text for the run's log. `true_sequential(options)` says whether a block's linears are
    quantized set by set, each with inputs collected anew behind the sets before it.
    """

    card: MethodCard
    Options: type[Options]
    quantize: Callable[
        [torch.Tensor, Statistics | None, QuantSetting, Any, Callable[[str], None]],
        StoredWeight,
    ]
    true_sequential: Callable[[Any], bool] = lambda options: False

    def options(self, setting: QuantSetting) -> Options:
        """The setting's options, validated, with defaults filled in. Raises UserError naming the bad option."""
        known = ", ".join(self.Options.model_fields) or "none"
        try:
            return self.Options(**setting.options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise UserError(f"{self.card.title} has no option {name!r}; its options are: {known}.") from None
            raise UserError(
                f"{self.card.title} option {name}: {first['msg']} (got {first['input']!r}); its options are: {known}."
            ) from None

    def resolve(self, setting: QuantSetting) -> QuantSetting:
        """The same setting with every option spelled out, or a UserError where the method is not defined for it."""
        card = self.card
        if setting.w_bits not in card.bits:
            widths = ", ".join(f"{bits:g}" for bits in card.bits)
            raise UserError(f"{card.title} is defined for {widths} weight bits, not {setting.w_bits:g}.")
        if setting.group_size is not None and not card.grouped:
            raise UserError(f"{card.title} has no groups: leave the group size empty.")
        if setting.a_bits != 16:
            raise UserError(
                f"{card.title} leaves activations at 16 bits; {setting.a_bits} activation bits need SmoothQuant."
            )
        return setting.model_copy(update={"options": self.options(setting).model_dump(mode="json")})
