"""A canvas that remembers where each character, shape and colour was drawn: the dense labels of a picture.

Coordinates are pixels, x to the right and y down, of the finished picture (after its slight rotation).
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quant_engine import folders

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (214, 45, 45), "green": (50, 160, 70), "blue": (50, 95, 215),
    "yellow": (238, 205, 50), "orange": (240, 135, 35), "purple": (140, 70, 180),
    "pink": (240, 140, 185), "brown": (130, 85, 50), "gray": (140, 140, 145),
}  # fmt: skip
SHIFTED_COLOURS: dict[str, RGB] = {
    "red": (170, 20, 40), "green": (95, 190, 95), "blue": (35, 60, 160),
    "yellow": (250, 225, 95), "orange": (250, 160, 80), "purple": (110, 45, 140),
    "pink": (250, 165, 205), "brown": (105, 65, 40), "gray": (115, 115, 120),
}  # fmt: skip
FONTS = (
    "built-in", "IBMPlexSans-Regular", "IBMPlexSans-Bold", "SourceSansPro-Regular",
    "SourceSansPro-Bold", "KaTeX_Main-Regular", "IBMPlexMono-Regular",
)  # fmt: skip
SHIFTED_FONTS = ("Quicksand-Regular", "Quicksand-Bold", "Inconsolata-Regular", "KaTeX_SansSerif-Regular")
LIGHT_GROUNDS: tuple[RGB, ...] = (
    (255, 255, 255), (255, 255, 255), (250, 250, 246), (245, 240, 230),
    (232, 240, 250), (240, 248, 238), (252, 238, 240),
)  # fmt: skip
DARK_INKS: tuple[RGB, ...] = ((0, 0, 0), (25, 25, 30), (25, 35, 75), (60, 60, 60))
LIGHT_INKS: tuple[RGB, ...] = ((235, 235, 235), (250, 250, 250))
DARK_GROUNDS: tuple[RGB, ...] = ((28, 30, 38), (20, 38, 52), (45, 40, 38))
SIZES = (*((288, 288),) * 8, (576, 288), (288, 576))  # width, height


@dataclass(frozen=True)
class Glyph:
    """One drawn character: its centre (for y that of its line) and the size of its font in pixels.

    `word` is what stands around it between spaces, and `run` numbers the words of a picture.
    """

    character: str
    x: float
    y: float
    size: float
    word: str
    run: int


@dataclass(frozen=True)
class Mark:
    """One drawn thing that is no text: `kind` such as "circle", "arrow right" or "bar top", at its centre."""

    kind: str
    x: float
    y: float


ROLES = ("first", "last", "largest", "smallest")
FIRST, LAST, LARGEST, SMALLEST = range(-1, -1 - len(ROLES), -1)  # in the place of a run, which is never negative


@dataclass(frozen=True)
class Drawing:
    """A finished picture and what lies where. `colours` [height, width] holds 0, or 1 + the index in COLOURS.

    `links` are pairs of runs: the first leads to the second (a label to its value, a box to where its arrow leads). In
    place of a run there can be one of the ROLES, as in (LARGEST, a label) or (a box, LAST). `count` is how many bars,
    boxes, rows, items or shapes there are; 0 where nobody counts.
    """

    image: Image.Image
    glyphs: tuple[Glyph, ...]
    marks: tuple[Mark, ...]
    colours: np.ndarray
    links: tuple[tuple[int, int], ...] = ()
    count: int = 0


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font by name at a size in pixels. Basic layout, so that the same text is drawn the same everywhere."""
    if name == "built-in":
        return ImageFont.load_default(size)
    path = folders.ASSETS / "demo" / "fonts" / f"{name}.woff2"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _advance(name: str, size: int, character: str) -> float:
    return font(name, size).getlength(character)


@dataclass
class Canvas:
    """A blank picture in a style drawn from `rng`; with `shifted`, in fonts and palettes never trained on."""

    rng: random.Random
    width: int
    height: int
    shifted: bool = False
    glyphs: list[Glyph] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    _runs: int = 0

    def __post_init__(self) -> None:
        rng = self.rng
        dark = rng.random() < 0.06
        self.ground = _jitter(rng, rng.choice(DARK_GROUNDS if dark else LIGHT_GROUNDS), 4)
        ink = _jitter(rng, rng.choice(LIGHT_INKS if dark else DARK_INKS), 4)
        self.ink = ink
        self.faint = tuple((2 * g + i) // 3 for g, i in zip(self.ground, ink, strict=True))
        self.font = rng.choice(SHIFTED_FONTS if self.shifted else FONTS)
        self.second_font = rng.choice(SHIFTED_FONTS if self.shifted else FONTS) if rng.random() < 0.4 else self.font
        palette = SHIFTED_COLOURS if self.shifted else COLOURS
        self.palette = {name: _jitter(rng, rgb, 14) for name, rgb in palette.items()}
        self.image = Image.new("RGB", (self.width, self.height), self.ground)
        self.draw = ImageDraw.Draw(self.image)
        self._labels = Image.new("L", (self.width, self.height), 0)
        self._label_draw = ImageDraw.Draw(self._labels)

    # ------------------------------------------------------------------------------------------------------ text

    def text_width(self, text: str, size: int, name: str | None = None) -> float:
        return sum(_advance(name or self.font, size, c) for c in text)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int,
        *,
        anchor: str = "l",
        ink: RGB | None = None,
        name: str | None = None,
    ) -> int:
        """One line of text whose middle height is `y`; `x` is its left end ("l"), middle ("m") or right end ("r").

        Returns the run of its first word.
        """
        first = self._runs + 1
        name = name or self.font
        width = self.text_width(text, size, name)
        x -= {"l": 0.0, "m": width / 2, "r": width}[anchor]
        self.draw.text((x, y), text, font=font(name, size), fill=ink or self.ink, anchor="lm")
        for word in text.split(" "):
            self._runs += 1
            for character in word:
                advance = _advance(name, size, character)
                self.glyphs.append(Glyph(character, x + advance / 2, y, size, word, self._runs))
                x += advance
            x += _advance(name, size, " ")
        return first

    def link(self, start: int, end: int) -> None:
        """The run `start` leads to the run `end`; one of both can be a role."""
        self.links.append((start, end))

    # ---------------------------------------------------------------------------------------------------- shapes

    def mark(self, kind: str, x: float, y: float) -> None:
        self.marks.append(Mark(kind, x, y))

    def rectangle(self, box: tuple[float, float, float, float], colour: str, outline: RGB | None = None) -> None:
        """A rectangle (left, top, right, bottom) filled with a named colour."""
        self.draw.rectangle(box, fill=self.palette[colour], outline=outline)
        self._label_draw.rectangle(box, fill=_label(colour))

    def ellipse(self, box: tuple[float, float, float, float], colour: str) -> None:
        self.draw.ellipse(box, fill=self.palette[colour])
        self._label_draw.ellipse(box, fill=_label(colour))

    def polygon(self, points: list[Point], colour: str) -> None:
        self.draw.polygon(points, fill=self.palette[colour])
        self._label_draw.polygon(points, fill=_label(colour))

    def slice(self, box: tuple[float, float, float, float], start: float, end: float, colour: str) -> None:
        """A slice of a pie; angles in degrees, clockwise from three o'clock."""
        self.draw.pieslice(box, start, end, fill=self.palette[colour], outline=self.ground, width=2)
        self._label_draw.pieslice(box, start, end, fill=_label(colour))

    def stroke(self, points: list[Point], colour: str, width: int) -> None:
        """A line through points in a named colour."""
        self.draw.line(points, fill=self.palette[colour], width=width, joint="curve")
        self._label_draw.line(points, fill=_label(colour), width=width + 4)

    def clear(self, box: tuple[float, float, float, float]) -> None:
        """Paint the background over a box."""
        self.draw.rectangle(box, fill=self.ground)
        self._label_draw.rectangle(box, fill=0)

    # -------------------------------------------------------------------------------------------------- finishing

    def finish(self) -> Drawing:
        """The picture after a slight rotation and slight noise, and its labels, moved likewise."""
        rng, image, labels = self.rng, self.image, self._labels
        glyphs, marks = self.glyphs, self.marks
        if rng.random() < 0.2:
            angle = rng.uniform(-1.5, 1.5)
            image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=self.ground)
            labels = labels.rotate(angle, Image.Resampling.NEAREST)
            turn = functools.partial(_turn, angle=angle, cx=self.width / 2, cy=self.height / 2)
            glyphs = [Glyph(g.character, *turn(g.x, g.y), g.size, g.word, g.run) for g in glyphs]
            marks = [Mark(m.kind, *turn(m.x, m.y)) for m in marks]
        if rng.random() < 0.5:
            strength = rng.randint(2, 7)
            noise = np.random.default_rng(rng.getrandbits(32)).integers(
                -strength, strength + 1, (self.height, self.width, 3), dtype=np.int16
            )
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        glyphs_inside = [g for g in glyphs if 0 <= g.x < self.width and 0 <= g.y < self.height]
        marks_inside = [m for m in marks if 0 <= m.x < self.width and 0 <= m.y < self.height]
        return Drawing(
            image, tuple(glyphs_inside), tuple(marks_inside), np.asarray(labels), tuple(self.links), self.count
        )


def star(x: float, y: float, radius: float) -> list[Point]:
    """The ten corners of a five-pointed star."""
    angles = [-math.pi / 2 + i * math.pi / 5 for i in range(10)]
    radii = [radius if i % 2 == 0 else 0.45 * radius for i in range(10)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _label(colour: str) -> int:
    return 1 + list(COLOURS).index(colour)


def _jitter(rng: random.Random, rgb: RGB, amount: int) -> RGB:
    return tuple(min(255, max(0, c + rng.randint(-amount, amount))) for c in rgb)


def _turn(x: float, y: float, *, angle: float, cx: float, cy: float) -> Point:
    """Where PIL's counter-clockwise rotation by `angle` degrees about (cx, cy) moves a point."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return cx + cos * (x - cx) + sin * (y - cy), cy - sin * (x - cx) + cos * (y - cy)
