"""The Ask a picture tab: one picture, one question, FP16 at the left and one to three quantized settings after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from leaderboard import pictures, requests
from leaderboard.conversation import Conversation, Example, read_examples
from leaderboard.lab import Lab
from leaderboard.ui.answer_pane import first_sides, pane
from leaderboard.ui.ask_columns import Columns
from leaderboard.ui.theme import QUICK, html
from leaderboard.view import Asked, PageView, address
from quant_engine.answers.messages import AskRequest
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError

ASKING_AT_ONCE = 24
"""Each open question holds one of Gradio's 40 threads; the answering process puts them in line and says so."""
_PICK_JS = """
element.addEventListener('click', (event) => {
  const example = event.target.closest('[data-example]');
  if (example) trigger('pick', { index: Number(example.dataset.example) });
});
"""
_ESCAPE_JS = """
document.addEventListener('keydown', (event) => {
  const choosing = event.target.closest?.('[aria-expanded="true"]');
  if (event.key === 'Escape' && !choosing) document.querySelector('#stop')?.click();
});
"""


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


class AskTab:
    """The tab on the page. `outputs` is what `fill` sets to a view."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the tab and connects it."""
        with gr.Row(elem_classes="bench asking-bench"):
            with gr.Column(elem_classes="bench-side"):
                self.picture = PicturePart()
            with gr.Column(elem_classes="bench-main"):
                self.question = QuestionPart(lab)
        self.picture.connect(self.question)
        self.question.connect(self.picture)
        self.outputs = [self.picture.path, self.picture.frame, *self.question.outputs]

    def fill(self, asked: Asked) -> list[Any]:
        """Updates of `outputs` that set the tab to a link. A link that asks nothing leaves it as it is."""
        if asked == Asked():
            return [gr.skip()] * len(self.outputs)
        return [*self.picture.fill(asked), *self.question.fill(asked)]


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

    def number(self, path: Path | None) -> int | None:
        """The number of the example that a picture is; None for a visitor's own."""
        files = [example.picture for example in self.examples]
        return files.index(path) + 1 if path in files else None

    def fill(self, asked: Asked) -> list[Any]:
        """The example of a link. Without it the picture stays: a visitor's own is in no link."""
        if asked.example is None or asked.example > len(self.examples):
            return [gr.skip(), gr.skip()]
        example = self.examples[asked.example - 1]
        return [str(example.picture), picture_html(str(example.picture), example.answer)]

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


@dataclass(frozen=True)
class Asking:
    """A question on its way, and the column that each of its sides stands in."""

    request: AskRequest
    columns: tuple[int, ...]


class QuestionPart:
    """The question, the columns that it is asked, and their answers. `outputs` are what `fill` sets to a link."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.lab = lab
        self.halted: set[str] = set()  # requests that Stop was pressed for
        self.asking = gr.State(None)
        self.conversation = gr.State(None)
        self.address = gr.Textbox("", visible="hidden")
        with gr.Row(elem_classes="asking"):
            self.question = gr.Textbox(
                label="Question", placeholder="What is in the picture?", lines=1, max_lines=4, elem_id="question"
            )
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=88)
            self.stop = gr.Button("Stop", visible=False, elem_id="stop", min_width=88)
            self.follow = gr.Button("Follow up", interactive=False, elem_id="follow", min_width=88)
            self.add = gr.Button("Add a setting", elem_id="add", min_width=88)
        self.problem = html("", elem_id="ask-problem", js_on_load=_ESCAPE_JS)
        self.columns = Columns()
        self.remark = html(model_note(self.columns.model.value))
        self.outputs = [self.question, *self.columns.outputs, self.add, self.remark]

    def connect(self, picture: PicturePart) -> None:
        """Connects the part with itself, and with the picture that is asked about."""
        self._number_of = picture.number
        form = [self.conversation, picture.path, self.question, *self.columns.controls]
        buttons = [self.ask, self.stop, self.follow, self.add]
        outputs = [self.asking, self.problem, self.address, *self.columns.panes, *buttons]
        self.columns.connect(self.add)
        self.columns.model.input(model_note, self.columns.model, self.remark, **QUICK)
        for event, prepare in (
            ([self.ask.click, self.question.submit], self._prepare),
            ([self.follow.click], self._prepare_follow_up),
        ):
            gr.on(event, prepare, form, outputs, **QUICK).then(
                self._answer,
                self.asking,
                [*self.columns.panes, self.conversation],
                show_progress="hidden",
                concurrency_limit=ASKING_AT_ONCE,
                concurrency_id="ask",
                api_visibility="private",
            ).then(self._end, [self.conversation, self.columns.shown], buttons, **QUICK)
        self.stop.click(self._halt, self.asking, None, **QUICK)
        self.address.change(None, self.address, None, js="(search) => { lowbit.go('ask', search); }", **QUICK)

    def fill(self, asked: Asked) -> list[Any]:
        """Updates of `outputs` that set question and columns to a link."""
        columns = self.columns.fill(asked)
        return [asked.question, *columns, gr.skip(), model_note(asked.model or self.columns.model.value)]

    def _prepare(self, _: Conversation | None, *form: Any) -> tuple:
        return self._prepare_follow_up(None, *form)

    def _prepare_follow_up(self, before: Conversation | None, picture, question, model, length, *columns) -> tuple:
        """Checks everything first, so that a refusal is a sentence beside the form."""
        panes = [gr.skip()] * len(self.columns.panes)
        try:
            settings, shown = self.columns.read(model, length, *columns)
            request = requests.question(model, picture, question, settings, length, before.turns if before else ())
            if before:
                before.check_follows(request)
        except UserError as refusal:
            return None, notice(str(refusal)), gr.skip(), *panes, *[gr.skip()] * 4
        for column, side in zip(shown, first_sides(request), strict=True):
            panes[column] = pane(side)
        asked = Asked(
            model=model,
            settings=",".join(setting.code for setting in settings),
            question=request.question,
            example=self._number_of(request.image),
            tokens=length,
        )
        off = gr.update(interactive=False)
        buttons = gr.update(visible=False), gr.update(visible=True), off, off
        return Asking(request, shown), "", address(PageView(asked=asked)), *panes, *buttons

    def _answer(self, asking: Asking | None) -> Iterator[list[Any]]:
        """The panes that change, anew after each event; at the end the conversation."""
        unchanged = [gr.skip()] * (len(self.columns.panes) + 1)
        if asking is None:
            yield unchanged
            return
        request, sides = asking.request, first_sides(asking.request)
        for event in self.lab.answers.ask(request):
            if request.request_id in self.halted:  # Stop may have been pressed before the question was on its way
                self.halted.discard(request.request_id)
                self.lab.answers.cancel(request.request_id)
            sides[event.side] = sides[event.side].after(event)
            update = [*unchanged]
            update[asking.columns[event.side]] = pane(sides[event.side])
            yield update
        self.halted.discard(request.request_id)
        yield [*unchanged[:-1], Conversation(request, tuple(side.text.strip() for side in sides))]

    def _end(self, conversation: Conversation | None, shown: tuple[bool, ...]) -> tuple:
        can_follow = gr.update(interactive=conversation is not None)
        return gr.update(visible=True), gr.update(visible=False), can_follow, gr.update(interactive=not all(shown))

    def _halt(self, asking: Asking | None) -> None:
        if asking is not None:
            self.halted.add(asking.request.request_id)
            self.lab.answers.cancel(asking.request.request_id)
