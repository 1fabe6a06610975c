"""How large models are, and how many bits a setting of the study stores for each weight.

A measured run knows its stored bits from the ledger. The study prints nominal widths only, so for its rows they are
counted here from what each method stores (specified in the method's card), over the shapes of the model's linears.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from quant_engine import folders

SALIENT_SHARE = 0.1
"""The share of columns that BiLLM gives a second sign: the 0.1 of its nominal 1.1 bits."""
LORA_RANK = 64
"""The rank of the adapters in the study's QLoRA and IR-QLoRA rows."""
_BLOCK_SCALE = 8 / 64 + 32 / (64 * 256)  # an 8-bit scale for 64 weights, a 32-bit step for 256 scales


@dataclass(frozen=True)
class Shape:
    """A LLaMA-type decoder, in elements: widths of the hidden state, the MLP, and keys (or values) of one token.

    `vision` counts the parameters of vision tower and projector; `picture_tokens` is the most that one picture takes.
    """

    hidden: int
    intermediate: int
    layers: int
    key_width: int
    vocabulary: int
    tied: bool = False
    vision: int = 0
    picture_tokens: int = 0

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """[out_features, in_features] of the seven linears of a block."""
        wide, keys, middle = self.hidden, self.key_width, self.intermediate
        return ((wide, wide), (keys, wide), (keys, wide), (wide, wide), (middle, wide), (middle, wide), (wide, middle))

    @cached_property
    def quantized(self) -> int:
        """Weights that a method may quantize."""
        return self.layers * sum(rows * columns for rows, columns in self.linears)

    @property
    def kept(self) -> int:
        """Parameters that stay in 16 bit: embedding, head, norms, and whatever looks at pictures."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.hidden * (2 * self.layers + 1) + self.vision


def _parameters(file: Path) -> int:
    """The elements in a safetensors file, from its header; 0 if it can't be read."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
    except (OSError, ValueError, struct.error):
        return 0
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for size in tensor["shape"]:
                elements *= size
            total += elements
    return total


_SMOLLM2 = {"hidden": 576, "intermediate": 1536, "layers": 30, "key_width": 192, "vocabulary": 49152, "tied": True}
_LLAMA3_8B = {"hidden": 4096, "intermediate": 14336, "layers": 32, "key_width": 1024, "vocabulary": 128256}
_CLIP_AND_PROJECTOR = 304_000_000 + 21_000_000


@lru_cache(maxsize=1)
def shapes() -> dict[str, Shape]:
    """The models whose shape is known, by the name that the leaderboard shows."""
    demo = folders.ASSETS / "demo"
    vision = sum(_parameters(demo / f"{part}.safetensors") for part in ("vision_tower", "projector"))
    return {
        "LLaMA3-8B": Shape(**_LLAMA3_8B),
        "LLaMA3-70B": Shape(8192, 28672, 80, 1024, 128256),
        "LLaVA-Next-8B": Shape(**_LLAMA3_8B, vision=_CLIP_AND_PROJECTOR, picture_tokens=2880),
        "LLaMA-7B": Shape(4096, 11008, 32, 4096, 32000),
        "LLaMA2-7B": Shape(4096, 11008, 32, 4096, 32000),
        "SmolLM2-135M": Shape(**_SMOLLM2),
        "Demo LLaVA-NeXT": Shape(**_SMOLLM2, vision=vision, picture_tokens=264),
    }


def counted_bits(model: str, method: str, w_bits: float, group_size: float | None) -> float | None:
    """Bits per weight that a setting stores with all side data, counted from the method's storage; None if unknown.

    `group_size` None or NaN means one group per row.
    """
    shape = shapes().get(model)
    if w_bits == 16:
        return 16.0
    if shape is None:
        return None
    per_row = group_size is None or group_size != group_size
    bits = 0.0
    for rows, columns in shape.linears:
        group = columns if per_row else min(float(group_size), columns)
        stored = _of_linear(method, w_bits, rows, columns, group)
        if stored is None:
            return None
        bits += stored * rows * columns
    return bits * shape.layers / shape.quantized


def _of_linear(method: str, bits: float, rows: int, columns: int, group: float) -> float | None:
    """Bits per weight of one linear [rows, columns], in groups of `group` weights of a row."""
    adapters = 16 * LORA_RANK * (rows + columns) / (rows * columns)
    match method:
        case "RTN" | "GPTQ" | "AWQ" | "OmniQuant":
            return bits + (16 + bits) / group
        case "SmoothQuant" | "SpinQuant" | "I-LLM":
            return bits + 16 / group
        case "QuIP":
            return bits + 16 / rows
        case "DB-LLM":
            return bits + 32 / group
        case "SliM-LLM":
            return bits + (16 + bits) / group + 8 / (group * rows)
        case "PB-LLM":  # nominal 1 + 7 r; a mark for each weight, and per group of 128 a mean and a spread
            return bits + 1 + 32 / min(group, 128) + 56 / columns
        case "BiLLM":  # a second sign in salient columns, a mark elsewhere, eight numbers a group of 128
            return 1 + SALIENT_SHARE + (1 - SALIENT_SHARE) + 8 * 16 / min(group, 128)
        case "NormalFloat":
            return bits + _BLOCK_SCALE
        case "QLoRA":
            return bits + _BLOCK_SCALE + adapters
        case "IR-QLoRA":
            return bits + 2 * _BLOCK_SCALE + adapters
    return None


def weight_bytes(model: str, stored_bits: float) -> float | None:
    """Bytes of all weights when those that can be quantized take `stored_bits` each; None for an unknown model."""
    shape = shapes().get(model)
    return None if shape is None else shape.quantized * stored_bits / 8 + shape.kept * 2
