"""What each patch of a picture holds: up to three characters in reading order, a mark, a colour, a word, and places.

A word that training shows often (`words.common_words`) is named in the patch where it starts, so that the language
model can be given it in one piece, as in text; the patches behind it are labelled as its continuation.

Each patch of a word or number also tells the column of its centre (what stands under what is centred alike), the place
of what it leads to (a label's value, the box that an arrow leads to), and the place of what leads to it. What that is,
a word, up to four characters or a role ("largest"), is told in a patch of its own right behind: the language model
then reads "Oslo 83 largest" as in text. So the tower learns what belongs to what, from a whole picture at once.

The first patch of a view that shows all of the picture tells how many things there are to count.

A picture is seen as LLaVA-NeXT sees it: once whole, squeezed into one tile, and once cut into tiles at full size. Both
views have labels; text that is too small to read in a view is labelled as "text" and not by its characters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from quant_engine.data.drawn.diagrams import DIRECTIONS
from quant_engine.data.drawn.drawing import COLOURS, ROLES, Drawing, Glyph
from quant_engine.data.drawn.scenes import SHAPES
from quant_engine.data.drawn.words import common_words
from quant_engine.demo.model import PATCH, TILE

SIDE = TILE // PATCH  # patches along a tile
CHARACTERS = tuple(chr(code) for code in range(33, 127))
SLOTS = 3  # characters that a patch can hold, in reading order
MARK, COLOUR, WORD = SLOTS, SLOTS + 1, SLOTS + 2  # the fields behind the characters
MARKS = (*SHAPES, *(f"arrow {d}" for d in DIRECTIONS), "arrow tail", "text")
WORDS = common_words()
CONTINUED = 1 + len(WORDS)
CENTRE = WORD + 1  # the column of the centre
TO, FROM = slice(CENTRE + 1, CENTRE + 3), slice(CENTRE + 3, CENTRE + 5)  # row and column within the tile
LINKED_SLOTS = 4  # characters of what is linked, if it is no known word
LINKED = slice(CENTRE + 5, CENTRE + 5 + LINKED_SLOTS)
LINKED_WORD = LINKED.stop  # a known word, or one of the ROLES
COUNT = LINKED_WORD + 1
MOST = 9
# Classes of each field; 0 means none.
FIELDS = (
    *(1 + len(CHARACTERS),) * SLOTS,
    1 + len(MARKS),
    1 + len(COLOURS),
    2 + len(WORDS),
    *(1 + SIDE,) * 5,
    *(1 + len(CHARACTERS),) * LINKED_SLOTS,
    1 + len(WORDS) + len(ROLES),
    1 + MOST,
)
PUNCTUATION = ":,.;!?"
READABLE = 11.0  # font size in pixels of the view, from which characters are labelled

Cell = tuple[int, int]  # row and column of a patch

_CHARACTER = {c: i + 1 for i, c in enumerate(CHARACTERS)}
_MARK = {m: i + 1 for i, m in enumerate(MARKS)}
_WORD = {w: i + 1 for i, w in enumerate(WORDS)}


@dataclass(frozen=True)
class Views:
    """A picture as the model gets it.

    `tiles` uint8 [1 + rows * columns, TILE, TILE, 3]: the whole picture squeezed, then its tiles row by row.
    `whole` uint16 [SIDE, SIDE, fields]: labels of the squeezed view; `parts` uint16 [rows * SIDE, columns * SIDE,
    fields].
    """

    tiles: np.ndarray
    whole: np.ndarray
    parts: np.ndarray

    def tile_labels(self) -> np.ndarray:
        """Labels of every tile, in the order of `tiles`: uint16 [tiles, SIDE, SIDE, fields]."""
        if not len(self.parts):
            return self.whole[None]
        rows, columns, fields = self.parts.shape
        cut = self.parts.reshape(rows // SIDE, SIDE, columns // SIDE, SIDE, fields).transpose(0, 2, 1, 3, 4)
        return np.concatenate([self.whole[None], cut.reshape(-1, SIDE, SIDE, fields)])


def cut_views(drawing: Drawing) -> Views:
    """The two views of a picture whose sides are multiples of TILE, and their labels."""
    whole, parts = grids(drawing)
    image = drawing.image
    pixels = np.asarray(image)
    rows, columns = image.height // TILE, image.width // TILE
    cut = pixels.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    squeezed = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return Views(np.concatenate([squeezed[None], cut]), whole, parts)


def tile_of(drawing: Drawing) -> Views:
    """A picture of exactly one tile, seen alone at full size."""
    labels = _labels(drawing, SIDE, SIDE, 1.0, 1.0)
    return Views(np.asarray(drawing.image)[None], labels, labels[:0])


def grids(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the squeezed view [SIDE, SIDE, fields] and of the full one [height / PATCH, width / PATCH, fields]."""
    width, height = drawing.image.size
    return (
        _labels(drawing, SIDE, SIDE, TILE / width, TILE / height),
        _labels(drawing, height // PATCH, width // PATCH, 1.0, 1.0),
    )


def _labels(drawing: Drawing, rows: int, columns: int, scale_x: float, scale_y: float) -> np.ndarray:
    """Labels [rows, columns, fields] of a view that shows the drawing scaled by `scale_x` and `scale_y`."""
    labels = np.zeros((rows, columns, len(FIELDS)), np.uint16)
    step_x, step_y = scale_x / PATCH, scale_y / PATCH
    runs: dict[int, list[Glyph]] = {}
    for glyph in drawing.glyphs:
        runs.setdefault(glyph.run, []).append(glyph)
    readable: dict[int, list[Cell]] = {}
    for number, run in sorted(runs.items(), key=lambda item: item[1][0].x):
        cells = [(int(g.y * step_y), int(g.x * step_x)) for g in run]
        if run[0].size * min(scale_x, scale_y) < READABLE:
            for cell in cells:
                labels[*cell, MARK] = _MARK["text"]
            continue
        for glyph, cell in zip(run, cells, strict=True):
            free = np.flatnonzero(labels[cell][:SLOTS] == 0)
            if len(free):
                labels[*cell, free[0]] = _CHARACTER[glyph.character]
        _name_word(labels, run, cells)
        readable[number] = cells
        middle = int(sum(g.x for g in run) / len(run) * step_x)
        for cell in cells:
            if cell[1] // SIDE == middle // SIDE:
                labels[*cell, CENTRE] = 1 + middle % SIDE
    texts = {number: "".join(glyph.character for glyph in run) for number, run in runs.items()}
    _label_links(labels, drawing.links, readable, texts)
    for mark in drawing.marks:
        labels[int(mark.y * step_y), int(mark.x * step_x), MARK] = _MARK[mark.kind]
    labels[..., COLOUR] = _colours(drawing.colours, rows, columns)
    if rows == columns == SIDE:
        labels[0, 0, COUNT] = min(drawing.count, MOST)
    return labels


def _name_word(labels: np.ndarray, run: list[Glyph], cells: list[Cell]) -> None:
    """Label a known word in the patch where it starts.

    A word that a tile's edge cuts is named if most of it lies in its first tile; the rest of it is then only characters
    of the next tile, which can't know what they belong to.
    """
    code = _WORD.get(run[0].word.rstrip(PUNCTUATION))
    if code is None or run[0].character != run[0].word[0]:
        return
    inside = [cell for cell in cells if _tile(cell) == _tile(cells[0])]
    if len(inside) < min(len(run[0].word), max(3, 0.6 * len(run[0].word))):
        return
    for cell in inside[1:]:
        if not labels[*cell, WORD]:
            labels[*cell, WORD] = CONTINUED
    labels[*inside[0], WORD] = code


def _label_links(
    labels: np.ndarray, links: tuple[tuple[int, int], ...], readable: dict[int, list[Cell]], texts: dict[int, str]
) -> None:
    """Label each run that leads to exactly one other, in the same tile, with where that one's centre is and what it is.

    What it is stands in a patch of its own behind the run, as in "Oslo 83"; then, alike, what leads to the run.

    Args:
        labels: [rows, columns, fields], filled in here.
        links: pairs of runs, or of a run and a role.
        readable: the patches of each run that can be read.
        texts: the characters of each run.
    """
    for run, (targets, sources) in _link_ends(links).items():
        used = 0
        for ends, here, other in ((targets, TO, FROM), (sources, FROM, TO)):
            end = _link_end(labels, run, ends[0], readable, texts) if len(ends) == 1 and run in readable else None
            if end is None:
                continue
            spots = _free_spots(labels, end.cells)
            for cell in end.cells:
                if not labels[*cell, LINKED].any() and not labels[*cell, LINKED_WORD]:
                    labels[*cell, here] = end.position
            named = end.word not in (0, CONTINUED)
            if used >= len(spots) or not (named or len(end.text) <= LINKED_SLOTS):
                continue
            spot = spots[used]
            used += 1
            labels[*spot, here], labels[*spot, other] = end.position, 0
            if named:
                labels[*spot, LINKED_WORD] = end.word
            else:
                characters = [_CHARACTER[c] for c in end.text]
                labels[*spot, LINKED] = characters + [0] * (LINKED_SLOTS - len(characters))


def _link_ends(links: tuple[tuple[int, int], ...]) -> dict[int, tuple[list[int], list[int]]]:
    """For each run what it leads to, and what leads to it."""
    ends: dict[int, tuple[list[int], list[int]]] = {}
    for start, end in links:
        ends.setdefault(start, ([], []))[0].append(end)
    for start, end in links:
        ends.setdefault(end, ([], []))[1].append(start)
    return ends


@dataclass(frozen=True)
class _LinkEnd:
    """The other end of a run's link, as the run's patches tell it.

    `position` is 1 + row and 1 + column of its centre in the tile, (0, 0) for a role; `word` the code of a known word
    or a role, 0 for neither; `cells` are the patches of the run itself that lie in the same tile.
    """

    position: tuple[int, int]
    word: int
    text: str
    cells: list[Cell]


def _link_end(
    labels: np.ndarray, run: int, end: int, readable: dict[int, list[Cell]], texts: dict[int, str]
) -> _LinkEnd | None:
    """The end of a link as `run` tells it; None if it can't be read or shares no tile with the run."""
    role = -end if end < 0 else 0
    if not role and end not in readable:
        return None
    row, column = readable[run if role else end][0]
    centre, word = (int(label) for label in labels[row, column, [CENTRE, WORD]])
    cells = [cell for cell in dict.fromkeys(readable[run]) if _tile(cell) == _tile((row, column))]
    if not centre or not cells:
        return None
    if role:
        return _LinkEnd((0, 0), len(WORDS) + role, "", cells)
    return _LinkEnd((1 + row % SIDE, centre), word, texts.get(end, ""), cells)


def _tile(cell: Cell) -> Cell:
    """Row and column of the tile that a patch lies in."""
    return cell[0] // SIDE, cell[1] // SIDE


def _free_spots(labels: np.ndarray, inside: list[Cell]) -> list[Cell]:
    """The patches behind a run's first that tell nothing yet: a known word's own, then up to two to its right."""
    own = [cell for cell in inside[1:] if labels[*cell, WORD] == CONTINUED]
    row, last = inside[-1]
    edge = (last // SIDE + 1) * SIDE
    right = ((row, column) for column in range(last + 1, min(last + 3, edge)))
    return own + list(itertools.takewhile(lambda cell: not labels[*cell, :SLOTS].any(), right))


def _colours(colours: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The commonest colour of each patch that covers at least a quarter of it, else 0."""
    height, width = colours.shape
    cells = colours.reshape(rows, height // rows, columns, width // columns).transpose(0, 2, 1, 3)
    cells = cells.reshape(rows * columns, -1)[:, ::2]
    kinds = len(COLOURS) + 1
    flat = (cells + np.arange(rows * columns, dtype=np.int64)[:, None] * kinds).ravel()
    counts = np.bincount(flat, minlength=rows * columns * kinds).reshape(-1, kinds)[:, 1:]
    best = counts.argmax(1) + 1
    return np.where(counts.max(1) * 4 >= cells.shape[1], best, 0).reshape(rows, columns)
