"""GPTQ checkpoints, as AutoGPTQ, GPTQModel and optimum write them.

For a linear with in_features n and out_features m, in groups of g columns:

    qweight   int32 [n b / 32, m]         codes; each column of it is one stream of b-bit codes
    qzeros    int32 [groups, m b / 32]    zero points, each row one such stream
    scales    float16 [groups, m]
    g_idx     int32 [n]                   the group of each column; without it, j // g

    w = scale * (code - zero)

Version 1 (`checkpoint_format` gptq, or none) stores zeros minus one, which wraps around at 0; gptq_v2 stores them as
they are. With act-order the columns of a group lie apart. Where the configuration says that layers differ (GPTQModel's
`dynamic`), their widths follow from the tensors' own shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quant_engine.deferred import deferred
from quant_engine.formats.contract import (
    Format,
    LayoutError,
    Quantization,
    check_shape,
    check_types,
    integers,
    whole_number,
    writer,
    written_by,
)
from quant_engine.models.check import StoredTensor
from quant_engine.spec import QuantSetting, quoted
from quant_engine.weights.packing import WORD

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")
packing = deferred("quant_engine.weights.packing")

if TYPE_CHECKING:
    from quant_engine.weights.form import StoredWeight
    from quant_engine.weights.grouped import GroupedInt

BITS = (2, 3, 4, 8)
V1, V2 = "gptq", "gptq_v2"
SCALE_TYPES = ("F16", "BF16", "F32")


def setting(quantization: Quantization) -> QuantSetting:
    bits, layout = whole_number(quantization, "bits"), _layout(quantization)
    if bits not in BITS:
        raise LayoutError(f"has {quoted(bits)} bits; those that are read are {', '.join(map(str, BITS))}")
    if layout not in (V1, V2):
        raise LayoutError(f"has the layout {quoted(layout)}; those that are read are {V1} and {V2}")
    group = whole_number(quantization, "group_size")
    group = group if group and group > 0 else None
    return QuantSetting(method=f"gptq:{writer(quantization)}", w_bits=bits, group_size=group)


def _layout(quantization: Quantization) -> str:
    return str(quantization.get("checkpoint_format") or quantization.get("format") or V1)


def shape(tensors: Mapping[str, StoredTensor], quantization: Quantization) -> tuple[int, int]:
    check_types(tensors, {"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALE_TYPES, "g_idx": ("I32", "I64")})
    if any(len(tensors[name].shape) != 2 for name in ("qweight", "qzeros", "scales")):
        raise LayoutError("qweight, qzeros and scales should have two dimensions")
    groups, rows = tensors["scales"].shape
    bits = tensors["qzeros"].shape[1] * WORD / rows
    if bits not in BITS:
        raise LayoutError(f"qzeros {list(tensors['qzeros'].shape)} and scales {[groups, rows]} make {bits:g} bits")
    columns = tensors["qweight"].shape[0] * WORD // int(bits)
    check_shape("qzeros", tensors["qzeros"], (groups, rows * int(bits) // WORD))
    check_shape("qweight", tensors["qweight"], (columns * int(bits) // WORD, rows))
    stated = whole_number(quantization, "bits")
    if stated not in (None, bits) and not _by_layer(quantization):
        raise LayoutError(f"qweight and qzeros hold codes of {bits:g} bits, and config.json says {stated}")
    if "g_idx" in tensors:
        check_shape("g_idx", tensors["g_idx"], (columns,))
    elif quantization.get("desc_act") is True and groups > 1:
        raise LayoutError("g_idx is missing, and config.json says that columns have an order of their own (desc_act)")
    elif -(-columns // _group(columns, groups, quantization)) != groups:
        raise LayoutError(f"scales {[groups, rows]} don't fit groups of {quantization.get('group_size')} columns")
    return rows, columns


def _by_layer(quantization: Quantization) -> bool:
    """Whether layers differ: `dynamic` of GPTQModel, or `extra_config` of AutoRound, say how."""
    return bool(quantization.get("dynamic") or quantization.get("extra_config"))


def _group(columns: int, groups: int, quantization: Quantization) -> int:
    """Columns of a group where no g_idx says it."""
    stated = whole_number(quantization, "group_size")
    return columns if groups == 1 or not stated or stated < 1 else stated


def weight(tensors: Mapping[str, torch.Tensor], quantization: Quantization) -> GroupedInt:
    groups, rows = tensors["scales"].shape
    bits = tensors["qzeros"].shape[1] * WORD // rows
    columns = tensors["qweight"].shape[0] * WORD // bits
    words = tensors["qweight"].T.contiguous()
    group, order = columns_of(tensors.get("g_idx"), columns, groups, quantization)
    stated = min(_group(columns, groups, quantization), columns)
    if group != stated and whole_number(quantization, "group_size") and not _by_layer(quantization):
        raise LayoutError(f"g_idx has groups of {group} columns, and config.json says {stated}")
    codes = packing.unpack(words, bits, columns)
    zeros = packing.unpack(tensors["qzeros"].contiguous(), bits, rows).T
    if _layout(quantization) == V1:
        zeros = (zeros + 1) & (2**bits - 1)
    if order is not None:
        codes = codes[:, order]
    return grouped.GroupedInt.pack(codes, half(tensors["scales"].T), zeros, bits, group, order)


def columns_of(
    groups_of: torch.Tensor | None, columns: int, groups: int, quantization: Quantization
) -> tuple[int, torch.Tensor | None]:
    """Columns of a group, and the order in which columns of a group lie together; None where they do already."""
    if groups_of is None:
        return _group(columns, groups, quantization), None
    groups_of = groups_of.long()
    # Negative numbers are what PyTorch takes them for: counted from the last group.
    groups_of = torch.where(groups_of < 0, groups_of + groups, groups_of)
    group = int((groups_of == 0).sum())
    ascending, order = groups_of.sort(stable=True)
    if group == 0 or not torch.equal(ascending, torch.arange(columns) // group) or int(ascending[-1]) != groups - 1:
        raise LayoutError(f"g_idx doesn't divide the columns into {groups} equal groups")
    return group, None if torch.equal(order, torch.arange(columns)) else order


def half(scales: torch.Tensor) -> torch.Tensor:
    """Scales in float16. Raises LayoutError where that would change them, or one is not finite."""
    in_half = scales.to(torch.float16)
    if not torch.equal(in_half.float(), scales.float()):
        raise LayoutError("scales have values that float16 can't hold")
    return in_half.contiguous()


def write(weight: StoredWeight, layout: str) -> dict[str, torch.Tensor]:
    weight, codes, zeros = integers(weight, "GPTQ checkpoints")
    bits, columns = weight.bits, weight.in_features
    if bits not in BITS:
        raise LayoutError(f"GPTQ checkpoints have {', '.join(map(str, BITS))} bits, not {bits}")
    if columns * bits % WORD or weight.out_features * bits % WORD:
        raise LayoutError(f"codes of {bits} bits of [{weight.out_features}, {columns}] don't fill whole words")
    if layout == V1:
        if not zeros.all():
            raise LayoutError("it has zero points of 0, which version 1 can't say: export to gptq_v2")
        zeros = zeros - 1
    groups_of = torch.arange(columns) // weight.group
    if weight.ordered:
        groups_of = groups_of[weight.order.long().argsort()]
    return {
        "qweight": packing.pack(codes, bits).T.contiguous(),
        "qzeros": packing.pack(zeros.T, bits),
        "scales": weight.scales.T.contiguous(),
        "g_idx": groups_of.to(torch.int32),
    }


def config(weights: Sequence[GroupedInt], layout: str) -> Quantization:
    first = weights[0]
    if any((weight.bits, weight.group) != (first.bits, first.group) for weight in weights if weight.groups > 1):
        raise LayoutError("its layers differ in width or group size")
    return {
        "quant_method": "gptq",
        "bits": first.bits,
        "group_size": -1 if first.groups == 1 else first.group,
        "desc_act": any(weight.ordered for weight in weights),
        "sym": all(weight.symmetric for weight in weights),
        "checkpoint_format": layout,
        "lm_head": False,
        "meta": written_by(),
    }


FORMAT = Format(
    name="gptq",
    title="GPTQ",
    setting=setting,
    parts=("qweight", "qzeros", "scales", "g_idx"),
    marks=("qweight",),
    optional=("g_idx",),
    shape=shape,
    weight=weight,
    layouts=(V1, V2),
    write=write,
    config=config,
)
