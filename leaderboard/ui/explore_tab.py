"""The Explore tab: what a model loses and gains, in charts; what fits a GPU; and two runs item by item."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import gradio as gr

from leaderboard import analysis, figures, fit, parts, quality, votes
from leaderboard.analysis import Board
from leaderboard.boards import Boards
from leaderboard.plot import Figure
from leaderboard.store import Notes, note_on
from leaderboard.ui import run_inside
from leaderboard.ui.chart import DRAW_JS, chart, table_html
from leaderboard.ui.pressed import pressed
from leaderboard.ui.theme import QUICK, html, offer
from leaderboard.view import Explored, Fitted, PageView, address, as_valid
from quant_engine import notation

LARGEST = ("the largest error", "")
OTHER_CARD = "Other: type the memory"
OTHER_MEMORY = 16.0
WIDTHS = [2.0, 3.0, 4.0, 8.0]
MOST_RUNS = 500


def quality_choices(board: Board, model: str) -> list[tuple[str, str]]:
    """The scores that a model's quantized settings have, as (title, task), the one that ranks best first."""
    return [(f"{column.title} {column.arrow}", column.task) for column in fit.qualities(board, model)]


def model_choices(board: Board) -> list[str]:
    """The models that have a quantized setting with a score."""
    quantized = (board.rows["w_bits"] < 16) & (board.rows["source"] != votes.SOURCE)
    return [model for model in analysis.models(board) if (quantized & (board.rows["model"] == model)).any()]


def run_choices(board: Board) -> list[tuple[str, str]]:
    """The measured runs, newest setting last, as (what it is, id)."""
    rows = board.rows[(board.rows["source"] == "measured") & (board.rows["w_bits"] <= 16)]
    fields = rows[["model", "run_id", "options", "method", "w_bits", "a_bits", "group_size"]].drop_duplicates("run_id")
    return [
        (" · ".join(filter(None, [model, notation.setting(*setting), options, run_id[:6]])), run_id)
        for model, run_id, options, *setting in fields.head(MOST_RUNS).itertuples(index=False)
    ]


def settle(board: Board, explored: Explored) -> Explored:
    """The view with a model and a quality that there are."""
    models = model_choices(board)
    model = explored.model if explored.model in models else models[0]
    tasks = [task for _, task in quality_choices(board, model)]
    quality = explored.quality if explored.quality in tasks else tasks[0]
    return explored.model_copy(update={"model": model, "quality": quality})


def model_charts(board: Board, explored: Explored) -> str:
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
    if (board.parts["model"] == model).any():
        drawings.append(("Which linears cost what", lambda: parts.kinds(board.results, board.parts, model)))
        drawings.append(("Which blocks cost what", lambda: parts.blocks(board.results, board.parts, model)))
    if len(quality.blind_rates(board, model)):
        drawings.append(("Told apart in blind votes", lambda: figures.told_apart(board, model)))
    return f'<div class="figures">{"".join(chart(draw, title) for title, draw in drawings)}</div>'


def oddities(board: Board, notes: Notes, explored: Explored) -> str:
    """The known oddities of the printed numbers that the charts are about; nothing if there are none."""
    settings: dict[str, list[str]] = {}
    for row in board.rows[board.rows["model"] == explored.model].to_dict("records"):
        text = note_on(row, explored.quality or "", notes)
        if text:
            setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
            settings.setdefault(text, []).append(setting)
    if not settings:
        return ""
    lines = "".join(f"<li>{escape(', '.join(labels))}: {escape(text)}</li>" for text, labels in settings.items())
    return f'<div class="oddities"><b>Odd numbers in the study</b><ul>{lines}</ul></div>'


def run_charts(board: Board, explored: Explored) -> list[str]:
    """The layers of the chosen run, the weights of one of its linears, and its comparison with another run."""
    label = {run_id: title for title, run_id in run_choices(board)}.get(explored.run, explored.run or "")
    return [run_inside.layers(explored, label), run_inside.weights(explored), run_inside.comparison(explored)]


def fit_chart(board: Board, fitted: Fitted) -> str:
    """What fits, or one sentence that says why that can't be said; and the estimate beside measured peaks."""
    measured = fit.checked(board.results)
    check = (
        f"<details><summary>The estimate beside measured peaks ({len(measured)}): median error "
        f"{measured['Error %'].abs().median():.0f}%</summary>{table_html(measured)}</details>"
        if len(measured)
        else '<p class="hint">No run has been measured here yet to hold the estimate against.</p>'
    )
    return f'<div class="figures one">{chart(lambda: fit.figure(board, fitted), "What fits")}{check}</div>'


def read_explored(model, quality, within, bits, run, linear, against) -> Explored:
    """The values of the controls about models and runs as a view, numbers brought into their limits."""
    fields = {
        "model": model,
        "quality": quality,
        "within": _limited(within, 0, 100, empty=0),
        "bits": bits or 4.0,
        "run": run or None,
        "linear": linear or None,
        "against": against or None,
    }
    return as_valid(Explored, fields)


def read_fitted(model, card, memory, context, batch, pictures) -> Fitted:
    """The values of the controls about GPUs as a view, numbers brought into their limits."""
    fields = {
        "model": model,
        "card": card or None,
        "memory": None if card else _limited(memory, 0.1, 100_000, empty=1),
        "context": int(_limited(context, 1, 1_000_000, empty=1)),
        "batch": int(_limited(batch, 1, 4096, empty=1)),
        "pictures": int(_limited(pictures, 0, 64, empty=0)),
    }
    return as_valid(Fitted, fields)


def _limited(value: object, least: float, most: float, *, empty: float) -> float:
    """A typed number brought into its limits; `empty` where there is none."""
    if not isinstance(value, int | float) or value != value or not value:
        return empty
    return min(max(value, least), most)


class ExploreTab:
    """The tab's three parts: charts about a model, what fits a GPU, and measured runs from inside.

    `outputs` is all that the tab shows: `fill` gives its values for a view.
    """

    def __init__(self, boards: Boards) -> None:
        """Lays out the tab. Nothing is drawn before it is opened."""
        self.boards = boards
        self._lay_out_charts()
        html('<h2 class="part">What fits my GPU</h2>')
        self._lay_out_fit()
        html('<h2 class="part">Inside measured runs</h2>')
        self._lay_out_runs()
        self.explore_address = gr.Textbox("", visible="hidden")
        self.fit_address = gr.Textbox("", visible="hidden")
        self.explore_controls = [
            self.model, self.quality, self.within, self.bits, self.run, self.linear, self.against
        ]  # fmt: skip
        drawings = [self.charts, self.fit, self.layers, self.weights, self.comparison]
        addresses = [self.explore_address, self.fit_address]
        self.outputs = [*self.explore_controls, *self.fit_controls, *drawings, *addresses]

    def _lay_out_charts(self) -> None:
        board = self.boards.current()
        first = settle(board, Explored())
        qualities = quality_choices(board, first.model)
        widths = [(f"{width:g} bit", width) for width in WIDTHS]
        with gr.Row(elem_classes="choosers"):
            self.model = gr.Dropdown(
                model_choices(board), value=first.model, label="Explore model", elem_classes="narrow"
            )
            self.quality = gr.Dropdown(qualities, value=first.quality, label="Quality", elem_classes="narrow")
            self.within = gr.Number(
                first.within, label="Within (points or %)", minimum=0, maximum=100, elem_classes="range"
            )
            self.bits = gr.Radio(widths, value=first.bits, label="Loss by task at", elem_classes="segments")
        self.charts = html("", elem_id="explore", js_on_load=DRAW_JS)

    def _lay_out_fit(self) -> None:
        first = Fitted()
        cards = [(f"{card.name} · {card.memory:g} GB", card.name) for card in fit.CARDS.values()]
        with gr.Row(elem_classes="choosers"):
            model = gr.Dropdown(list(fit.shapes()), value=first.model, label="Model to fit", elem_classes="narrow")
            card = gr.Dropdown([*cards, (OTHER_CARD, "")], value=first.card, label="GPU", elem_classes="wide")
            self.memory = gr.Number(OTHER_MEMORY, label="Memory, GiB", minimum=0.1, visible=False, elem_classes="range")
            numbers = [
                gr.Number(first.context, label="Context, tokens", minimum=1, precision=0, elem_classes="range"),
                gr.Number(first.batch, label="Batch", minimum=1, precision=0, elem_classes="range"),
                gr.Number(first.pictures, label="Pictures", minimum=0, precision=0, elem_classes="range"),
            ]
        self.fit_controls = [model, card, self.memory, *numbers]
        self.fit = html("", elem_id="fit", js_on_load=DRAW_JS)

    def _lay_out_runs(self) -> None:
        with gr.Row(elem_classes="choosers"):
            self.run = gr.Dropdown([], value=None, label="Run", elem_classes="wide")
            self.linear = gr.Dropdown([LARGEST], value="", label="Weights of", elem_classes="wide")
            self.against = gr.Dropdown([], value=None, label="Compared with", elem_classes="wide")
        with gr.Row(elem_classes="figures"):
            self.layers = html("", elem_id="inside", js_on_load=run_inside.CELL_JS)
            self.weights = html("", elem_id="weighed", js_on_load=DRAW_JS)
        self.comparison = html(
            "", elem_id="compared", js_on_load=run_inside.JS, server_functions=[run_inside.item_picture]
        )

    def connect(self, tab: gr.Tab) -> None:
        """Lets each part be drawn when `tab` is opened and follow its controls, and the address follow what is shown.

        What changes while a part is being drawn draws it once more after that.
        """
        controls, where = self.explore_controls, self.explore_address
        latest = {"trigger_mode": "always_last"}
        chart_controls = [self.model, self.quality, self.within, self.bits]
        gr.on(
            [tab.select, *(control.input for control in chart_controls)],
            self._draw_charts, controls, [self.model, self.quality, self.charts, where], **latest, **QUICK,
        )  # fmt: skip
        inside = [self.run, self.linear, self.against, self.layers, self.weights, self.comparison, where]
        gr.on([tab.select, self.run.input], self._draw_run, controls, inside, **latest, **QUICK)
        self.linear.input(self._draw_weights, controls, [self.weights, where], **QUICK)
        self.layers.cell(self._press_cell, controls, [self.linear, self.weights, where], **QUICK)
        self.against.input(self._draw_comparison, controls, [self.comparison, where], **QUICK)
        gr.on(
            [tab.select, *(control.input for control in self.fit_controls)],
            self._draw_fit, self.fit_controls, [self.memory, self.fit, self.fit_address], **latest, **QUICK,
        )  # fmt: skip
        for part, textbox in (("explore", where), ("fit", self.fit_address)):
            textbox.change(None, textbox, None, js=f"(search) => {{ lowbit.go('{part}', search); }}", **QUICK)

    def fill(self, view: PageView) -> list:
        """The values of `outputs` for a view; drawings are skipped while another tab is open."""
        board = self.boards.current()
        explored, fitted, runs = settle(board, view.explored), view.fitted, run_choices(board)
        run_ids = {run_id for _, run_id in runs}
        linears = [LARGEST, *run_inside.linears(explored.run)]
        drawings = [gr.skip()] * 5
        if view.tab == "explore":
            charts = self._charts(board, explored)
            drawings = [charts, fit_chart(board, fitted), *run_charts(board, explored)]
        return [
            gr.update(choices=model_choices(board), value=explored.model),
            gr.update(choices=quality_choices(board, explored.model), value=explored.quality),
            explored.within,
            explored.bits,
            gr.update(choices=runs, value=explored.run if explored.run in run_ids else None),
            gr.update(choices=linears, value=_linear_of(linears, explored)),
            gr.update(choices=runs, value=explored.against if explored.against in run_ids else None),
            fitted.model,
            fitted.card or "",
            gr.update(value=fitted.memory or OTHER_MEMORY, visible=fitted.card is None),
            fitted.context,
            fitted.batch,
            fitted.pictures,
            *drawings,
            self._address(explored),
            address(PageView(fitted=fitted)),
        ]

    def _charts(self, board: Board, explored: Explored) -> str:
        return oddities(board, self.boards.notes, explored) + model_charts(board, explored)

    def _address(self, explored: Explored) -> str:
        """The part's address; the quality that the model is first shown with is not written."""
        first = quality_choices(self.boards.current(), explored.model)[0][1]
        quality = None if explored.quality == first else explored.quality
        return address(PageView(explored=explored.model_copy(update={"quality": quality})))

    def _settled(self, values: tuple) -> Explored:
        return settle(self.boards.current(), read_explored(*values))

    def _draw_charts(self, *values) -> list:
        board, before = self.boards.current(), read_explored(*values)
        explored = settle(board, before)
        return [
            offer(model_choices(board), explored.model, before.model),
            offer(quality_choices(board, explored.model), explored.quality, before.quality),
            self._charts(board, explored),
            self._address(explored),
        ]

    def _draw_run(self, *values) -> list:
        """The chosen run, among those that there are now; a linear that it lacks is no longer chosen."""
        explored, runs = self._settled(values), run_choices(self.boards.current())
        linears, before = [LARGEST, *run_inside.linears(explored.run)], explored.linear or ""
        explored = explored.model_copy(update={"linear": _linear_of(linears, explored) or None})
        return [
            gr.update(choices=runs),
            offer(linears, explored.linear or "", before),
            gr.update(choices=runs),
            *run_charts(self.boards.current(), explored),
            self._address(explored),
        ]

    def _draw_weights(self, *values) -> list:
        explored = self._settled(values)
        return [run_inside.weights(explored), self._address(explored)]

    def _press_cell(self, event: gr.EventData, *values) -> list:
        explored = self._settled(values).model_copy(update={"linear": pressed(event, "linear")})
        return [explored.linear, run_inside.weights(explored), self._address(explored)]

    def _draw_comparison(self, *values) -> list:
        explored = self._settled(values)
        return [run_inside.comparison(explored), self._address(explored)]

    def _draw_fit(self, *values) -> list:
        fitted = read_fitted(*values)
        memory = gr.update(visible=fitted.card is None)
        return [memory, fit_chart(self.boards.current(), fitted), address(PageView(fitted=fitted))]


def _linear_of(linears: list[tuple[str, str]], explored: Explored) -> str:
    """The chosen linear, if the run has it, else that with the largest error."""
    return explored.linear if explored.linear in [key for _, key in linears] else LARGEST[1]
