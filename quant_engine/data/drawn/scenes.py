"""Scenes: a few coloured shapes on a plain ground, and questions about what is where."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from quant_engine.data.drawn.drawing import COLOURS, SIZES, Canvas, Drawing, star
from quant_engine.data.drawn.questions import Question, yes_no_pair
from quant_engine.data.drawn.words import article, listed, other_numbers, plural

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")


@dataclass(frozen=True)
class Shape:
    kind: str
    colour: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


def draw(rng: random.Random, shifted: bool = False) -> tuple[Drawing, list[Question]]:
    """One to six shapes in the cells of a loose grid."""
    canvas = Canvas(rng, *rng.choice(SIZES), shifted)
    columns, rows = round(canvas.width / 96), round(canvas.height / 96)
    cells = [(c, r) for c in range(columns) for r in range(rows)]
    shapes = []
    colours, kinds = list(COLOURS), list(SHAPES)
    for column, row in rng.sample(cells, rng.randint(1, 6)):
        radius = rng.randint(18, 40)
        slack = max(0, 46 - radius)
        x = (column + 0.5) * canvas.width / columns + rng.uniform(-slack, slack)
        y = (row + 0.5) * canvas.height / rows + rng.uniform(-slack, slack)
        shape = Shape(rng.choice(kinds), rng.choice(colours), x, y)
        draw_shape(canvas, shape, radius)
        shapes.append(shape)
    canvas.count = len(shapes)
    return canvas.finish(), ask(rng, shapes)


def draw_shape(canvas: Canvas, shape: Shape, radius: float) -> None:
    x, y, r, colour = shape.x, shape.y, radius, shape.colour
    if shape.kind == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), colour)
    elif shape.kind == "square":
        canvas.rectangle((x - r, y - r, x + r, y + r), colour)
    elif shape.kind == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], colour)
    elif shape.kind == "diamond":
        canvas.polygon([(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)], colour)
    elif shape.kind == "star":
        canvas.polygon(star(x, y, 1.15 * r), colour)
    else:
        canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), colour)
        canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), colour)
    canvas.mark(shape.kind, x, y)


def ask(rng: random.Random, shapes: list[Shape]) -> list[Question]:
    names = Counter(s.name for s in shapes)
    kinds, colours = Counter(s.kind for s in shapes), Counter(s.colour for s in shapes)
    questions = [_caption(rng, shapes), *_counts(rng, shapes, kinds, colours)]
    for kind in [k for k, n in kinds.items() if n == 1]:
        colour = next(s.colour for s in shapes if s.kind == kind)
        text = rng.choice(("What color is the {}?", "What is the color of the {}?", "Which color does the {} have?"))
        wrong = tuple(c for c in COLOURS if c != colour)
        questions.append(Question("color", text.format(kind), colour, f"The {kind} is {colour}.", wrong))
        questions += yes_no_pair(rng, "color", f"Is the {kind} {{}}?", colour, rng.choice(wrong))
    for colour in [c for c, n in colours.items() if n == 1]:
        kind = next(s.kind for s in shapes if s.colour == colour)
        text = rng.choice(("What shape is {}?", "Which shape is {}?", "What is the {} shape?"))
        wrong = tuple(k for k in SHAPES if k != kind)
        questions.append(Question("shape", text.format(colour), kind, f"The {colour} shape is {article(kind)}.", wrong))
    absent = [f"{c} {k}" for c in COLOURS for k in SHAPES if f"{c} {k}" not in names]
    template = rng.choice(("Is there a {} in the picture?", "Does the picture show a {}?", "Is there a {}?"))
    questions += yes_no_pair(rng, "existence", template, rng.choice(shapes).name, rng.choice(absent))
    unique = [s for s in shapes if names[s.name] == 1]
    if len(unique) >= 2:
        questions += _positions(rng, unique)
    return questions


def _caption(rng: random.Random, shapes: list[Shape]) -> Question:
    text = rng.choice(("Describe the picture.", "What does the picture show?", "What is in the picture?"))
    in_order = sorted(shapes, key=lambda s: (round(s.y / 96), s.x))
    return Question("caption", text, f"The picture shows {listed([article(s.name) for s in in_order])}.")


def _counts(rng: random.Random, shapes: list[Shape], kinds: Counter, colours: Counter) -> list[Question]:
    total = len(shapes)
    verb = "is" if total == 1 else "are"
    text = rng.choice(("How many shapes are there?", "How many shapes are in the picture?", "Count the shapes."))
    sentence = f"There {verb} {plural(total, 'shape')}."
    questions = [Question("count", text, str(total), sentence, other_numbers(rng, total))]
    kind = rng.choice(list(kinds)) if rng.random() < 0.7 else rng.choice(SHAPES)
    noun = f"{kind}s" if kind != "cross" else "crosses"
    questions.append(
        Question("count", f"How many {noun} are there?", str(kinds[kind]), None, other_numbers(rng, kinds[kind]))
    )
    colour = rng.choice(list(colours)) if rng.random() < 0.7 else rng.choice(list(COLOURS))
    text = f"How many shapes are {colour}?"
    questions.append(Question("count", text, str(colours[colour]), None, other_numbers(rng, colours[colour])))
    false = other_numbers(rng, total, 1)[0]
    questions += yes_no_pair(rng, "count", "Are there {} shapes in the picture?", str(total), false)
    return questions


def _positions(rng: random.Random, shapes: list[Shape]) -> list[Question]:
    """Relations between two shapes that lie clearly apart, and the outermost shapes."""
    questions = []
    a, b = rng.sample(shapes, 2)
    if abs(a.x - b.x) > 40:
        true, false = ("left", "right") if a.x < b.x else ("right", "left")
        questions += yes_no_pair(rng, "position", f"Is the {a.name} to the {{}} of the {b.name}?", true, false)
    if abs(a.y - b.y) > 40:
        true, false = ("above", "below") if a.y < b.y else ("below", "above")
        questions += yes_no_pair(rng, "position", f"Is the {a.name} {{}} the {b.name}?", true, false)
    for side, key in (
        ("left", lambda s: s.x),
        ("right", lambda s: -s.x),
        ("top", lambda s: s.y),
        ("bottom", lambda s: -s.y),
    ):
        first, second = sorted(shapes, key=key)[:2]
        if abs(key(first) - key(second)) > 30:
            where = {
                "left": "farthest left",
                "right": "farthest right",
                "top": "at the top",
                "bottom": "at the bottom",
            }[side]
            wrong = tuple(s.name for s in shapes if s is not first)
            sentence = f"The {first.name} is {where}."
            questions.append(Question("position", f"Which shape is {where}?", first.name, sentence, wrong))
    return questions
