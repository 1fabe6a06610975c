"""The same question at every width of a method as one table: Markdown, CSV, and a picture."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from leaderboard.export import no_formula
from quant_engine import folders, notation
from quant_engine.answers.compare import SideAnswer

HEADER = ("Setting", "Stored bits", "Weight memory", "Answer", "Against FP16")
_CELL = {"Stored bits": 13, "Weight memory": 14, "Setting": 20, "Against FP16": 24, "Answer": 64}
"""Characters in a line of the picture's columns."""
_SIZE, _LINE, _MARGIN = 26, 36, 40
_INK, _QUIET, _PAPER, _RULE = "#191918", "#65625c", "#ffffff", "#cfcbc2"


def rows(answers: Sequence[SideAnswer]) -> list[tuple[str, ...]]:
    """A row of texts for each answer, as HEADER names them."""
    return [
        (
            answer.setting.label,
            f"{answer.stats.stored_bits:.2f}" if answer.stats else "",
            notation.size(answer.stats.weight_bytes) if answer.stats else "",
            answer.text.strip() or answer.problem,
            answer.parted,
        )
        for answer in answers
    ]


def as_markdown(question: str, answers: Sequence[SideAnswer]) -> bytes:
    """A table under the question."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(answers)]
    table = "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)
    return f"**{_markdown_cell(question)}**\n\n{table}\n".encode()


def _markdown_cell(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return "<br>".join(text.splitlines())


def as_csv(question: str, answers: Sequence[SideAnswer]) -> bytes:
    """A row for each answer, the question in each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("Question", *HEADER))
    writer.writerows([no_formula(text) for text in (question, *row)] for row in rows(answers))
    return buffer.getvalue().encode()


def as_png(question: str, answers: Sequence[SideAnswer], picture: Path | None = None) -> bytes:
    """The table as a picture, the picture that was asked about above it."""
    plain, bold = (_font(weight) for weight in ("Regular", "Bold"))
    wrapped = [[_wrapped(name, text) for name, text in zip(HEADER, row, strict=True)] for row in rows(answers)]
    widths = [int(_CELL[name] * _SIZE * 0.56) for name in HEADER]
    shown = None
    if picture:
        with Image.open(picture) as opened:
            shown = opened.convert("RGB")
        shown.thumbnail((520, 420))
    heads = textwrap.wrap(question, 110) or [""]
    top = _MARGIN + (shown.height + 24 if shown else 0)
    heights = [max(map(len, row)) * _LINE + 20 for row in wrapped]
    height = top + len(heads) * _LINE + 20 + _LINE + 16 + sum(heights) + _MARGIN
    canvas = Image.new("RGB", (sum(widths) + 2 * _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    if shown:
        canvas.paste(shown, (_MARGIN, _MARGIN))
    y = _write(draw, _MARGIN, top, heads, bold, _INK) + 20
    lines = [
        ([[name] for name in HEADER], _LINE + 16, _QUIET),
        *zip(wrapped, heights, [_INK] * len(wrapped), strict=True),
    ]
    for cells, row_height, ink in lines:
        x = _MARGIN
        for cell, width in zip(cells, widths, strict=True):
            _write(draw, x, y + 10, cell, plain, ink)
            x += width
        y += row_height
        draw.line((_MARGIN, y, canvas.width - _MARGIN, y), fill=_RULE)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _wrapped(name: str, text: str) -> list[str]:
    return [part for line in text.splitlines() or [""] for part in textwrap.wrap(line, _CELL[name]) or [""]]


def _font(weight: str) -> ImageFont.FreeTypeFont:
    file = folders.ASSETS / "demo" / "fonts" / f"IBMPlexSans-{weight}.woff2"
    return ImageFont.truetype(str(file), _SIZE)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], font, ink: str) -> int:
    for line in lines:
        draw.text((x, y), line, font=font, fill=ink)
        y += _LINE
    return y
