"""A figure as HTML: its title and finding, a place that the browser draws into, downloads, and the table behind it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from html import escape

import numpy as np
import pandas as pd

from leaderboard.plot import Figure
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

MOST_TABLE_ROWS = 200
DRAW_JS = "lowbit.figures(element); watch('value', () => lowbit.figures(element));"


def chart(draw: Callable[[], Figure], title: str) -> str:
    """The figure that `draw` makes. What goes wrong is a sentence in its place, and takes nothing else down."""
    try:
        return figure_html(draw())
    except UserError as refusal:
        return _missing(title, str(refusal))
    except Exception:
        logger.exception("The figure %r failed.", title)
        return _missing(title, "This figure could not be made; the server's log says why. Everything else still works.")


def figure_html(figure: Figure) -> str:
    body = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False, separators=(",", ":"))
    height = figure.layout.get("height", 400)
    kind = "plot written" if any("texttemplate" in trace for trace in figure.data) else "plot"
    return (
        f'<section class="figure" aria-label="{escape(figure.title)}"><header><h3>{escape(figure.title)}</h3>'
        '<span><button type="button" data-image="png">PNG</button><button type="button" data-image="svg">SVG</button>'
        f"</span></header><p>{escape(figure.finding)}</p>"
        f'<div class="{kind}"><div class="chart" id="chart-{figure.key}" role="img" '
        f'aria-label="{escape(figure.finding)}" style="height:{height}px" data-figure="{escape(body)}"></div></div>'
        f"<details><summary>Table</summary>{table_html(figure.table)}</details></section>"
    )


def table_html(table: pd.DataFrame) -> str:
    """A small table: numbers to the right, at most MOST_TABLE_ROWS rows."""
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in table]
    head = "".join(
        f'<th scope="col"{" class=n" if right else ""}>{escape(str(name))}</th>'
        for name, right in zip(table, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if right else ''}>{_written(value)}</td>"
            for value, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in table.head(MOST_TABLE_ROWS).itertuples(index=False)
    )
    more = f"<p class=hint>The first {MOST_TABLE_ROWS} of {len(table):,}.</p>" if len(table) > MOST_TABLE_ROWS else ""
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="plain" tabindex="0"><table>{inside}</table></div>{more}'


def _missing(title: str, sentence: str) -> str:
    return (
        f'<section class="figure" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3></header>'
        f'<p class="absent">{escape(sentence)}</p></section>'
    )


def _written(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "·"
    return f"{value:g}" if isinstance(value, float) and abs(value) >= 1e-4 else escape(str(value))
