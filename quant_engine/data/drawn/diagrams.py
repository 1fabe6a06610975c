"""Diagrams: labelled boxes joined by arrows, and questions about what leads to what."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from quant_engine.data.drawn.drawing import COLOURS, FIRST, LAST, SIZES, Canvas, Drawing
from quant_engine.data.drawn.questions import Question, yes_no_pair
from quant_engine.data.drawn.words import CHAIN_WORDS, listed, other_numbers

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


@dataclass(frozen=True)
class Node:
    label: str
    x: float
    y: float
    half_width: float
    half_height: float


def draw(rng: random.Random, shifted: bool = False) -> tuple[Drawing, list[Question]]:
    """Three to six nodes; arrows make a chain, a cycle, or a tree from one root."""
    canvas = Canvas(rng, *rng.choice(SIZES), shifted)
    size = rng.randint(15, 19)
    columns, rows = (3 if canvas.width > 288 else 2), (4 if canvas.height > 288 else 3)
    count = rng.randint(3, min(6, columns * rows))
    words = _words(rng, count)
    cells = _cells(rng, columns, rows, count)
    cell_width, cell_height = canvas.width / columns, canvas.height / rows
    nodes = []
    for word, (column, row) in zip(words, cells, strict=True):
        half = max(17.0, canvas.text_width(word, size) / 2 + 7)
        slack = max(0.0, cell_width / 2 - half - 14)
        x = (column + 0.5) * cell_width + rng.uniform(-slack, slack)
        y = (row + 0.5) * cell_height + rng.uniform(-8, 8)
        nodes.append(Node(word, x, y, half, size * 0.5 + 8))
    shape = rng.choices(("chain", "cycle", "tree"), (60, 15, 25))[0]
    edges = _edges(rng, shape, count)
    for start, end in edges:
        _arrow(canvas, nodes[start], nodes[end])
    runs = _boxes(canvas, nodes, size)
    for start, end in edges:
        canvas.link(runs[start], runs[end])
    for index, run in enumerate(runs):
        if all(end != index for _, end in edges):
            canvas.link(FIRST, run)
        if all(start != index for start, _ in edges):
            canvas.link(run, LAST)
    canvas.count = count
    return canvas.finish(), ask(rng, words, edges, shape)


def _words(rng: random.Random, count: int) -> list[str]:
    if rng.random() < 0.25:
        return rng.sample("ABCDEFGHKLMNPRSTXYZ", count)
    return rng.sample(CHAIN_WORDS, count)


def _cells(rng: random.Random, columns: int, rows: int, count: int) -> list[tuple[int, int]]:
    """Cells along a snake through the grid, so that neighbours in the chain lie side by side and arrows don't cross."""
    if rng.random() < 0.5:
        snake = [(c if r % 2 == 0 else columns - 1 - c, r) for r in range(rows) for c in range(columns)]
    else:
        snake = [(c, r if c % 2 == 0 else rows - 1 - r) for c in range(columns) for r in range(rows)]
    start = rng.randint(0, len(snake) - count)
    cells = snake[start : start + count]
    return cells[::-1] if rng.random() < 0.3 else cells


def _edges(rng: random.Random, shape: str, count: int) -> list[tuple[int, int]]:
    chain = [(i, i + 1) for i in range(count - 1)]
    if shape == "cycle":
        return [*chain, (count - 1, 0)]
    if shape == "tree":
        return [(i - 1 if rng.random() < 0.5 else max(0, i - 2), i) for i in range(1, count)]
    return chain


# ------------------------------------------------------------------------------------------------------- drawing


def _boxes(canvas: Canvas, nodes: list[Node], size: int) -> list[int]:
    """Draw the boxes; returns the run of each label."""
    rng, runs = canvas.rng, []
    filled, rounded = rng.random() < 0.4, rng.random() < 0.5
    colour = rng.choice(list(COLOURS))
    for node in nodes:
        box = (node.x - node.half_width, node.y - node.half_height, node.x + node.half_width, node.y + node.half_height)
        ink = canvas.ink
        if filled:
            canvas.rectangle(box, colour)
            ink = (0, 0, 0) if sum(canvas.palette[colour]) > 380 else (255, 255, 255)
        else:
            canvas.clear(box)
            if rounded:
                canvas.draw.rounded_rectangle(box, radius=10, outline=canvas.ink, width=2)
            else:
                canvas.draw.rectangle(box, outline=canvas.ink, width=2)
        runs.append(canvas.text(node.x, node.y, node.label, size, anchor="m", ink=ink))
    return runs


def _arrow(canvas: Canvas, start: Node, end: Node) -> None:
    """A straight arrow from the border of one box to the border of the other; its head is marked with its direction."""
    angle = math.atan2(end.y - start.y, end.x - start.x)
    x1, y1 = _border(start, angle, 2)
    x2, y2 = _border(end, angle + math.pi, 4)
    head = canvas.rng.randint(9, 13)
    canvas.draw.line([(x1, y1), (x2, y2)], fill=canvas.ink, width=2)
    wings = [(x2 - head * math.cos(angle + w), y2 - head * math.sin(angle + w)) for w in (0.5, -0.5)]
    canvas.draw.polygon([(x2, y2), *wings], fill=canvas.ink)
    direction = DIRECTIONS[round(angle / (math.pi / 4)) % 8]
    canvas.mark(f"arrow {direction}", x2 - 0.6 * head * math.cos(angle), y2 - 0.6 * head * math.sin(angle))
    canvas.mark("arrow tail", x1 + 6 * math.cos(angle), y1 + 6 * math.sin(angle))


def _border(node: Node, angle: float, gap: float) -> tuple[float, float]:
    """Where a ray from the node's centre leaves its box, `gap` pixels further on."""
    cos, sin = math.cos(angle), math.sin(angle)
    reach = min(
        node.half_width / abs(cos) if abs(cos) > 1e-6 else math.inf,
        node.half_height / abs(sin) if abs(sin) > 1e-6 else math.inf,
    )
    return node.x + (reach + gap) * cos, node.y + (reach + gap) * sin


# ----------------------------------------------------------------------------------------------------- questions


def ask(rng: random.Random, words: list[str], edges: list[tuple[int, int]], shape: str) -> list[Question]:
    """All questions about a diagram; the order in which they draw from `rng` is part of the suite.

    `edges` are arrows between indices of `words`; `shape` is "chain", "cycle" or "tree".
    """
    arrows = listed([f"{words[a]} to {words[b]}" for a, b in edges])
    text = rng.choice(("Describe the diagram.", "Describe the picture.", "What does the diagram show?"))
    questions = [Question("caption", text, f"The diagram shows arrows from {arrows}."), *_neighbours(rng, words, edges)]
    if shape == "chain":
        questions += _ends(words)
    count = len(words)
    text = rng.choice(("How many boxes are there?", "How many labels does the diagram have?"))
    questions.append(Question("count", text, str(count), f"There are {count} boxes.", other_numbers(rng, count)))
    a, b = rng.choice(edges)
    unreached = [word for i, word in enumerate(words) if i != a and (a, i) not in edges]
    if unreached:
        template = f"Does an arrow lead from {words[a]} to {{}}?"
        questions += yes_no_pair(rng, "position", template, words[b], rng.choice(unreached))
    absent = rng.choice([word for word in CHAIN_WORDS if word not in words])
    questions += yes_no_pair(rng, "text", "Does the diagram have a box called {}?", rng.choice(words), absent)
    return questions


def _neighbours(rng: random.Random, words: list[str], edges: list[tuple[int, int]]) -> list[Question]:
    """What each box alone points to, and what alone points to it."""
    questions = []
    for i, word in enumerate(words):
        targets = [words[b] for a, b in edges if a == i]
        sources = [words[a] for a, b in edges if b == i]
        if len(targets) == 1:
            text = rng.choice((
                "What does {} point to?", "What comes after {}?", "Where does the arrow from {} lead?",
                "What follows {}?",
            ))  # fmt: skip
            wrong = tuple(w for w in words if w not in (targets[0], word))
            sentence = f"{word} points to {targets[0]}."
            questions.append(Question("after", text.format(word), targets[0], sentence, wrong))
        if len(sources) == 1:
            text = rng.choice(("What points to {}?", "What comes before {}?", "Where does the arrow to {} start?"))
            wrong = tuple(w for w in words if w not in (sources[0], word))
            sentence = f"{sources[0]} points to {word}."
            questions.append(Question("before", text.format(word), sources[0], sentence, wrong))
    return questions


def _ends(words: list[str]) -> list[Question]:
    questions = []
    for end, word in (("first", words[0]), ("last", words[-1])):
        wrong = tuple(w for w in words if w != word)
        questions.append(Question("end", f"Which label comes {end}?", word, f"{word} comes {end}.", wrong))
    return questions
