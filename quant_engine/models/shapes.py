"""How large models are: the widths of a decoder, from its configuration or by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path

from quant_engine import folders
from quant_engine.models.catalog import ModelCard, demo_folder


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
    def embeddings(self) -> int:
        """Parameters of embedding and output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def unquantized(self) -> int:
        """Parameters that stay in 16 bit: embedding, head, norms, and whatever looks at pictures."""
        return self.embeddings + self.hidden * (2 * self.layers + 1) + self.vision


def most_picture_tokens(tile: int, patch: int, grids: Sequence[tuple[int, int]]) -> int:
    """The most tokens that LLaVA-NeXT makes of one picture: those of the whole, and of its tiles with their newlines.

    A picture as large as one of the `grids` (height and width in pixels) fills all its tiles, so that no padding is
    taken off; each row of patches then ends in a newline. The class token of the whole is dropped.
    """
    side = tile // patch
    return side * side + max((height // tile) * side * ((width // tile) * side + 1) for height, width in grids)


def _parameters(file: Path) -> int:
    """The elements in a safetensors file, from its header; 0 if it can't be read."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error):
        return 0
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


_SMOLLM2 = {"hidden": 576, "intermediate": 1536, "layers": 30, "key_width": 192, "vocabulary": 49152, "tied": True}
_LLAMA3_8B = {"hidden": 4096, "intermediate": 14336, "layers": 32, "key_width": 1024, "vocabulary": 128256}
_LLAVA_NEXT_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_DEMO_GRIDS = ((288, 288), (288, 576), (576, 288))
_CLIP_AND_PROJECTOR = 304_000_000 + 21_000_000


@lru_cache(maxsize=1)
def shapes() -> dict[str, Shape]:
    """The models whose shape is known, by the name that the leaderboard shows."""
    demo = folders.ASSETS / "demo"
    vision = sum(_parameters(demo / f"{part}.safetensors") for part in ("vision_tower", "projector"))
    return {
        "LLaMA3-8B": Shape(**_LLAMA3_8B),
        "LLaMA3-70B": Shape(8192, 28672, 80, 1024, 128256),
        "LLaVA-Next-8B": Shape(
            **_LLAMA3_8B, vision=_CLIP_AND_PROJECTOR, picture_tokens=most_picture_tokens(336, 14, _LLAVA_NEXT_GRIDS)
        ),
        "LLaMA-7B": Shape(4096, 11008, 32, 4096, 32000),
        "LLaMA2-7B": Shape(4096, 11008, 32, 4096, 32000),
        "SmolLM2-135M": Shape(**_SMOLLM2),
        "Demo LLaVA-NeXT": Shape(**_SMOLLM2, vision=vision, picture_tokens=most_picture_tokens(288, 18, _DEMO_GRIDS)),
    }


def shape_of(card: ModelCard) -> Shape | None:
    """The shape of a model: known by name, or read from the configuration in its folder; None where neither is to be
    had."""
    if card.title in shapes():
        return shapes()[card.title]
    folder = demo_folder(card) if card.origin == "demo" else Path(card.location)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        width, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        head = int(text.get("head_dim") or width // heads)
        return Shape(
            hidden=width,
            intermediate=int(text["intermediate_size"]),
            layers=int(text["num_hidden_layers"]),
            key_width=head * int(text.get("num_key_value_heads") or heads),
            vocabulary=int(text["vocab_size"]),
            tied=bool(text.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError, AttributeError):
        return None
