"""The picture stress of the Ask tab: the question about the picture made worse step by step, to the tab's settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from PIL import Image

from leaderboard import pictures, requests
from leaderboard.lab import Lab
from leaderboard.stress import STRESSES, Stress, figure
from leaderboard.ui.answer_pane import Side, first_sides
from leaderboard.ui.ask_columns import Columns
from leaderboard.ui.chart import DRAW_JS, chart
from leaderboard.ui.notice import notice
from leaderboard.ui.questions import Questions
from leaderboard.ui.theme import NO_PROGRESS, QUICK, html
from quant_engine.answers.messages import AskRequest
from quant_engine.data.open_picture import open_picture
from quant_engine.spec import UserError

STRESSED_AT_ONCE = 4
MOST_TOKENS = 48
"""The longest answer: what is compared is its first sentence."""
PREVIEW_SIDE = 220


@dataclass(frozen=True)
class Stressing:
    """A question about a picture on its way through the strengths of a stress. Every strength asks with its id."""

    request: AskRequest
    stress: str
    picture: Image.Image


class StressPart:
    """Which stress, and what becomes of the answers."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.questions = Questions(lab.answers)
        self.stressing = gr.State(None)
        choices = [(stress.title, name) for name, stress in STRESSES.items()]
        with gr.Accordion("Picture stress: whose answer changes first", open=False, elem_classes="more-options"):
            with gr.Row(elem_classes="sweeping"):
                self.stress = gr.Dropdown(choices, value=choices[0][1], label="Make the picture worse by")
                self.start = gr.Button("Ask at each strength", elem_id="stress", min_width=88)
                self.stop = gr.Button("Stop", visible=False, elem_id="stop-stress", min_width=88)
            self.problem = html("", elem_id="stress-problem")
            self.steps = html("", elem_id="stressed")
            self.chart = html("", elem_id="stress-chart", js_on_load=DRAW_JS)

    def connect(self, picture: gr.State, question: gr.Textbox, columns: Columns) -> None:
        """Connects the part with what is asked."""
        buttons = [self.start, self.stop]
        self.start.click(
            self._prepare,
            [self.stress, picture, question, *columns.controls],
            [self.stressing, self.problem, self.steps, self.chart, *buttons],
            **QUICK,
        ).then(
            self._answer,
            self.stressing,
            [self.steps, self.chart],
            concurrency_limit=STRESSED_AT_ONCE,
            api_visibility="private",
            **NO_PROGRESS,
        ).then(lambda: (gr.update(visible=True), gr.update(visible=False)), None, buttons, **QUICK)
        self._columns = columns
        self.stop.click(self._halt, self.stressing, None, **QUICK)

    def _prepare(self, stress, picture, question, model, length, *columns) -> tuple:
        """Checks everything first. The picture is held in memory: its file may go meanwhile."""
        try:
            if stress not in STRESSES:
                raise UserError("Choose what is done to the picture from the list.")
            settings, _ = self._columns.read(model, length, *columns)
            request = requests.question(model, picture, question, settings, length)
            opened = open_picture(request.image)
        except UserError as refusal:
            return None, notice(str(refusal)), *[gr.skip()] * 4
        request = request.model_copy(
            update={"max_new_tokens": min(request.max_new_tokens, MOST_TOKENS), "request_id": uuid4().hex}
        )
        self.questions.begin(request)
        stressing = Stressing(request, stress, opened)
        return stressing, "", "", "", gr.update(visible=False), gr.update(visible=True)

    def _answer(self, stressing: Stressing | None) -> Iterator[list[Any]]:
        """The pictures so far with what is being asked, and after each strength the chart."""
        if stressing is None:
            yield [gr.skip(), gr.skip()]
            return
        request, stress = stressing.request, STRESSES[stressing.stress]
        answers: dict[str, list[str | None]] = {setting.label: [] for setting in request.sides}
        shown: list[str] = []
        try:
            with tempfile.TemporaryDirectory(prefix="lowbit-stress-") as folder:
                for index, label in enumerate(stress.labels):
                    worse = stress.apply(stressing.picture, stress.strengths[index - 1]) if index else stressing.picture
                    shown.append(pictures.address(worse, PREVIEW_SIDE))
                    yield [steps_html(stress, shown, label), gr.skip()]
                    sides = self._ask(request, worse, Path(folder) / f"{index}.png")
                    if any(side.message == "Stopped." for side in sides):
                        break
                    for side in sides:
                        answers[side.setting.label].append(side.text if side.state == "done" else None)
                    yield [gr.skip(), chart_html(stress, answers)]
        finally:
            self.questions.end(request)
        yield [steps_html(stress, shown), gr.skip()]

    def _ask(self, request: AskRequest, picture: Image.Image, file: Path) -> list[Side]:
        """Every setting's answer to the question about a picture, which lies in the file as long as that takes."""
        picture.save(file, "PNG")
        asked = request.model_copy(update={"image": file})
        sides = list(first_sides(asked))
        try:
            for event in self.questions.events(asked):
                sides[event.side] = sides[event.side].after(event)
        finally:
            file.unlink(missing_ok=True)
        return sides

    def _halt(self, stressing: Stressing | None) -> None:
        if stressing is not None:
            self.questions.stop(stressing.request)


def steps_html(stress: Stress, shown: Sequence[str], asking: str = "") -> str:
    """The picture at each strength so far, and which is being asked about."""
    figures = "".join(
        f'<figure><img src="{address}" alt="The picture: {escape(label)}"><figcaption>{escape(label)}</figcaption>'
        "</figure>"
        for address, label in zip(shown, stress.labels, strict=False)
    )
    wait = f"Asking about the picture, {asking}: {len(shown)} of {len(stress.labels)}"
    line = f'<p class="wait" role="status">{escape(wait)}<i></i></p>' if asking else ""
    return f'<div class="stressed">{figures}</div>{line}'


def chart_html(stress: Stress, answers: dict[str, list[str | None]]) -> str:
    """The chart, once there is something to compare."""
    if max(map(len, answers.values())) < 2:
        return ""
    return f'<div class="figures one">{chart(lambda: figure(stress, answers), "Whose answer changes first")}</div>'
