"""What a format of other programs' quantized checkpoints is. One file per format; the registry is in `__init__.py`.

A format's file loads no torch until a weight is read: the command line and the page ask what a checkpoint says of
itself. What files hold was written by others, so every size is checked before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant_engine import __version__
from quant_engine.deferred import deferred
from quant_engine.models.check import StoredTensor
from quant_engine.spec import QuantSetting

packing = deferred("quant_engine.weights.packing")

if TYPE_CHECKING:
    import torch

    from quant_engine.weights.form import StoredWeight
    from quant_engine.weights.grouped import GroupedInt

Quantization = dict[str, Any]
"""The quantization_config of a config.json."""


class LayoutError(ValueError):
    """A linear whose tensors contradict each other or its format, in the end of a sentence that names the linear; of a
    configuration, the end of a sentence that names the checkpoint."""


@dataclass(frozen=True)
class ReadTensor(StoredTensor):
    """A small tensor whose values are read before shapes are held against each other."""

    values: torch.Tensor


@dataclass(frozen=True)
class Format:
    """How a format stores a quantized linear in safetensors files.

    `setting(quantization)` is the method, bits and group size that a configuration states, and raises LayoutError for
    what is not read here.
    `parts` are the last parts of the names of a linear's tensors; a layer is a linear of this format if it has one of
    the `marks` among them. Those that a linear may lack are `optional`; the small ones that `shape` gets with their
    values, as ReadTensor, are `small`.
    `shape(tensors, quantization)` is (out_features, in_features), and `weight(tensors, quantization)` the weight in a
    storage form, from the tensors by their last names. Both raise LayoutError where tensors are not as the format has
    them; `weight` gets tensors whose shapes `shape` has seen.
    `write(weight, layout)` is the other way: a stored weight as the tensors of one of the `layouts` that are written.
    It raises LayoutError, the end of a sentence, where the layout can't say the weight exactly. `config(weights,
    layout)` is then the quantization_config of a model whose linears are these.
    """

    name: str
    title: str
    setting: Callable[[Quantization], QuantSetting]
    parts: tuple[str, ...]
    marks: tuple[str, ...]
    optional: tuple[str, ...]
    shape: Callable[[Mapping[str, StoredTensor], Quantization], tuple[int, int]]
    weight: Callable[[Mapping[str, torch.Tensor], Quantization], StoredWeight]
    small: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    write: Callable[[StoredWeight, str], dict[str, torch.Tensor]] | None = None
    config: Callable[[Sequence[StoredWeight], str], Quantization] | None = None


def writer(quantization: Quantization) -> str:
    """The program that wrote a checkpoint, and its version ("gptqmodel 7.6.0"); nothing where it does not say."""
    meta = quantization.get("meta")
    stated = meta.get("quantizer") if isinstance(meta, dict) else None
    stated = stated[0] if isinstance(stated, list) and stated else stated
    return stated.replace(":", " ")[:60].strip().lower() if isinstance(stated, str) else ""


def whole_number(quantization: Quantization, *names: str) -> int | None:
    """The first of a configuration's fields that holds a whole number."""
    values = (quantization.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def check_types(tensors: Mapping[str, StoredTensor], types: Mapping[str, tuple[str, ...]]) -> None:
    """Raises LayoutError unless every tensor has one of the types that its name may have."""
    for name, tensor in tensors.items():
        if tensor.dtype not in types[name]:
            raise LayoutError(f"{name} is {tensor.dtype}, and should be {' or '.join(types[name])}")
        if 0 in tensor.shape:
            raise LayoutError(f"{name} {list(tensor.shape)} is empty")


def check_shape(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise LayoutError(f"{name} is {list(tensor.shape)}, and should be {list(shape)}")


def integers(weight: StoredWeight, formats: str) -> tuple[GroupedInt, torch.Tensor, torch.Tensor]:
    """A weight of grouped integers with rows as files have them, its codes [m, n] in the original order of columns and
    its zeros [m, groups]. Raises LayoutError for any other form: `formats` have no words for it."""
    if weight.form != "grouped_int":
        raise LayoutError(f"its weights are stored as {weight.form.replace('_', ' ')}, which {formats} can't say")
    weight = weight.canonical()
    codes = packing.unpack(weight.codes, weight.bits, weight.in_features)
    if weight.ordered:
        codes = codes[:, weight.order.long().argsort()]
    return weight, codes, weight.zero_points()


def written_by() -> dict[str, Any]:
    """What a configuration says of the program that wrote it."""
    return {"quantizer": [f"low-bit-lab:{__version__}"]}
