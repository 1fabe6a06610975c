"""What each patch of a picture holds: up to three characters side by side, a mark and a colour.

A picture is seen as LLaVA-NeXT sees it: once whole, squeezed into one tile, and once cut into tiles at full size. Both
views have labels; text that is too small to read in a view is labelled as "text" and not by its characters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from quant_engine.demo.diagrams import DIRECTIONS
from quant_engine.demo.drawing import COLOURS, Drawing
from quant_engine.demo.model import PATCH, TILE
from quant_engine.demo.scenes import SHAPES

SIDE = TILE // PATCH  # patches along a tile
CHARACTERS = tuple(chr(code) for code in range(33, 127))
SLOTS = 3  # characters that a patch can hold: one in its left, one in its middle and one in its right third
MARKS = (*SHAPES, *(f"arrow {d}" for d in DIRECTIONS), "arrow tail", "text")
FIELDS = (*(1 + len(CHARACTERS),) * SLOTS, 1 + len(MARKS), 1 + len(COLOURS))  # classes of each field; 0 means none
READABLE = 11.0  # font size in pixels of the view, from which characters are labelled

_CHARACTER = {c: i + 1 for i, c in enumerate(CHARACTERS)}
_MARK = {m: i + 1 for i, m in enumerate(MARKS)}


@dataclass(frozen=True)
class Seen:
    """A picture as the model gets it.

    `tiles` uint8 [1 + rows * columns, TILE, TILE, 3]: the whole picture squeezed, then its tiles row by row.
    `whole` uint8 [SIDE, SIDE, fields]: labels of the squeezed view; `parts` uint8 [rows * SIDE, columns * SIDE,
    fields].
    """

    tiles: np.ndarray
    whole: np.ndarray
    parts: np.ndarray

    def tile_labels(self) -> np.ndarray:
        """Labels of every tile, in the order of `tiles`: uint8 [tiles, SIDE, SIDE, fields]."""
        if not len(self.parts):
            return self.whole[None]
        rows, columns, fields = self.parts.shape
        cut = self.parts.reshape(rows // SIDE, SIDE, columns // SIDE, SIDE, fields).transpose(0, 2, 1, 3, 4)
        return np.concatenate([self.whole[None], cut.reshape(-1, SIDE, SIDE, fields)])


def see(drawing: Drawing) -> Seen:
    """The two views of a picture whose sides are multiples of TILE, and their labels."""
    whole, parts = grids(drawing)
    image = drawing.image
    pixels = np.asarray(image)
    rows, columns = image.height // TILE, image.width // TILE
    cut = pixels.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    squeezed = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return Seen(np.concatenate([squeezed[None], cut]), whole, parts)


def tile_of(drawing: Drawing) -> Seen:
    """A picture of exactly one tile, seen alone at full size."""
    labels = _labels(drawing, SIDE, SIDE, 1.0, 1.0)
    return Seen(np.asarray(drawing.image)[None], labels, labels[:0])


def grids(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the squeezed view [SIDE, SIDE, fields] and of the full one [height / PATCH, width / PATCH, fields]."""
    width, height = drawing.image.size
    return (
        _labels(drawing, SIDE, SIDE, TILE / width, TILE / height),
        _labels(drawing, height // PATCH, width // PATCH, 1.0, 1.0),
    )


def _labels(drawing: Drawing, rows: int, columns: int, scale_x: float, scale_y: float) -> np.ndarray:
    labels = np.zeros((rows, columns, SLOTS + 2), np.uint8)
    step_x, step_y = scale_x / PATCH, scale_y / PATCH
    for glyph in sorted(drawing.glyphs, key=lambda g: g.x):
        row, column = int(glyph.y * step_y), int(glyph.x * step_x)
        if glyph.size * min(scale_x, scale_y) < READABLE:
            labels[row, column, SLOTS] = _MARK["text"]
        else:
            third = int(SLOTS * (glyph.x * step_x - column))
            free = next(
                (s for s in (third, third + 1, third - 1) if 0 <= s < SLOTS and not labels[row, column, s]), None
            )
            if free is not None:
                labels[row, column, free] = _CHARACTER[glyph.character]
    for mark in drawing.marks:
        labels[int(mark.y * step_y), int(mark.x * step_x), SLOTS] = _MARK[mark.kind]
    labels[..., SLOTS + 1] = _colours(drawing.colours, rows, columns)
    return labels


def _colours(drawn: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The commonest colour of each patch that covers at least a quarter of it, else 0."""
    height, width = drawn.shape
    cells = drawn.reshape(rows, height // rows, columns, width // columns).transpose(0, 2, 1, 3)
    cells = cells.reshape(rows * columns, -1)[:, ::2]
    kinds = len(COLOURS) + 1
    flat = (cells + np.arange(rows * columns, dtype=np.int64)[:, None] * kinds).ravel()
    counts = np.bincount(flat, minlength=rows * columns * kinds).reshape(-1, kinds)[:, 1:]
    best = counts.argmax(1) + 1
    return np.where(counts.max(1) * 4 >= cells.shape[1], best, 0).reshape(rows, columns)
