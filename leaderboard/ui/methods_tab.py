"""The Methods tab: a card for each method from what it says of itself, with its honest bits and its rows."""

from __future__ import annotations

import re
from html import escape

import gradio as gr
import pandas as pd

from leaderboard import quality, sizes
from leaderboard.analysis import Board
from leaderboard.boards import Boards
from leaderboard.store import method_name
from leaderboard.ui.theme import html
from leaderboard.view import FIRST_MODEL
from quant_engine.methods import METHODS, MethodCard
from quant_engine.models.releases import Release, releases_of
from quant_engine.spec import UserError

QUALITY = "wikitext2"
"""What methods are ranked by on their cards."""
GROUP = 128
"""The group size at which honest bits are given, as in the study."""


def honest_bits(card: MethodCard) -> str:
    """Stored bits on LLaMA3-8B at each of the method's widths, as "4 → 4.16"."""
    widths = []
    for bits in card.bits:
        stored = sizes.counted_bits(FIRST_MODEL, method_name(card.name), bits, GROUP if card.grouped else None)
        if stored is not None:
            widths.append(f"{bits:g} → {stored:.2f}")
    groups = f", groups of {GROUP}" if card.grouped else ""
    return f"{', '.join(widths)} (nominal → stored, {FIRST_MODEL}{groups})" if widths else "not counted"


def standings(board: Board) -> pd.DataFrame:
    """For each method and width of the study, its best row: `value`, its `text`, and its `rank` among the `methods` of
    that width. Empty if there are no results."""
    try:
        column = quality.column_of_task(board, QUALITY)
        points = quality.points(board, FIRST_MODEL, column.task)
    except UserError:
        return pd.DataFrame(columns=["method", "w_bits", "rank", "methods", "text"])
    best = quality.best_of_width(points[(points["w_bits"] < 16) & (points["a_bits"] == 16)])
    best = best[best["source"] == "paper"].sort_values("loss").drop_duplicates(["method", "w_bits"])
    best["rank"] = best.groupby("w_bits")["loss"].rank(method="min")
    best["methods"] = best.groupby("w_bits")["loss"].transform("size")
    return best.sort_values("w_bits", ascending=False)


def ranks(standings: pd.DataFrame, card: MethodCard) -> str:
    """The method's rank among those of the same width, at each width."""
    rows = standings[standings["method"] == method_name(card.name)]
    widths = [
        f"{bits:g} bit: {rank:.0f} of {count:.0f} ({value})"
        for bits, rank, count, value in rows[["w_bits", "rank", "methods", "text"]].itertuples(index=False)
    ]
    return f"{', '.join(widths)} by perplexity on WikiText2 of {FIRST_MODEL} in the study" if widths else ""


def numbers(board: Board, card: MethodCard) -> str:
    """How many rows of the leaderboard are the method's, by model."""
    rows = board.rows[(board.rows["method"] == method_name(card.name)) & (board.rows["track"] != "efficiency")]
    counts = rows.groupby(["model", "source"], sort=False).size()
    return ", ".join(f"{model} {count} {source}" for (model, source), count in counts.items()) or "none yet"


def formula_lines(formula: str) -> list[str]:
    """A formula's parts, one a line, so that they fit a card: parted at the spaces that stand between equations, not at
    those within cases."""
    lines, depth = [""], 0
    for part in re.split(r"(\\begin|\\end|,?\\quad)", formula):
        depth += {r"\begin": 1, r"\end": -1}.get(part, 0)
        if part.endswith(r"\quad") and depth == 0:
            lines.append("")
        else:
            lines[-1] += part
    return [line.strip() for line in lines]


def form_of(release: Release) -> str:
    """How the study's scripts take a release, where that is known, behind its name."""
    return "" if release.taken_as == "unknown" else f" ({escape(release.taken_as)})"


def facts(board: Board, standings: pd.DataFrame, card: MethodCard) -> str:
    """The facts about a method that stand below its formula."""
    group = "any group size, or per row" if card.grouped else "no groups to choose"
    lines = [
        ("Stored", card.stored),
        ("Honest bits", honest_bits(card)),
        ("Its width counts", card.headline),
        ("Needs", f"{'calibration texts' if card.calibrated else 'no data'}; {group}"),
        ("Place", ranks(standings, card)),
        ("Rows", numbers(board, card)),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in lines if value)
    link = f'<a href="{escape(card.url)}" rel="noreferrer">{escape(card.reference)}</a>'
    title = escape(method_name(card.name))
    see = f'<button type="button" data-method="{title}">See {title} on the leaderboard</button>'
    released = "".join(
        f'<div><dt>Study\'s weights</dt><dd><a href="{escape(release.url)}" rel="noreferrer">'
        f"{escape(release.repository)}</a>{form_of(release)}</dd></div>"
        for release in releases_of(card.name)
    )
    return f"<dl>{rows}<div><dt>Paper</dt><dd>{link}</dd></div>{released}</dl>{see}"


_JS = """
element.addEventListener('click', (event) => {
  const pressed = event.target.closest('[data-method]');
  if (pressed) trigger('see', { method: pressed.dataset.method });
});
"""


def build(boards: Boards) -> list[gr.HTML]:
    """Lays out the cards. Returns those parts whose event `see` asks for a method's rows."""
    board, parts = boards.current(), []
    best = standings(board)
    with gr.Row(elem_classes="methods"):
        for method in METHODS.values():
            card = method.card
            with gr.Column(elem_classes="method", min_width=320):
                html(f"<h2>{escape(card.title)}</h2><p>{escape(card.idea)}</p>")
                gr.Markdown(
                    "\n\n".join(f"$${line}$$" for line in formula_lines(card.formula)),
                    latex_delimiters=[{"left": "$$", "right": "$$", "display": True}],
                    elem_classes="formula",
                )
                parts.append(html(facts(board, best, card), js_on_load=_JS))
    return parts
