"""The Ask a picture tab: one picture, one question, FP16 at the left and a quantized setting beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from leaderboard import pictures, requests
from leaderboard.lab import Lab
from leaderboard.ui import setting_picker
from leaderboard.ui.answer_pane import Side, pane
from leaderboard.ui.theme import html
from quant_engine.answers.messages import AskRequest
from quant_engine.folders import ASSETS
from quant_engine.models.catalog import MODELS
from quant_engine.spec import QuantSetting, UserError

logger = logging.getLogger(__name__)

EXAMPLES = ASSETS / "demo" / "examples" / "examples.json"
LENGTHS = [16, 32, 64, 128, 256]
FIRST_SETTING = QuantSetting(method="rtn", w_bits=4, group_size=64)
_PICK_JS = """
element.addEventListener('click', (event) => {
  const example = event.target.closest('[data-example]');
  if (example) trigger('pick', { index: Number(example.dataset.example) });
});
"""


@dataclass(frozen=True)
class Example:
    """A picture that ships with the project, a question about it, and the right answer."""

    picture: Path
    question: str
    answer: str


def examples(file: Path = EXAMPLES) -> list[Example]:
    """The examples that are there; none, with a line in the log, if the list can't be read."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = [Example(file.parent / entry["image"], entry["question"], entry["answer"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("No example pictures: %s can't be read (%s).", file.name, error)
        return []
    return [example for example in found if example.picture.is_file()]


def strip(shown: list[Example]) -> str:
    """The examples as a row of small pictures to press."""
    if not shown:
        return ""
    cards = "".join(
        f'<button type="button" data-example="{index}" title="{escape(example.question)}">'
        f'<img src="{pictures.preview(example.picture, 150)}" alt="Example: {escape(example.question)}"></button>'
        for index, example in enumerate(shown)
    )
    return f'<div class="strip"><p>Or take one of these</p><div>{cards}</div></div>'


def picture_html(path: str | None, answer: str = "") -> str:
    """The picture that is asked about, with the right answer below it where that is known."""
    if not path:
        return ""
    known = f"<figcaption>Right answer: {escape(answer)}</figcaption>" if answer else ""
    shown = f'<img src="{pictures.preview(Path(path))}" alt="The picture asked about">'
    return f'<figure class="picture">{shown}{known}</figure>'


def notice(sentence: str) -> str:
    return f'<div class="notice" role="alert">{escape(sentence)}</div>' if sentence else ""


def model_note(model: str) -> str:
    """What the model can be expected to know, in its own words."""
    note = MODELS[model].note if model in MODELS else ""
    return f'<p class="remark">{escape(note)}</p>'


def build(lab: Lab) -> None:
    """Lays out the tab and wires it."""
    shown = examples()
    cards = requests.picture_models()
    with gr.Row(elem_classes="bench"):
        with gr.Column(elem_classes="bench-side"):
            picture = gr.State(None, delete_callback=pictures.forget)
            request = gr.State(None)
            frame = html(picture_html(None), elem_id="picture")
            upload = gr.File(
                label="Picture", file_types=["image"], type="filepath", height=64, elem_id="drop", show_label=False
            )
            gallery = html(strip(shown), js_on_load=_PICK_JS, elem_id="examples")
        with gr.Column(elem_classes="bench-main"):
            with gr.Row(elem_classes="asking"):
                question = gr.Textbox(
                    label="Question", placeholder="What is in the picture?", lines=1, max_lines=4, elem_id="question"
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=88)
                stop = gr.Button("Stop", visible=False, elem_id="stop", min_width=88)
            with gr.Row(elem_classes="asking-of"):
                model = gr.Dropdown(
                    [(card.title, card.id) for card in cards], value=cards[0].id, label="Model", filterable=False
                )
                picker = setting_picker.build(
                    FIRST_SETTING.method, f"{FIRST_SETTING.w_bits:g}", str(FIRST_SETTING.group_size), fp16=False
                )
                length = gr.Dropdown(LENGTHS, value=64, label="Most tokens", filterable=False)
            problem = html("", elem_id="ask-problem")
            with gr.Row(elem_classes="answers"):
                left = html(pane(Side(requests.FP16)), elem_id="answer-0")
                right = html(pane(Side(FIRST_SETTING)), elem_id="answer-1")
            remark = html(model_note(cards[0].id))

    halted: set[str] = set()

    def take(upload_path: str | None, old: str | None) -> tuple:
        if not upload_path:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        try:
            accepted = str(pictures.accept(Path(upload_path)))
        except UserError as refusal:
            return old, picture_html(old), None, notice(str(refusal))
        pictures.forget(old)
        return accepted, picture_html(accepted), None, ""

    def pick(event: gr.EventData, old: str | None) -> tuple:
        index = event._data["index"]
        if not (isinstance(index, int) and 0 <= index < len(shown)):
            return gr.skip(), gr.skip(), gr.skip(), notice("Choose one of the examples.")
        pictures.forget(old)
        chosen = shown[index]
        return str(chosen.picture), picture_html(str(chosen.picture), chosen.answer), chosen.question, ""

    def prepare(model_id, image, text, method, bits, a_bits, group, tokens) -> tuple:
        """Checks everything first, so that a refusal is a sentence beside the form."""
        try:
            compared = requests.setting(method, bits, group, a_bits=a_bits)
            asked = requests.question(model_id, image, text, compared, tokens)
        except UserError as refusal:
            return None, notice(str(refusal)), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        panes = [pane(Side(side, "status", message="Asking")) for side in asked.sides]
        return asked, "", *panes, gr.update(visible=False), gr.update(visible=True)

    def answer(asked: AskRequest | None) -> Iterator[tuple[str, str]]:
        if asked is None:
            yield gr.skip(), gr.skip()
            return
        sides = [Side(setting, "status", message="Asking") for setting in asked.sides]
        for event in lab.answers.ask(asked):
            if asked.request_id in halted:  # Stop may have been pressed before the question was on its way
                halted.discard(asked.request_id)
                lab.answers.cancel(asked.request_id)
            sides[event.side] = sides[event.side].after(event)
            yield pane(sides[0]), pane(sides[1])
        halted.discard(asked.request_id)

    def ended() -> tuple:
        return gr.update(visible=True), gr.update(visible=False)

    def halt(asked: AskRequest | None) -> None:
        if asked is not None:
            halted.add(asked.request_id)
            lab.answers.cancel(asked.request_id)

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    form = [model, picture, question, *picker, length]
    upload.upload(take, [upload, picture], [picture, frame, upload, problem], **quick)
    gallery.pick(pick, [picture], [picture, frame, question, problem], **quick)
    model.input(model_note, model, remark, **quick)
    gr.on([ask.click, question.submit], prepare, form, [request, problem, left, right, ask, stop], **quick).then(
        answer, request, [left, right], show_progress="hidden", concurrency_limit=8, api_visibility="private"
    ).then(ended, None, [ask, stop], **quick)
    stop.click(halt, request, None, **quick)
