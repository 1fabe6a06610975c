"""Plotly figures as plain dictionaries: what every chart is made of.

The browser draws them, and Plotly's Python side is not needed for that, which keeps the page's process small. Colours
that depend on the theme are named as the stylesheet names them ("var(--loss)"); the page puts in the theme's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from leaderboard.columns import Column
from leaderboard.quality import in_points, method_order

COLORS = (
    "#2f78c4", "#d9730d", "#2a9160", "#c8453b", "#8a5cc9", "#96703a", "#c4588f", "#1f8fa3", "#7d8a1f", "#7d7a74",
)  # fmt: skip
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star", "x", "cross")
SHADE = [[0, "var(--heat-lost)"], [0.5, "var(--sheet)"], [1, "var(--heat-gained)"]]


@dataclass(frozen=True)
class Figure:
    """A chart: `data` and `layout` as Plotly takes them, its finding, and the `table` that it shows."""

    key: str
    title: str
    finding: str
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


def style(method: str) -> tuple[str, str]:
    """A method's color and symbol, the same in every figure."""
    index = method_order(method) - 1
    return COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS) if index < len(COLORS) else (index + 3) % 10]


def dots(method: str, x: Any, y: Any, text: Any, hover: str, opacity: float = 1.0) -> dict[str, Any]:
    """Points of a method in its color and symbol; `text` is what the hover shows."""
    color, symbol = ("var(--ink)", "circle-open") if method == "FP16" else style(method)
    return {
        "type": "scatter", "mode": "markers", "name": method, "x": numbers(x), "y": numbers(y), "text": list(text),
        "hovertemplate": hover, "opacity": opacity, "marker": {"color": color, "symbol": symbol, "size": 10},
    }  # fmt: skip


def line(method: str, x: Any, y: Any, text: Any, hover: str) -> dict[str, Any]:
    """Points of a method in its color and symbol, joined by a line."""
    marks = dots(method, x, y, text, hover)
    return marks | {"mode": "lines+markers", "line": {"color": marks["marker"]["color"], "width": 1.5}}


def star(x: float, y: float, text: str) -> dict[str, Any]:
    """A ring around the cheapest setting."""
    return {
        "type": "scatter", "mode": "markers", "x": [float(x)], "y": [float(y)], "name": "cheapest", "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "circle-open", "size": 22, "color": "var(--ink)", "line": {"width": 2.5}},
    }  # fmt: skip


def level(value: float, *, vertical: bool = False) -> dict[str, Any]:
    """FP16's level, across the whole figure."""
    line = {"color": "var(--quiet)", "width": 1, "dash": "dash"}
    if vertical:
        return {"type": "line", "x0": value, "x1": value, "yref": "paper", "y0": 0, "y1": 1, "line": line}
    return {"type": "line", "y0": value, "y1": value, "xref": "paper", "x0": 0, "x1": 1, "line": line}


def names_axis() -> dict[str, Any]:
    """The vertical axis of figures that have a name per line, the first on top."""
    return {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True}


def percent_axis(title: str = "percent of FP16 kept") -> dict[str, Any]:
    """An axis of percents."""
    return axis(title) | {"ticksuffix": "%"}


def axis(title: str) -> dict[str, Any]:
    """An axis of numbers with their unit in the title."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False}


def quality_axis(column: Column, values: pd.Series) -> dict[str, Any]:
    """An axis of a task's values: its direction and unit in the title, perplexities on a log scale."""
    unit = "perplexity, log scale" if column.better == "lower" else "%" if in_points(column) else "score"
    plain = axis(f"{column.title} {column.arrow} ({unit})")
    if column.better == "higher":
        return plain
    return plain | log_scale(values.min(), values.max())


def log_scale(lowest: float, highest: float) -> dict[str, Any]:
    """What makes an axis of values from `lowest` to `highest` one of their logarithms."""
    decades = highest > 30 * lowest
    return {"type": "log", "dtick": 1 if decades else "D2", "exponentformat": "power" if decades else "none"}


def value_hover(column: Column, axis: str) -> str:
    """How a hover shows a task's value that stands on the axis "x" or "y"."""
    return f"{column.title} %{{{axis}:,.4~g}}" + ("%" if in_points(column) else "")


def hover(column: Column) -> str:
    """The hover of a point: its text and its value."""
    return "%{text}<br>" + value_hover(column, "y") + "<extra></extra>"


def numbers(values: Any) -> list:
    """Values as JSON knows them: no NaN, no numpy."""
    return [
        value if isinstance(value, str) else None if value is None or not np.isfinite(value) else float(value)
        for value in values
    ]


def grid(values: np.ndarray) -> list[list[float | None]]:
    return [numbers(row) for row in values]
