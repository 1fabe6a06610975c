"""The Ask a picture tab: one picture, one question, FP16 at the left and a quantized setting beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from leaderboard import pictures, requests
from leaderboard.lab import Lab
from leaderboard.ui import setting_picker
from leaderboard.ui.answer_pane import Side, pane
from leaderboard.ui.theme import QUICK, html
from quant_engine.answers.messages import AskRequest
from quant_engine.folders import ASSETS
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

EXAMPLES = ASSETS / "demo" / "examples" / "examples.json"
ASKING_AT_ONCE = 24
"""Each open question holds one of Gradio's 40 threads; the answering process puts them in line and says so."""
LENGTHS = [16, 32, 64, 128, 256]
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


def read_examples(file: Path = EXAMPLES) -> list[Example]:
    """The examples whose pictures are there; none, with a line in the log, if the list can't be read."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        listed = [Example(file.parent / entry["image"], entry["question"], entry["answer"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("No example pictures: %s can't be read (%s).", file.name, error)
        return []
    return [example for example in listed if example.picture.is_file()]


def strip(examples: list[Example]) -> str:
    """The examples as a row of small pictures to press."""
    if not examples:
        return ""
    buttons = "".join(
        f'<button type="button" data-example="{index}" title="{escape(example.question)}">'
        f'<img src="{pictures.preview(example.picture, 150)}" alt="Example: {escape(example.question)}"></button>'
        for index, example in enumerate(examples)
    )
    return f'<div class="strip"><p>Or take one of these</p><div>{buttons}</div></div>'


def picture_html(path: str | None, answer: str = "") -> str:
    """The picture that is asked about, with the right answer below it where that is known."""
    if not path:
        return ""
    caption = f"<figcaption>Right answer: {escape(answer)}</figcaption>" if answer else ""
    image = f'<img src="{pictures.preview(Path(path))}" alt="The picture asked about">'
    return f'<figure class="picture">{image}{caption}</figure>'


def notice(sentence: str) -> str:
    """A refusal as HTML; nothing for an empty sentence."""
    return f'<div class="notice" role="alert">{escape(sentence)}</div>' if sentence else ""


def model_note(model: str) -> str:
    """What the model can be expected to know, in its own words."""
    note = MODELS[model].note if model in MODELS else ""
    return f'<p class="remark">{escape(note)}</p>'


def build(lab: Lab) -> None:
    """Lays out the tab and connects it."""
    with gr.Row(elem_classes="bench"):
        with gr.Column(elem_classes="bench-side"):
            picture = PicturePart()
        with gr.Column(elem_classes="bench-main"):
            question = QuestionPart(lab)
    picture.connect(question)
    question.connect(picture)


class PicturePart:
    """The picture that is asked about: uploaded, or one of the examples. `path` holds its file."""

    def __init__(self) -> None:
        """Lays out the part."""
        self.examples = read_examples()
        self.path = gr.State(None, delete_callback=pictures.forget)
        self.frame = html(picture_html(None), elem_id="picture")
        self.upload = gr.File(
            label="Picture", file_types=["image"], type="filepath", height=64, elem_id="drop", show_label=False
        )
        self.gallery = html(strip(self.examples), js_on_load=_PICK_JS, elem_id="examples")

    def connect(self, part: QuestionPart) -> None:
        outputs = [self.path, self.frame, part.question, part.problem]
        self.gallery.pick(self._pick, self.path, outputs, **QUICK)
        outputs = [self.path, self.frame, self.upload, part.problem]
        # Not preprocessed: Gradio would answer a file type of its own list's with an error, and leave an empty file.
        self.upload.upload(self._accept, [self.upload, self.path], outputs, preprocess=False, **QUICK)

    def _accept(self, upload: Mapping[str, Any] | None, path: str | None) -> tuple:
        """Takes an uploaded picture, whose file is deleted; a refused one leaves the picture before it."""
        if not upload:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        file = Path(upload["path"])
        try:
            accepted = str(pictures.accept(file))
        except UserError as refusal:
            return path, picture_html(path), None, notice(str(refusal))
        finally:
            pictures.discard(file)
        pictures.forget(path)
        return accepted, picture_html(accepted), None, ""

    def _pick(self, event: gr.EventData, path: str | None) -> tuple:
        """Takes an example with its question."""
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not (isinstance(index, int) and 0 <= index < len(self.examples)):
            return gr.skip(), gr.skip(), gr.skip(), notice("Choose one of the examples.")
        pictures.forget(path)
        example = self.examples[index]
        return str(example.picture), picture_html(str(example.picture), example.answer), example.question, ""


class QuestionPart:
    """The question, the model and setting that are asked, and the two answers."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.lab = lab
        self.halted: set[str] = set()  # requests that Stop was pressed for
        cards = requests.picture_models()
        self.request = gr.State(None)
        with gr.Row(elem_classes="asking"):
            self.question = gr.Textbox(
                label="Question", placeholder="What is in the picture?", lines=1, max_lines=4, elem_id="question"
            )
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=88)
            self.stop = gr.Button("Stop", visible=False, elem_id="stop", min_width=88)
        with gr.Row(elem_classes="asking-of"):
            self.model = gr.Dropdown(
                [(card.title, card.id) for card in cards], value=cards[0].id, label="Model", filterable=False
            )
            self.picker = setting_picker.build(fp16=False)
            self.length = gr.Dropdown(LENGTHS, value=64, label="Most tokens", filterable=False)
        self.problem = html("", elem_id="ask-problem")
        with gr.Row(elem_classes="answers"):
            self.panes = [
                html(pane(Side(setting)), elem_id=f"answer-{index}")
                for index, setting in enumerate((requests.FP16, setting_picker.FIRST_SETTING))
            ]
        self.remark = html(model_note(cards[0].id))

    def connect(self, picture: PicturePart) -> None:
        form = [self.model, picture.path, self.question, *self.picker, self.length]
        outputs = [self.request, self.problem, *self.panes, self.ask, self.stop]
        self.model.input(model_note, self.model, self.remark, **QUICK)
        gr.on([self.ask.click, self.question.submit], self._prepare, form, outputs, **QUICK).then(
            self._answer,
            self.request,
            self.panes,
            show_progress="hidden",
            concurrency_limit=ASKING_AT_ONCE,
            api_visibility="private",
        ).then(self._end, None, [self.ask, self.stop], **QUICK)
        self.stop.click(self._halt, self.request, None, **QUICK)

    def _prepare(self, model, picture, question, method, bits, a_bits, group, most_tokens) -> tuple:
        """Checks everything first, so that a refusal is a sentence beside the form."""
        try:
            setting = requests.setting(method, bits, group, a_bits=a_bits)
            request = requests.question(model, picture, question, setting, most_tokens)
        except UserError as refusal:
            return None, notice(str(refusal)), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        panes = [pane(side) for side in _first_sides(request)]
        return request, "", *panes, gr.update(visible=False), gr.update(visible=True)

    def _answer(self, request: AskRequest | None) -> Iterator[tuple[str, ...]]:
        """Both panes, anew after each event."""
        if request is None:
            yield gr.skip(), gr.skip()
            return
        sides = _first_sides(request)
        for event in self.lab.answers.ask(request):
            if request.request_id in self.halted:  # Stop may have been pressed before the question was on its way
                self.halted.discard(request.request_id)
                self.lab.answers.cancel(request.request_id)
            sides[event.side] = sides[event.side].after(event)
            yield tuple(map(pane, sides))
        self.halted.discard(request.request_id)

    def _end(self) -> tuple:
        return gr.update(visible=True), gr.update(visible=False)

    def _halt(self, request: AskRequest | None) -> None:
        if request is not None:
            self.halted.add(request.request_id)
            self.lab.answers.cancel(request.request_id)


def _first_sides(request: AskRequest) -> list[Side]:
    return [Side(setting, "status", message="Asking") for setting in request.sides]
