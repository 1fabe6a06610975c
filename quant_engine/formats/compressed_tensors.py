"""compressed-tensors checkpoints, as llm-compressor writes them: integers of 1 to 8 bits, and 8-bit floats.

For a linear with in_features n and out_features m, b-bit codes, and groups of n / groups columns:

    weight_packed      int32 [m, ceil(n b / 32)]       code + 2^(b-1), each row one stream of b-bit codes
    weight_shape       int64 [2]                       m, n
    weight             int8 or float8_e4m3fn [m, n]    in place of both, where codes are not packed
    weight_scale       [m, groups]; [m, 1] for a channel, [1] for all; [ceil(m / r), ceil(n / c)] for blocks [r, c]
    weight_zero_point  int32 [ceil(m b / 32), groups]  packed as codes are, down the rows; as scales are, for int8
    weight_g_idx       int32 [n]                       the group of each column; without it, j // (n / groups)
    input_scale        [1]                             where inputs are rounded with a scale known before

    w = scale * (code - zero)

`input_activations` of a configuration says how a linear's inputs are rounded (weights/rounded_inputs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quant_engine.deferred import deferred
from quant_engine.formats.contract import (
    Format,
    LayoutError,
    Quantization,
    ReadTensor,
    check_shape,
    check_types,
    integers,
)
from quant_engine.formats.gptq import SCALE_TYPES, columns_of, half
from quant_engine.models.check import StoredTensor
from quant_engine.spec import QuantSetting, quoted
from quant_engine.weights.packing import words_per_row

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")
packing = deferred("quant_engine.weights.packing")
rounded_inputs = deferred("quant_engine.weights.rounded_inputs")
scaled = deferred("quant_engine.weights.scaled")

if TYPE_CHECKING:
    from quant_engine.weights.form import StoredWeight
    from quant_engine.weights.grouped import GroupedInt

NAME = "compressed-tensors"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
BITS = range(1, 9)
FLOAT8, INT8 = "F8_E4M3", "I8"
INPUT_GRIDS = {"int8": "int8", "float8": "float8"}
"""By the type and bits of rounded inputs, the name of their grid."""
_TYPES = {
    "weight_packed": ("I32",),
    "weight": (INT8, FLOAT8),
    "weight_shape": ("I64", "I32"),
    "weight_scale": SCALE_TYPES,
    "weight_zero_point": ("I32", INT8),
    "weight_g_idx": ("I32", "I64"),
    "input_scale": SCALE_TYPES,
}


def setting(quantization: Quantization) -> QuantSetting:
    schemes = _schemes(quantization)
    stated = quantization.get("format")
    if stated not in (None, *FORMATS):
        raise LayoutError(f"has the format {quoted(stated)}; those that are read are {', '.join(FORMATS)}")
    weights = _weights(schemes[0])
    kind, bits = weights.get("type"), weights.get("num_bits")
    if (kind, bits) not in [*(("int", bits) for bits in BITS), ("float", 8)]:
        raise LayoutError(
            f"has {quoted(kind)} weights of {quoted(bits)} bits; what is read is integers of 1 to 8 bits and floats of "
            "8"
        )
    group = weights.get("group_size")
    group = group if isinstance(group, int) and group > 0 else None
    a_bits = 8 if _input_grid(quantization) else 16
    title = f"fp{bits}" if kind == "float" else f"int{bits}"
    return QuantSetting(method=f"{NAME}:{title}", w_bits=bits, a_bits=a_bits, group_size=group)


def _schemes(quantization: Quantization) -> list[dict[str, Any]]:
    """What the configuration says of each group of linears."""
    groups = quantization.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    if not schemes or not all(isinstance(scheme, dict) for scheme in schemes):
        raise LayoutError("does not say how it is quantized: its config.json should have config_groups")
    return schemes


def _weights(scheme: dict[str, Any]) -> dict[str, Any]:
    weights = scheme.get("weights")
    return weights if isinstance(weights, dict) else {}


def _input_grid(quantization: Quantization) -> str | None:
    """The grid that inputs are rounded to, the same for all linears; None where they stay as they are."""
    grids = set()
    for scheme in _schemes(quantization):
        inputs = scheme.get("input_activations")
        if not inputs:
            grids.add(None)
            continue
        stated = inputs if isinstance(inputs, dict) else {}
        kind, per_token = f"{stated.get('type')}{stated.get('num_bits')}", stated.get("strategy") == "token"
        known = kind in INPUT_GRIDS and stated.get("symmetric", True) is True
        if not known or not (per_token if stated.get("dynamic") else stated.get("strategy") == "tensor"):
            raise LayoutError(
                "rounds its inputs in a way that is not read; what is read is symmetric 8-bit integers or floats, a "
                "token at a time or with a scale for all"
            )
        grids.add(INPUT_GRIDS[kind])
    if len(grids) > 1:
        raise LayoutError("rounds the inputs of some linears and not of others, which is not read: give another")
    return grids.pop()


def shape(tensors: Mapping[str, StoredTensor], quantization: Quantization) -> tuple[int, int]:
    check_types(tensors, _TYPES)
    if ("weight_packed" in tensors) == ("weight" in tensors):
        raise LayoutError("it should have either weight_packed or weight")
    rows, columns = _size(tensors)
    scale = tensors["weight_scale"]
    groups = _groups(scale.shape, rows, columns, quantization)
    _check_groups(groups, columns, quantization)
    if "weight_g_idx" in tensors:
        check_shape("weight_g_idx", tensors["weight_g_idx"], (columns,))
    if "input_scale" in tensors and tensors["input_scale"].shape not in ((), (1,)):
        raise LayoutError(f"input_scale is {list(tensors['input_scale'].shape)}, and should be [1]")
    zeros = tensors.get("weight_zero_point")
    if zeros and "weight_packed" in tensors:
        bits = _bits(tensors["weight_packed"].shape[1], columns, quantization)
        check_shape("weight_zero_point", zeros, (words_per_row(rows, bits), groups))
    elif zeros:
        check_shape("weight_zero_point", zeros, scale.shape)
    elif all(_weights(scheme).get("symmetric") is False for scheme in _schemes(quantization)):
        raise LayoutError("weight_zero_point is missing, and config.json says that no grid is symmetric")
    return rows, columns


def _size(tensors: Mapping[str, StoredTensor]) -> tuple[int, int]:
    if "weight" in tensors:
        if len(tensors["weight"].shape) != 2:
            raise LayoutError("weight should have two dimensions")
        return tensors["weight"].shape
    stated = tensors.get("weight_shape")
    if not isinstance(stated, ReadTensor) or stated.shape != (2,):
        raise LayoutError("weight_shape should hold two numbers")
    rows, columns = stated.values.tolist()
    packed = tensors["weight_packed"]
    if min(rows, columns) < 1 or columns > 32 * packed.shape[-1]:
        raise LayoutError(f"weight_shape [{rows}, {columns}] does not fit weight_packed {list(packed.shape)}")
    check_shape("weight_packed", packed, (rows, packed.shape[-1]))
    return rows, columns


def _bits(words: int, columns: int, quantization: Quantization) -> int:
    """The width whose codes of a row take so many words."""
    fitting = [bits for bits in BITS if words_per_row(columns, bits) == words]
    stated = [_weights(scheme).get("num_bits") for scheme in _schemes(quantization)]
    if not fitting:
        raise LayoutError(f"weight_packed has {words} words a row, which do not hold codes of {columns} columns")
    bits = next((bits for bits in stated if bits in fitting), None)
    if bits is None:
        widths = " or ".join(map(quoted, stated))
        raise LayoutError(f"weight_packed holds codes of {fitting[0]} bits, and config.json says {widths}")
    return bits


def _groups(scale: tuple[int, ...], rows: int, columns: int, quantization: Quantization) -> int:
    """Groups of a row's columns that share a scale. Raises LayoutError for scales that fit no strategy."""
    if scale in ((), (1,), (1, 1), (rows,), (rows, 1)):
        return 1
    if len(scale) == 2 and scale[0] == rows and columns % scale[1] == 0:
        return scale[1]
    block = _block(quantization)
    if block and scale == (-(-rows // block[0]), -(-columns // block[1])):
        return scale[1]
    raise LayoutError(f"weight_scale {list(scale)} does not fit [{rows}, {columns}]")


def _check_groups(groups: int, columns: int, quantization: Quantization) -> None:
    """Raises LayoutError if the configuration states other groups, for all linears that have any."""
    sizes = [_weights(scheme).get("group_size") for scheme in _schemes(quantization)]
    sizes = [size for size in sizes if isinstance(size, int) and size > 0]
    if groups > 1 and sizes and not _block(quantization) and columns not in [groups * size for size in sizes]:
        stated = " or ".join(map(str, sizes))
        raise LayoutError(
            f"weight_scale has {groups} scales for {columns} columns, and config.json says groups of {stated}"
        )


def _block(quantization: Quantization) -> tuple[int, int] | None:
    stated = _weights(_schemes(quantization)[0]).get("block_structure")
    whole = isinstance(stated, list) and len(stated) == 2 and all(type(n) is int and n > 0 for n in stated)
    return tuple(stated) if whole else None


def weight(tensors: Mapping[str, torch.Tensor], quantization: Quantization) -> StoredWeight:
    packed = "weight_packed" in tensors
    rows, columns = tensors["weight_shape"].tolist() if packed else tensors["weight"].shape
    scales, group = _by_rows(tensors["weight_scale"], rows, columns, quantization)
    zeros = tensors.get("weight_zero_point")
    if not packed and tensors["weight"].dtype == torch.float8_e4m3fn:
        if zeros is not None and zeros.any():
            raise LayoutError("8-bit floats should have no zero points")
        stored = scaled.Float8.pack(tensors["weight"], scales, group)
    elif packed:
        bits = _bits(tensors["weight_packed"].shape[1], columns, quantization)
        codes = packing.unpack(tensors["weight_packed"].contiguous(), bits, columns)
        if zeros is not None:
            zeros = packing.unpack(zeros.T.contiguous(), bits, rows).T
        stored = _integers(codes, scales, zeros, bits, group, tensors.get("weight_g_idx"), quantization)
    else:
        codes = tensors["weight"].view(torch.uint8) ^ 128  # signed bytes: the middle becomes 128
        if zeros is not None:
            zeros = _by_rows(zeros.view(torch.uint8) ^ 128, rows, columns, quantization)[0] if zeros.any() else None
        stored = _integers(codes, scales, zeros, 8, group, None, quantization)
    grid = _input_grid(quantization)
    return rounded_inputs.RoundedInputs(stored, grid, tensors.get("input_scale")) if grid else stored


def _by_rows(values: torch.Tensor, rows: int, columns: int, quantization: Quantization) -> tuple[torch.Tensor, int]:
    """Scales as [rows, groups], and the columns of a group."""
    groups = _groups(tuple(values.shape), rows, columns, quantization)
    values = values.reshape(-1, groups)
    if len(values) not in (1, rows):
        height, width = _block(quantization)
        return values.repeat_interleave(height, 0)[:rows], width
    return values.expand(rows, groups), -(-columns // groups)


def _integers(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    group: int,
    groups_of: torch.Tensor | None,
    quantization: Quantization,
) -> StoredWeight:
    """Grouped integers with float16 scales where those are exact, else with scales as they are."""
    order = None
    if groups_of is not None and not (groups_of == -1).all():  # -1 in all columns: in order
        group, order = columns_of(groups_of, codes.shape[1], scales.shape[1], quantization)
        codes = codes if order is None else codes[:, order]
    try:
        return grouped.GroupedInt.pack(codes, half(scales), zeros, bits, group, order)
    except LayoutError:
        return scaled.ScaledInt.pack(codes, scales, zeros, bits, group, order)


def write(weight: StoredWeight, layout: str) -> dict[str, torch.Tensor]:
    weight, codes, zeros = integers(weight, f"{NAME} checkpoints")
    if weight.ordered:
        raise LayoutError(
            f"its columns are in an order of their own (act-order), which {NAME} can't say: export to gptq"
        )
    if weight.in_features % weight.group:
        raise LayoutError(f"{weight.in_features} columns are not whole groups of {weight.group}")
    tensors = {
        "weight_packed": packing.pack(codes, weight.bits),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor([weight.out_features, weight.in_features]),
    }
    if not weight.symmetric:
        tensors["weight_zero_point"] = packing.pack(zeros.T, weight.bits).T.contiguous()
    return tensors


def config(weights: Sequence[GroupedInt], layout: str) -> Quantization:
    first = weights[0]
    if any((w.bits, w.symmetric) != (first.bits, first.symmetric) for w in weights):
        raise LayoutError("its layers differ in width")
    if len({w.groups == 1 or w.group for w in weights}) > 1:
        raise LayoutError("its layers differ in group size")
    by_group = first.groups > 1
    scheme = {
        "num_bits": first.bits,
        "type": "int",
        "symmetric": first.symmetric,
        "strategy": "group" if by_group else "channel",
        "group_size": first.group if by_group else None,
        "dynamic": False,
    }
    return {
        "quant_method": NAME,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None}},
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
    }


FORMAT = Format(
    name=NAME,
    title=NAME,
    setting=setting,
    parts=tuple(_TYPES),
    marks=("weight_packed", "weight_scale"),
    optional=tuple(name for name in _TYPES if name != "weight_scale"),
    small=("weight_shape",),
    shape=shape,
    weight=weight,
    layouts=(NAME,),
    write=write,
    config=config,
)
