"""The Explore tab: what a model loses and gains, in charts; what fits a GPU; and two runs item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import gradio as gr

from leaderboard import analysis, figures, fit
from leaderboard.analysis import Board
from leaderboard.boards import Boards
from leaderboard.plot import Figure
from leaderboard.store import Notes, note_on
from leaderboard.ui import run_inside
from leaderboard.ui.chart import DRAW_JS, chart, table_html
from leaderboard.ui.theme import html, offer
from leaderboard.view import Explored, Fitted, PageView, address
from quant_engine import notation

LARGEST = ("the largest error", "")
OTHER_CARD = "Other: type the memory"
WIDTHS = [2.0, 3.0, 4.0, 8.0]


def qualities(board: Board, model: str) -> list[tuple[str, str]]:
    """The scores that a model's quantized settings have, as (title, task), the one that ranks best first."""
    first = fit.best_quality(board, model)
    mask = ((board.rows["model"] == model) & (board.rows["w_bits"] < 16)).to_numpy()
    filled = (board.cells[mask] != analysis.Cell.MISSING).any(axis=0)
    others = [c for c, any_ in zip(board.columns, filled, strict=True) if any_ and not c.cost and c is not first]
    return [(f"{one.title} {one.arrow}", one.task) for one in (first, *others)]


def explorable(board: Board) -> list[str]:
    """The models that have a quantized setting with a score."""
    quantized = board.rows["w_bits"] < 16
    return [model for model in analysis.models(board) if (quantized & (board.rows["model"] == model)).any()]


def settled(board: Board, explored: Explored) -> Explored:
    """What is asked for, with a model and a quality that there are."""
    known = explorable(board)
    model = explored.model if explored.model in known else known[0]
    tasks = [task for _, task in qualities(board, model)]
    return explored.model_copy(
        update={"model": model, "quality": explored.quality if explored.quality in tasks else tasks[0]}
    )


def runs_of(board: Board) -> list[tuple[str, str]]:
    """The measured runs, newest setting last, as (what it is, id)."""
    rows = board.rows[(board.rows["source"] == "measured") & (board.rows["w_bits"] <= 16)]
    fields = rows[["model", "run_id", "options", "method", "w_bits", "a_bits", "group_size"]].drop_duplicates("run_id")
    return [
        (" · ".join(filter(None, [model, notation.setting(*setting), chosen, run_id[:6]])), run_id)
        for model, run_id, chosen, *setting in fields.head(500).itertuples(index=False)
    ]


def charts(board: Board, explored: Explored) -> str:
    """The charts about one model. One that fails is a sentence in its place."""
    model, task, width = explored.model, explored.quality or "", explored.bits
    drawings: list[tuple[str, Callable[[], Figure]]] = [
        ("Bits against quality", lambda: figures.bits_and_quality(board, model, task, explored.within)),
        ("Size against quality", lambda: figures.size_and_quality(board, model, task)),
        ("Methods × bits", lambda: figures.methods_and_bits(board, model, task)),
        ("Loss by task", lambda: figures.loss_by_task(board, model, width)),
        ("Language against pictures", lambda: figures.language_and_pictures(board, model)),
        ("Nominal and stored bits", lambda: figures.honest_bits(board, model)),
    ]
    return f'<div class="figures">{"".join(chart(draw, title) for title, draw in drawings)}</div>'


def oddities(board: Board, notes: Notes, explored: Explored) -> str:
    """The known oddities of the printed numbers that the charts are about; nothing if there are none."""
    rows = board.rows[board.rows["model"] == explored.model].to_dict("records")
    told: dict[str, list[str]] = {}
    for row in rows:
        text = note_on(row, explored.quality or "", notes)
        if text:
            setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
            told.setdefault(text, []).append(setting)
    if not told:
        return ""
    lines = "".join(f"<li>{escape(', '.join(settings))}: {escape(text)}</li>" for text, settings in told.items())
    return f'<div class="oddities"><b>Odd numbers in the study</b><ul>{lines}</ul></div>'


def run_charts(board: Board, explored: Explored) -> list[str]:
    """The layers of the chosen run, the weights of one of its linears, and its comparison with another run."""
    label = {run_id: title for title, run_id in runs_of(board)}.get(explored.run, explored.run or "")
    return [run_inside.layers(explored, label), run_inside.weights(explored), run_inside.comparison(explored)]


def fits(board: Board, fitted: Fitted) -> str:
    """What fits, or one sentence that says why that can't be said; and the estimate beside measured peaks."""
    measured = fit.checked(board.results)
    beside = (
        f"<details><summary>The estimate beside measured peaks ({len(measured)}): median error "
        f"{measured['Error %'].abs().median():.0f}%</summary>{table_html(measured)}</details>"
        if len(measured)
        else '<p class="hint">No run has been measured here yet to hold the estimate against.</p>'
    )
    return f'<div class="figures one">{chart(lambda: fit.figure(board, fitted), "What fits")}{beside}</div>'


@dataclass(frozen=True)
class Wired:
    """The tab's `outputs`, what `fill` gives them for a view, and what `show` needs to draw it when it is opened."""

    outputs: list[gr.components.Component]
    fill: Callable[[PageView], list]
    refresh: Callable[..., list]
    inputs: list[gr.components.Component]
    drawing: list[gr.components.Component]


def build(boards: Boards) -> Wired:
    """Lays out the tab and wires it. Nothing is drawn before the tab is opened."""
    plain = settled(boards.current(), Explored())
    with gr.Row(elem_classes="choosers"):
        model = gr.Dropdown(
            explorable(boards.current()), value=plain.model, label="Explore model", elem_classes="narrow"
        )
        quality = gr.Dropdown(
            qualities(boards.current(), plain.model), value=plain.quality, label="Quality", elem_classes="narrow"
        )
        within = gr.Number(plain.within, label="Within (points or %)", minimum=0, maximum=100, elem_classes="range")
        bits = gr.Radio(
            [(f"{width:g} bit", width) for width in WIDTHS], value=plain.bits, label="Loss by task at",
            elem_classes="segments",
        )  # fmt: skip
    drawn = html("", elem_id="explore", js_on_load=DRAW_JS)
    html('<h2 class="part">What fits my GPU</h2>')
    with gr.Row(elem_classes="choosers"):
        asked = Fitted()
        known = list(fit.shapes())
        fit_model = gr.Dropdown(known, value=asked.model, label="Model to fit", elem_classes="narrow")
        cards = [(f"{one.name} · {one.memory:g} GB", one.name) for one in fit.CARDS.values()]
        card = gr.Dropdown([*cards, (OTHER_CARD, "")], value=asked.card, label="GPU", elem_classes="wide")
        memory = gr.Number(16, label="Memory, GiB", minimum=0.1, visible=False, elem_classes="range")
        context = gr.Number(asked.context, label="Context, tokens", minimum=1, precision=0, elem_classes="range")
        batch = gr.Number(asked.batch, label="Batch", minimum=1, precision=0, elem_classes="range")
        pictures = gr.Number(asked.pictures, label="Pictures", minimum=0, precision=0, elem_classes="range")
    fitting = html("", elem_id="fit", js_on_load=DRAW_JS)
    html('<h2 class="part">Inside measured runs</h2>')
    with gr.Row(elem_classes="choosers"):
        run = gr.Dropdown([], value=None, label="Run", elem_classes="wide")
        linear = gr.Dropdown([LARGEST], value="", label="Weights of", elem_classes="wide")
        against = gr.Dropdown([], value=None, label="Compared with", elem_classes="wide")
    with gr.Row(elem_classes="figures"):
        inside = html("", elem_id="inside", js_on_load=run_inside.CELL_JS)
        weighed = html("", elem_id="weighed", js_on_load=DRAW_JS)
    compared = html("", elem_id="compared", js_on_load=run_inside.JS, server_functions=[run_inside.item_picture])
    where, fit_where = gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden")

    exploring, asking = (
        [model, quality, within, bits, run, linear, against],
        [fit_model, card, memory, context, batch, pictures],
    )

    def drawing_of(board: Board, explored: Explored) -> str:
        return oddities(board, boards.notes, explored) + charts(board, explored)

    def explored_of(model, quality, within, bits, run, linear, against) -> Explored:
        within = min(max(within or 0.0, 0.0), 100.0)
        return Explored(
            model=model,
            quality=quality,
            within=within,
            bits=bits or 4.0,
            run=run or None,
            linear=linear or None,
            against=against or None,
        )

    def fitted_of(model, card, memory, context, batch, pictures) -> Fitted:
        return Fitted(
            model=model,
            card=card or None,
            memory=None if card else min(max(memory or 1.0, 0.1), 100_000),
            context=min(max(int(context or 1), 1), 1_000_000),
            batch=min(max(int(batch or 1), 1), 4096),
            pictures=min(max(int(pictures or 0), 0), 64),
        )

    def explore_address(explored: Explored) -> str:
        first = qualities(boards.current(), explored.model)[0][1]
        kept = explored.model_copy(update={"quality": None}) if explored.quality == first else explored
        return address(PageView(explored=kept))

    def draw(explored: Explored) -> list[str]:
        return [drawing_of(boards.current(), explored), explore_address(explored)]

    def explore(*values) -> list:
        asked = explored_of(*values)
        explored = settled(boards.current(), asked)
        offered = qualities(boards.current(), explored.model)
        return [offer(offered, explored.quality, asked.quality), *draw(explored)]

    def look_inside(*values) -> list:
        """The chosen run; a linear that it lacks is no longer chosen."""
        explored = settled(boards.current(), explored_of(*values))
        offered, before = run_inside.linears(explored.run), explored.linear
        if before not in [place for _, place in offered]:
            explored = explored.model_copy(update={"linear": None})
        return [
            offer([LARGEST, *offered], explored.linear or "", before or ""),
            *run_charts(boards.current(), explored),
            explore_address(explored),
        ]

    def weigh(*values) -> list:
        explored = settled(boards.current(), explored_of(*values))
        return [run_inside.weights(explored), explore_address(explored)]

    def press_cell(event: gr.EventData, *values) -> list:
        explored = explored_of(*values).model_copy(update={"linear": str(event._data["linear"])})
        explored = settled(boards.current(), explored)
        return [explored.linear, run_inside.weights(explored), explore_address(explored)]

    def compare(*values) -> list:
        explored = settled(boards.current(), explored_of(*values))
        return [run_inside.comparison(explored), explore_address(explored)]

    def ask(*values) -> list:
        fitted = fitted_of(*values)
        return [
            gr.update(visible=fitted.card is None),
            fits(boards.current(), fitted),
            address(PageView(fitted=fitted)),
        ]

    def fill(view: PageView) -> list:
        board = boards.current()
        explored, fitted, runs = settled(board, view.explored), view.fitted, runs_of(board)
        known_runs = {run_id for _, run_id in runs}
        drawings = [gr.skip()] * 5
        if view.tab == "explore":
            drawings = [drawing_of(board, explored), fits(board, fitted), *run_charts(board, explored)]
        offered = run_inside.linears(explored.run)
        return [
            gr.update(choices=explorable(board), value=explored.model),
            gr.update(choices=qualities(board, explored.model), value=explored.quality),
            explored.within,
            explored.bits,
            gr.update(choices=runs, value=explored.run if explored.run in known_runs else None),
            gr.update(
                choices=[LARGEST, *offered],
                value=explored.linear if explored.linear in [place for _, place in offered] else "",
            ),
            gr.update(choices=runs, value=explored.against if explored.against in known_runs else None),
            fitted.model,
            fitted.card or "",
            gr.update(value=fitted.memory or 16, visible=fitted.card is None),
            fitted.context,
            fitted.batch,
            fitted.pictures,
            *drawings,
            explore_address(explored),
            address(PageView(fitted=fitted)),
        ]

    def refresh(*values) -> list:
        """Everything that the tab shows, and the choices, which may have grown by new runs."""
        explored = explored_of(*values[: len(exploring)])
        return fill(PageView(tab="explore", explored=explored, fitted=fitted_of(*values[len(exploring) :])))

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [model.input, quality.input, within.input, bits.input], explore, exploring, [quality, drawn, where],
        trigger_mode="always_last", **quick,
    )  # fmt: skip
    run.input(look_inside, exploring, [linear, inside, weighed, compared, where], **quick)
    linear.input(weigh, exploring, [weighed, where], **quick)
    inside.cell(press_cell, exploring, [linear, weighed, where], **quick)
    against.input(compare, exploring, [compared, where], **quick)
    gr.on(
        [fit_model.input, card.input, memory.input, context.input, batch.input, pictures.input],
        ask, asking, [memory, fitting, fit_where], trigger_mode="always_last", **quick,
    )  # fmt: skip
    where.change(None, where, None, js="(search) => { lowbit.go('explore', search); }", **quick)
    fit_where.change(None, fit_where, None, js="(search) => { lowbit.go('fit', search); }", **quick)
    outputs = [*exploring, *asking, drawn, fitting, inside, weighed, compared, where, fit_where]
    return Wired(outputs, fill, refresh, [*exploring, *asking], outputs)
