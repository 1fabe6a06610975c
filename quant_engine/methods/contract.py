"""What a method is: one file that says what it does, validates its options, and quantizes one linear layer.

Most methods need no more than that. Two hooks serve those that work across linears: `prepare` sees a whole dense block
with its inputs (scales folded into norms), and `train` the whole dense model (scales learnt from its answers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from quant_engine.spec import QuantSetting, UserError, quoted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quant_engine.methods.block import CalibratedBlock
    from quant_engine.weights.form import StoredWeight


class Options(BaseModel):
    """Base of every method's options: unknown names and numbers that are none are refused, and a resolved setting never
    changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class MethodCard:
    """How a method describes itself, for the page's cards and `python -m quant_engine list`.

    `formula` is LaTeX. `bits` are the weight widths the method is defined for, `a_bits` the widths of activations.
    `calibrated` says whether it looks at data; `grouped` whether a group size can be chosen. `headline` says what the
    paper's width counts, where that is not the width of the codes.
    """

    name: str
    title: str
    idea: str
    formula: str
    stored: str
    bits: tuple[float, ...]
    grouped: bool
    calibrated: bool
    reference: str
    url: str
    headline: str = ""
    a_bits: tuple[int, ...] = (16,)

    @property
    def low_a_bits(self) -> tuple[int, ...]:
        """The activation widths below 16 to choose from; empty for a method that leaves activations alone."""
        return tuple(width for width in self.a_bits if width < 16)


@dataclass
class Statistics:
    """What calibration saw at one linear's input, and which linear it is.

    `hessian` [in_features, in_features] float32 is (2 / samples) * sum over tokens of x x^T; None where the method does
    not need it (`Method.hessian`). `linear` is the name in its block, such as "self_attn.q_proj". `seed` is that of the
    weights' spec.
    `inputs` [tokens, in_features] float32 are single inputs, evenly spaced over all calibration tokens; None unless
    `Method.input_tokens` asks for them. `trained` is what `Method.train` returned for this linear. `shared` takes
    what a method computed from the Hessian alone, for the linears that come next and share it.
    """

    hessian: torch.Tensor | None
    linear: str = ""
    seed: int = 0
    inputs: torch.Tensor | None = None
    trained: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """One linear layer, and what is to be made of it.

    `weight` [out_features, in_features] float32 may be overwritten. `statistics` is None unless the method's card says
    calibrated. `options` is of the method's own class. `log` takes one line of text for the run's log.
    """

    weight: torch.Tensor
    statistics: Statistics | None
    setting: QuantSetting
    options: Any
    log: Callable[[str], None]

    @property
    def bits(self) -> int:
        """The width of codes, for methods whose widths are whole."""
        return int(self.setting.w_bits)

    @property
    def required_statistics(self) -> Statistics:
        """The statistics of a calibrated method. Raises ValueError if there are none."""
        if self.statistics is None:
            raise ValueError(f"{self.setting.label} needs calibration statistics.")
        return self.statistics


@dataclass(frozen=True)
class Training:
    """What `Method.train` gets: the whole dense model, on its device, and the calibration `windows` [samples, length].

    `sets` names the linears of each of its `decoder.layers` that will be quantized, in order of use; those of a set
    share their input. `folder` is the place for what a killed training needs to go on; it vanishes when quantization is
    complete. `progress(share, message)` takes the share of training done; `check_stop` raises where the user asked to
    stop. `at_once` windows go through the model together; None leaves it to the method.
    """

    model: nn.Module
    decoder: nn.Module
    sets: tuple[tuple[str, ...], ...]
    windows: torch.Tensor
    setting: QuantSetting
    options: Any
    seed: int
    folder: Path
    progress: Callable[[float, str], None]
    check_stop: Callable[[], None]
    log: Callable[[str], None]
    at_once: int | None = None


@dataclass(frozen=True)
class Method:
    """A quantization algorithm: its card, its options class, and its functions on one linear layer.

    `quantize(layer)` returns the stored low-bit weight. `stored_bits(out_features, in_features, setting, options)` is
    the bits per weight that a linear of this shape takes, all side data and adapters counted, found without torch.
    `true_sequential(options)` says whether a block's linears are quantized set by set, each with inputs collected anew
    behind the sets before it.

    What works across linears:
    `prepare(block, setting, options, log)` may change the norms and linears of a dense block before its statistics are
    collected and its linears quantized. What it leaves in the norms is saved with the block.
    `original_inputs` says that blocks are calibrated on what the original blocks before them put out, not the quantized
    ones. `hessian` and `input_tokens` say whether `Statistics` should hold the Hessian, and how many single inputs of
    each linear; without a Hessian, the output errors of linears are measured on these.
    `train(training)` runs once, before the first block, with gradients; it returns tensors by name, "BLOCK.LINEAR.NAME"
    ("0.self_attn.q_proj.scales"), which reach `quantize` in `Statistics.trained`.
    `fine_tunes` says that low-rank adapters are then trained beside the quantized weights (quant_engine/finetune).
    """

    card: MethodCard
    Options: type[Options]
    quantize: Callable[[Layer], StoredWeight]
    stored_bits: Callable[[int, int, QuantSetting, Any], float]
    true_sequential: Callable[[Any], bool] = lambda options: False
    prepare: Callable[[CalibratedBlock, QuantSetting, Any, Callable[[str], None]], None] | None = None
    original_inputs: bool = False
    hessian: bool = True
    input_tokens: int = 0
    train: Callable[[Training], dict[str, torch.Tensor]] | None = None
    fine_tunes: bool = False

    def options(self, setting: QuantSetting) -> Options:
        """The setting's options, validated, with defaults filled in. Raises UserError naming the bad option."""
        names = ", ".join(self.Options.model_fields) or "none"
        try:
            return self.Options(**setting.options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise UserError(f"{self.card.title} has no option {name!r}; its options are: {names}.") from None
            wrong = f"{first['msg']} (got {quoted(first['input'])})"
            raise UserError(f"{self.card.title} option {name}: {wrong}; its options are: {names}.") from None

    def resolve(self, setting: QuantSetting, options: Options | None = None) -> QuantSetting:
        """The setting with every option spelled out; `options` are those of the setting, if they were validated before.

        Raises UserError where the method is not defined for the setting.
        """
        card = self.card
        if setting.w_bits not in card.bits:
            widths = ", ".join(f"{bits:g}" for bits in card.bits)
            raise UserError(f"{card.title} is defined for {widths} weight bits, not {setting.w_bits:g}.")
        if setting.group_size is not None and not card.grouped:
            raise UserError(f"{card.title} has no groups: leave the group size empty.")
        if setting.a_bits not in card.a_bits:
            if card.a_bits == (16,):
                raise UserError(
                    f"{card.title} leaves activations at 16 bits; {setting.a_bits} activation bits need SmoothQuant."
                )
            widths = ", ".join(map(str, card.a_bits))
            raise UserError(f"{card.title} is defined for {widths} activation bits, not {setting.a_bits}.")
        return setting.model_copy(update={"options": (options or self.options(setting)).model_dump(mode="json")})
