"""AWQ checkpoints, as AutoAWQ and GPTQModel write them: 4 bits, in two layouts.

For a linear with in_features n and out_features m, in groups of g columns, w = scale * (code - zero):

    gemm   qweight int32 [n, m / 8], qzeros int32 [groups, m / 8], scales float16 [groups, m]; a word holds eight
           neighbouring outputs, from its lowest bits in the order 0, 2, 4, 6, 1, 3, 5, 7
    gemv   qweight int32 [m, n / 8], qzeros int32 [m, words], scales float16 [m, 8 words]; eight neighbouring inputs in
           their order; there may be more words than the groups need
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
from quant_engine.formats.gptq import SCALE_TYPES, half
from quant_engine.models.check import StoredTensor
from quant_engine.spec import QuantSetting, quoted

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")
packing = deferred("quant_engine.weights.packing")

if TYPE_CHECKING:
    from quant_engine.weights.form import StoredWeight
    from quant_engine.weights.grouped import GroupedInt

BITS = 4
CODES = 8
"""Codes of a word."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs stands at each four bits of a gemm word, from the lowest."""
GEMM, GEMV = "gemm", "gemv"


def setting(quantization: Quantization) -> QuantSetting:
    bits, layout = whole_number(quantization, "bits", "w_bit"), _layout(quantization)
    if bits != BITS:
        raise LayoutError(f"has {quoted(bits)} bits; only {BITS} are read")
    if layout not in (GEMM, GEMV):
        raise LayoutError(f"has the layout {quoted(layout)}; those that are read are {GEMM} and {GEMV}")
    group = whole_number(quantization, "group_size", "q_group_size")
    return QuantSetting(
        method=f"awq:{writer(quantization)}", w_bits=BITS, group_size=group if group and group > 0 else None
    )


def _layout(quantization: Quantization) -> str:
    stated = (quantization.get(name) for name in ("version", "checkpoint_format", "format"))
    return str(next(filter(None, stated), GEMM)).lower()


def shape(tensors: Mapping[str, StoredTensor], quantization: Quantization) -> tuple[int, int]:
    rows, columns = _shape(tensors, quantization)
    group = _group(columns, quantization)
    if columns % group:
        raise LayoutError(f"groups of {group} columns, as config.json says, don't divide its {columns}")
    return rows, columns


def _shape(tensors: Mapping[str, StoredTensor], quantization: Quantization) -> tuple[int, int]:
    check_types(tensors, {"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALE_TYPES})
    if any(len(tensor.shape) != 2 for tensor in tensors.values()):
        raise LayoutError("qweight, qzeros and scales should have two dimensions")
    first, second = tensors["qweight"].shape
    if _layout(quantization) == GEMM:
        rows, columns = second * CODES, first
        groups = -(-columns // _group(columns, quantization))
        check_shape("qzeros", tensors["qzeros"], (groups, second))
        check_shape("scales", tensors["scales"], (groups, rows))
    else:
        rows, columns = first, second * CODES
        words = tensors["qzeros"].shape[1]
        if words * CODES * _group(columns, quantization) < columns:
            raise LayoutError(f"qzeros {list(tensors['qzeros'].shape)} are too few for {columns} columns")
        check_shape("qzeros", tensors["qzeros"], (rows, words))
        check_shape("scales", tensors["scales"], (rows, words * CODES))
    return rows, columns


def _group(columns: int, quantization: Quantization) -> int:
    stated = whole_number(quantization, "group_size", "q_group_size")
    return min(stated, columns) if stated and stated > 0 else columns


def weight(tensors: Mapping[str, torch.Tensor], quantization: Quantization) -> GroupedInt:
    words, zeros, scales = (tensors[name] for name in ("qweight", "qzeros", "scales"))
    if _layout(quantization) == GEMM:
        codes, zeros, scales = _by_outputs(words).T, _by_outputs(zeros).T, scales.T
        group = _group(codes.shape[1], quantization)
    else:
        codes = packing.unpack(words.contiguous(), BITS, words.shape[1] * CODES)
        group = _group(codes.shape[1], quantization)
        groups = -(-codes.shape[1] // group)
        zeros = packing.unpack(zeros.contiguous(), BITS, zeros.shape[1] * CODES)[:, :groups]
        scales = scales[:, :groups]
    return grouped.GroupedInt.pack(codes, half(scales), zeros, BITS, group)


def _by_outputs(words: torch.Tensor) -> torch.Tensor:
    """The codes [k, m] of gemm words [k, m / 8]."""
    codes = packing.unpack(words.contiguous(), BITS, words.shape[1] * CODES).unflatten(1, (-1, CODES))
    ordered = torch.empty_like(codes)
    ordered[..., list(ORDER)] = codes
    return ordered.flatten(1)


def write(weight: StoredWeight, layout: str) -> dict[str, torch.Tensor]:
    weight, codes, zeros = integers(weight, "AWQ checkpoints")
    if weight.bits != BITS:
        raise LayoutError(f"AWQ checkpoints have {BITS} bits, not {weight.bits}: export to gptq or gptq_v2")
    if weight.ordered:
        raise LayoutError("its columns are in an order of their own (act-order), which AWQ can't say: export to gptq")
    if weight.in_features % weight.group or weight.out_features % CODES:
        raise LayoutError(f"[{weight.out_features}, {weight.in_features}] is not whole groups and words")
    return {
        "qweight": _words_by_outputs(codes.T),
        "qzeros": _words_by_outputs(zeros.T),
        "scales": weight.scales.T.contiguous(),
    }


def _words_by_outputs(codes: torch.Tensor) -> torch.Tensor:
    """Codes [k, m] as gemm words [k, m / 8]."""
    return packing.pack(codes.unflatten(1, (-1, CODES))[..., list(ORDER)].flatten(1), BITS)


def config(weights: Sequence[GroupedInt], layout: str) -> Quantization:
    first = weights[0]
    if any(weight.group != first.group for weight in weights if weight.groups > 1):
        raise LayoutError("its layers differ in group size")
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": -1 if first.groups == 1 else first.group,
        "zero_point": True,
        "version": GEMM,
        "modules_to_not_convert": ["lm_head", "vision_tower", "multi_modal_projector"],
        "meta": written_by(),
    }


FORMAT = Format(
    name="awq",
    title="AWQ",
    setting=setting,
    parts=("qweight", "qzeros", "scales"),
    marks=("qweight",),
    optional=(),
    shape=shape,
    weight=weight,
    layouts=("awq",),
    write=write,
    config=config,
)
