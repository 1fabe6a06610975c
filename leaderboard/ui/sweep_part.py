"""The bit sweep of the Ask tab: the question at 16, 8, 6, 4, 3 and 2 bits of one method, as one row of answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from leaderboard import requests, sweep
from leaderboard.lab import Lab
from leaderboard.ui.answer_pane import Side, answer_html, first_sides
from leaderboard.ui.notice import notice
from leaderboard.ui.questions import Questions
from leaderboard.ui.table import bit_bar
from leaderboard.ui.theme import NO_PROGRESS, QUICK, html
from quant_engine import notation
from quant_engine.answers.compare import SideAnswer, along_fp16, sweep_settings
from quant_engine.answers.messages import AskRequest
from quant_engine.methods import METHODS
from quant_engine.spec import UserError

SWEPT_AT_ONCE = 8
GROUPS = [(requests.PER_ROW, 0), ("32", 32), ("64", 64), ("128", 128)]


class SweepPart:
    """Method, group, and the row of answers."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.questions = Questions(lab.answers)
        self.request = gr.State(None)
        methods = [(METHODS[name].card.title, name) for name in METHODS if len(METHODS[name].card.bits) > 1]
        html("<h3>The same question at every width</h3>")
        with gr.Row(elem_classes="sweeping"):
            self.method = gr.Dropdown(methods, value="rtn", label="Method of the sweep", filterable=False)
            self.group = gr.Dropdown(GROUPS, value=64, label="Group of the sweep", filterable=False)
            self.start = gr.Button("Ask at 16 to 2 bits", elem_id="sweep", min_width=88)
            self.stop = gr.Button("Stop", visible=False, elem_id="stop-sweep", min_width=88)
        self.problem = html("", elem_id="sweep-problem")
        self.row = html("", elem_id="swept")

    def connect(self, model: gr.Dropdown, picture: gr.State, question: gr.Textbox, length: gr.Dropdown) -> None:
        """Connects the part with what is asked."""
        form = [model, picture, question, length, self.method, self.group]
        buttons = [self.start, self.stop]
        self.start.click(self._prepare, form, [self.request, self.problem, self.row, *buttons], **QUICK).then(
            self._answer,
            self.request,
            self.row,
            concurrency_limit=SWEPT_AT_ONCE,
            api_visibility="private",
            **NO_PROGRESS,
        ).then(lambda: (gr.update(visible=True), gr.update(visible=False)), None, buttons, **QUICK)
        self.stop.click(lambda request: self.questions.stop(request) if request else None, self.request, None, **QUICK)

    def _prepare(self, model, picture, question, length, method, group) -> tuple:
        try:
            sides = sweep_settings(method, group or None)
            request = requests.question(model, picture, question, sides[1:], length)
        except UserError as refusal:
            return None, notice(str(refusal)), gr.skip(), gr.skip(), gr.skip()
        self.questions.begin(request)
        return request, "", row_html(first_sides(request)), gr.update(visible=False), gr.update(visible=True)

    def _answer(self, request: AskRequest | None) -> Iterator[Any]:
        """The row, anew after each event; at the end with the files to save."""
        if request is None:
            yield gr.skip()
            return
        sides = list(first_sides(request))
        for event in self.questions.events(request):
            sides[event.side] = sides[event.side].after(event)
            yield row_html(sides)
        along = along_fp16(request, [side.tokens for side in sides])
        if along:
            for event in self.questions.events(along[0]):
                number = along[1][event.side]
                sides[number] = sides[number].after_reading(event, sides[0].text)
                yield row_html(sides)
        self.questions.end(request)
        yield row_html(sides) + files_html(request.question, [side_answer(side) for side in sides], request.image)


def side_answer(side: Side) -> SideAnswer:
    """A side as the tables take it."""
    parting = side.parting if side.setting.method != "fp16" else None
    return SideAnswer(
        setting=side.setting,
        text=side.text,
        problem=side.message if side.state == "error" else "",
        stats=side.stats,
        parted=parting.words if parting else "",
        divergence=parting.divergence if parting else None,
    )


def row_html(sides: Sequence[Side]) -> str:
    """The answers as a row of small cards, widest first."""
    return f'<div class="swept">{"".join(map(_card, sides))}</div>'


def _card(side: Side) -> str:
    stats, parting = side.stats, side.parting
    costs = f"{stats.stored_bits:.2f} bits · {notation.size(stats.weight_bytes)}" if stats else "&nbsp;"
    parted = escape(parting.words if parting and side.setting.method != "fp16" else side.reading) or "&nbsp;"
    return (
        f'<article class="at-{side.state}" aria-busy="{str(side.state in ("status", "token")).lower()}">'
        f"<header><b>{escape(side.setting.label)}</b>{bit_bar(side.setting.w_bits)}</header><small>{costs}</small>"
        f'<div class="said">{answer_html(side)}</div><small class="parted">{parted}</small></article>'
    )


def files_html(question: str, answers: Sequence[SideAnswer], picture: Path | None) -> str:
    """The ways to save the row."""
    files = (
        ("Markdown", "md", "text/markdown", sweep.as_markdown(question, answers)),
        ("CSV", "csv", "text/csv", sweep.as_csv(question, answers)),
        ("PNG", "png", "image/png", sweep.as_png(question, answers, picture)),
    )
    buttons = "".join(
        f'<button type="button" data-save="low-bit-lab-sweep.{ending}" data-type="{kind}"'
        f' data-content="{base64.b64encode(content).decode()}">{title}</button>'
        for title, ending, kind, content in files
    )
    return f'<p class="saves">Save as {buttons}</p>'
