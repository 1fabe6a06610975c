"""bitsandbytes checkpoints: 4 bits from a table of levels (NF4, FP4), or rows of 8-bit integers (LLM.int8()).

For a linear with in_features n and out_features m:

    weight                  uint8 [m n / 2, 1]     two codes a byte, the first in the upper four bits, row after row
    weight.absmax           float32 [blocks]       the scale of each block of weights; doubly quantized uint8
    weight.quant_map        float32 [16]           the levels
    weight.nested_absmax    float32 [blocks / 256] doubly quantized: the step of each 256 scales
    weight.nested_quant_map float32 [256]          and what their codes stand for
    weight.quant_state.bitsandbytes__nf4 (or fp4)  the rest as JSON in uint8: shape, blocksize, nested_offset

    w = level[code] * scale        scale = map[absmax] * step + offset, where it is doubly quantized

    weight                  int8 [m, n]            w = SCB * code / 127
    SCB                     float32 [m]
    weight_format           uint8 []               0: rows as they are
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quant_engine.deferred import deferred
from quant_engine.formats.contract import Format, LayoutError, Quantization, ReadTensor, check_shape, check_types
from quant_engine.models.check import StoredTensor
from quant_engine.spec import QuantSetting, quoted

torch = deferred("torch")
codebook = deferred("quant_engine.weights.codebook")
rounded_inputs = deferred("quant_engine.weights.rounded_inputs")
scaled = deferred("quant_engine.weights.scaled")

if TYPE_CHECKING:
    from quant_engine.weights.form import StoredWeight

NAME = "bitsandbytes"
NF4, FP4 = "nf4", "fp4"
BLOCK = 64
NESTED_BLOCK = 256
_STATES = {kind: f"weight.quant_state.bitsandbytes__{kind}" for kind in (NF4, FP4)}
_TYPES = {
    "weight.absmax": ("F32", "U8"),
    "weight.quant_map": ("F32",),
    "weight.nested_absmax": ("F32",),
    "weight.nested_quant_map": ("F32",),
    **dict.fromkeys(_STATES.values(), ("U8",)),
    "weight_format": ("U8",),
    "SCB": ("F32",),
    "weight": ("U8", "I8"),
}


def setting(quantization: Quantization) -> QuantSetting:
    if _in_8_bits(quantization):
        return QuantSetting(method=f"{NAME}:int8", w_bits=8, a_bits=8)
    kind = quantization.get("bnb_4bit_quant_type", FP4)
    if kind not in (NF4, FP4):
        raise LayoutError(f"has levels of the type {quoted(kind)}; those that are read are {NF4} and {FP4}")
    return QuantSetting(method=f"{NAME}:{kind}", w_bits=4, group_size=BLOCK)


def _in_8_bits(quantization: Quantization) -> bool:
    return bool(quantization.get("load_in_8bit") or quantization.get("_load_in_8bit"))


def shape(tensors: Mapping[str, StoredTensor], quantization: Quantization) -> tuple[int, int]:
    check_types(tensors, _TYPES)
    bytes_stated, four_bits_stated = _in_8_bits(quantization), quantization.get("load_in_4bit") is True
    if "SCB" in tensors:
        if four_bits_stated and not bytes_stated:
            raise LayoutError("it holds 8-bit integers (SCB), and config.json says load_in_4bit")
        return _shape_of_int8(tensors)
    if bytes_stated and not four_bits_stated:
        raise LayoutError("SCB is missing, and config.json says load_in_8bit")
    state = _state(tensors)
    stated = quantization.get("bnb_4bit_quant_type", state["kind"])
    if stated != state["kind"]:
        raise LayoutError(f"its quant_state is of the type {state['kind']}, and config.json says {quoted(stated)}")
    rows, columns = state["shape"]
    blocks = -(-rows * columns // state["blocksize"])
    shapes = {"weight": (-(-rows * columns // 2), 1), "weight.absmax": (blocks,), "weight.quant_map": (16,)}
    if "weight.absmax" in tensors and tensors["weight.absmax"].dtype == "U8":
        shapes |= {"weight.nested_absmax": (-(-blocks // NESTED_BLOCK),), "weight.nested_quant_map": (256,)}
    for name, wanted in shapes.items():
        if name not in tensors:
            raise LayoutError(f"{name} is missing")
        check_shape(name, tensors[name], wanted)
    return rows, columns


def _shape_of_int8(tensors: Mapping[str, StoredTensor]) -> tuple[int, int]:
    size = tensors["weight"].shape
    if len(size) != 2 or tensors["weight"].dtype != "I8":
        raise LayoutError(f"weight {list(size)} of the type {tensors['weight'].dtype} should be a matrix of I8")
    check_shape("SCB", tensors["SCB"], size[:1])
    layout = tensors.get("weight_format")
    if isinstance(layout, ReadTensor) and layout.values.any():
        raise LayoutError("its rows are in an order of some GPU (weight_format), which is not read")
    return size


def _state(tensors: Mapping[str, StoredTensor | torch.Tensor]) -> dict[str, Any]:
    """What a 4-bit linear says of itself, checked; `kind` is its table's name."""
    found = [(kind, tensors[name]) for kind, name in _STATES.items() if name in tensors]
    if len(found) != 1:
        raise LayoutError("it should have one quant_state")
    kind, stored = found[0]
    values = stored.values if isinstance(stored, ReadTensor) else stored
    try:
        state = json.loads(bytes(values.flatten().tolist()).decode())
    except (AttributeError, ValueError, RecursionError):  # too large to be read, or no JSON
        state = None
    if not isinstance(state, dict):
        raise LayoutError("its quant_state is no JSON object")
    if state.get("quant_type", kind) != kind:
        raise LayoutError(f"its quant_state says the type {quoted(state['quant_type'])}, and its name {kind}")
    size, block = state.get("shape"), state.get("blocksize")
    whole = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 2**31 for n in size)
    if not whole or type(block) is not int or not 0 < block < 2**31:
        raise LayoutError(f"its quant_state has the shape {quoted(size)} and the blocksize {quoted(block)}")
    nested = state.get("nested_blocksize", NESTED_BLOCK), state.get("nested_offset", 0.0)
    if nested[0] != NESTED_BLOCK or type(nested[1]) not in (int, float) or not abs(nested[1]) < 1e30:
        raise LayoutError(
            f"its quant_state has the nested_blocksize {quoted(nested[0])} and the nested_offset {quoted(nested[1])}"
        )
    return {"kind": kind, "shape": tuple(size), "blocksize": block, "offset": float(nested[1])}


def weight(tensors: Mapping[str, torch.Tensor], quantization: Quantization) -> StoredWeight:
    if "SCB" in tensors:
        codes = tensors["weight"].view(torch.uint8) ^ 128  # signed bytes: the middle becomes 128
        scales = tensors["SCB"][:, None] / 127
        integers = scaled.ScaledInt.pack(codes, scales, None, 8, codes.shape[1])
        return rounded_inputs.RoundedInputs(integers, "llm_int8")
    state = _state(tensors)
    rows, columns = state["shape"]
    pairs = tensors["weight"].flatten()
    codes = torch.stack([pairs >> 4, pairs & 15], -1).flatten()[: rows * columns].view(rows, columns)
    form = codebook.Fp4Codebook if state["kind"] == FP4 else codebook.Codebook
    nested = tensors["weight.absmax"].dtype == torch.uint8
    with torch.device("meta"):
        stored = form(rows, columns, 4, state["blocksize"], nested, shifted=False)
    _check_table("levels", tensors["weight.quant_map"], stored.levels())
    stored.codes = codebook.pack(codes, 4)
    stored.scales = tensors["weight.absmax"]
    if nested:
        _check_table("nested levels", tensors["weight.nested_quant_map"], codebook.dynamic_map())
        stored.scale_steps = tensors["weight.nested_absmax"]
        stored.scale_mean = torch.tensor([state["offset"]])
    return stored


def _check_table(title: str, table: torch.Tensor, known: torch.Tensor) -> None:
    if not torch.allclose(table, known, rtol=1e-6, atol=1e-7):
        raise LayoutError(f"its {title} are not those of its type")


FORMAT = Format(
    name=NAME,
    title=NAME,
    setting=setting,
    parts=tuple(_TYPES),
    marks=("weight.quant_map", "SCB"),
    optional=tuple(name for name in _TYPES if name not in ("weight",)),
    small=(*_STATES.values(), "weight_format"),
    shape=shape,
    weight=weight,
)
