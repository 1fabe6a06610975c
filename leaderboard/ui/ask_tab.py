"""The Ask a picture tab: one picture, one question, FP16 at the left and one to three quantized settings after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from leaderboard import pictures, requests
from leaderboard.conversation import Conversation
from leaderboard.lab import Lab
from leaderboard.ui.answer_pane import Side, first_sides, pane
from leaderboard.ui.ask_columns import FIRST_SETTINGS, Columns, about_model, read_settings
from leaderboard.ui.blind_part import BlindPart
from leaderboard.ui.notice import notice
from leaderboard.ui.pressed import pressed
from leaderboard.ui.questions import Questions
from leaderboard.ui.stress_part import StressPart
from leaderboard.ui.sweep_part import SweepPart
from leaderboard.ui.theme import NO_PROGRESS, QUICK, html
from leaderboard.view import Asked, PageView, address
from quant_engine.answers.compare import along_fp16
from quant_engine.answers.examples import Example, read_examples
from quant_engine.answers.messages import AskRequest, Turn
from quant_engine.spec import UserError

ASKING_AT_ONCE = 24
"""Each open question holds one of Gradio's 40 threads; the answering process puts them in line and says so."""
SUGGESTIONS = (
    "What is shown in this picture?",
    "Write a tweet to go with this picture.",
    "What is the mood of the animal in this picture?",
    "What does this cartoon mean?",
    "Whose painting is this? Answer in three sentences.",
)
"""Questions for a picture of one's own: what the study's Figures 2 to 6 ask, in our words."""
_PICK_JS = """
element.addEventListener('click', (event) => {
  const example = event.target.closest('[data-example]');
  if (example) trigger('pick', { index: Number(example.dataset.example) });
});
"""
_SUGGEST_JS = """
element.addEventListener('click', (event) => {
  const suggestion = event.target.closest('[data-suggestion]');
  if (suggestion) trigger('suggest', { suggestion: suggestion.dataset.suggestion });
});
"""
_ESCAPE_JS = """
document.addEventListener('keydown', (event) => {
  const choosing = event.target.closest?.('[aria-expanded="true"]');
  if (event.key !== 'Escape' || choosing) return;
  const stops = document.querySelectorAll('#stop, #stop-sweep, #stop-stress, #stop-blind');
  for (const stop of stops) if (stop.checkVisibility()) stop.click();
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
    """The picture that is asked about, with the right answer below it where that is known, and else with what could be
    asked."""
    if not path:
        return ""
    caption = f"<figcaption>Right answer: {escape(answer)}</figcaption>" if answer else ""
    image = f'<img src="{pictures.preview(Path(path))}" alt="The picture asked about">'
    return f'<figure class="picture">{image}{caption}</figure>{"" if answer else _suggestions()}'


def _suggestions() -> str:
    buttons = (
        f'<button type="button" data-suggestion="{escape(text, quote=True)}">{escape(text)}</button>'
        for text in SUGGESTIONS
    )
    return f'<div class="suggestions"><p>As the study asks in its Figures 2 to 6</p>{"".join(buttons)}</div>'


class AskTab:
    """The tab on the page. `outputs` is what `fill` sets to a view."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the tab and connects it."""
        with gr.Row(elem_classes="bench asking-bench"):
            with gr.Column(elem_classes="bench-side"):
                self.picture = PicturePart()
            with gr.Column(elem_classes="bench-main"):
                self.question = QuestionPart(lab)
                self.sweep = SweepPart(lab)
                self.stress = StressPart(lab)
                self.blind = BlindPart(lab)
        self.picture.connect(self.question)
        self.question.connect(self.picture)
        columns = self.question.columns
        asked = [columns.model, self.picture.path, self.question.question, columns.length]
        self.sweep.connect(*asked)
        self.stress.connect(self.picture.path, self.question.question, columns)
        self.blind.connect(*asked, named=[self.question.asking, self.sweep.request])
        self.outputs = [self.picture.path, self.picture.frame, *self.question.outputs]

    def fill(self, asked: Asked) -> list[Any]:
        """Updates of `outputs` that set the tab to a link. A link that asks nothing leaves it as it is, and one that
        names an example alone asks the example's question."""
        if asked == Asked():
            return [gr.skip()] * len(self.outputs)
        example = self.picture.example(asked)
        question = asked.question or (example.question if example else "")
        return [*self.picture.fill(asked), *self.question.fill(asked.model_copy(update={"question": question}))]


class PicturePart:
    """The picture that is asked about: uploaded, or one of the examples. `path` holds its file."""

    def __init__(self) -> None:
        """Lays out the part."""
        self.examples = read_examples()
        self.path = gr.State(None, delete_callback=pictures.forget)
        self.frame = html(picture_html(None), js_on_load=_SUGGEST_JS, elem_id="picture")
        self.upload = gr.File(
            label="Picture", file_types=["image"], type="filepath", height=64, elem_id="drop", show_label=False
        )
        self.gallery = html(strip(self.examples), js_on_load=_PICK_JS, elem_id="examples")

    def connect(self, part: QuestionPart) -> None:
        outputs = [self.path, self.frame, part.question, part.problem]
        self.gallery.pick(self._pick, self.path, outputs, **QUICK)
        self.frame.suggest(self._suggest, None, part.question, **QUICK)
        outputs = [self.path, self.frame, self.upload, part.problem]
        # Not preprocessed: Gradio would answer a file type of its own list's with an error, and leave an empty file.
        self.upload.upload(self._accept, [self.upload, self.path], outputs, preprocess=False, **QUICK)

    def number(self, path: Path | None) -> int | None:
        """The number of the example that a picture is; None for a visitor's own."""
        files = [example.picture for example in self.examples]
        return files.index(path) + 1 if path in files else None

    def fill(self, asked: Asked) -> list[Any]:
        """The example of a link. Without it the picture stays: a visitor's own is in no link."""
        example = self.example(asked)
        if example is None:
            return [gr.skip(), gr.skip()]
        return [str(example.picture), picture_html(str(example.picture), example.answer)]

    def example(self, asked: Asked) -> Example | None:
        """The example that a link names, if it is there."""
        is_there = asked.example is not None and asked.example <= len(self.examples)
        return self.examples[asked.example - 1] if is_there else None

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

    def _suggest(self, event: gr.EventData) -> str:
        return pressed(event, "suggestion")

    def _pick(self, event: gr.EventData, path: str | None) -> tuple:
        """Takes an example with its question."""
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not (isinstance(index, int) and 0 <= index < len(self.examples)):
            return gr.skip(), gr.skip(), gr.skip(), notice("Choose one of the examples.")
        pictures.forget(path)
        example = self.examples[index]
        return str(example.picture), picture_html(str(example.picture), example.answer), example.question, ""


@dataclass(frozen=True)
class Answered:
    """Answers as they stand on the page: the question, the column of each of its sides, and the sides."""

    request: AskRequest
    columns: tuple[int, ...]
    sides: tuple[Side, ...]

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.request, tuple(side.text.strip() for side in self.sides))

    def onward(self, number: int) -> AskRequest:
        """The question that has a side go on from the fork, behind FP16's own token there."""
        request, side = self.request, self.sides[number]
        earlier = tuple(Turn(question=turn.question, answers=(turn.answers[number],)) for turn in request.earlier)
        return AskRequest(
            model=request.model,
            image=request.image,
            question=request.question,
            sides=(side.setting,),
            earlier=earlier,
            prefix=self.sides[0].tokens[: side.parting.fork + 1],
            max_new_tokens=request.max_new_tokens,
        )


@dataclass(frozen=True)
class Asking:
    """A question on its way: to all sides in their columns, or to the side that goes on `onward` from its fork in the
    answer to the question `before`."""

    request: AskRequest
    columns: tuple[int, ...]
    sides: tuple[Side, ...]
    onward: int | None = None
    before: AskRequest | None = None


class QuestionPart:
    """The question, the columns that it is asked, and their answers. `outputs` are what `fill` sets to a link."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.questions = Questions(lab.answers)
        self.asking = gr.State(None)
        self.answered = gr.State(None)
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
        self.remark = html(about_model(self.columns.model.value))
        self.outputs = [self.question, *self.columns.outputs, self.add, self.remark]

    def connect(self, picture: PicturePart) -> None:
        """Connects the part with itself, and with the picture that is asked about."""
        self._number_of = picture.number
        asked = [self.asking, self.answered]
        form = [*asked, picture.path, self.question, *self.columns.controls]
        buttons = [self.ask, self.stop, self.follow, self.add]
        outputs = [self.asking, self.problem, self.address, *self.columns.panes, *buttons]
        panes = [*self.columns.panes, self.answered]
        answering = {
            **NO_PROGRESS,
            "concurrency_limit": ASKING_AT_ONCE,
            "concurrency_id": "ask",
            "api_visibility": "private",
        }
        standing = [self._stand, [*asked, self.columns.shown], buttons]
        self.columns.connect(self.add)
        self.columns.model.input(about_model, self.columns.model, self.remark, **QUICK)
        quantized = enumerate(self.columns.panes[1:], 1)
        for begun in (
            gr.on([self.ask.click, self.question.submit], self._prepare, form, outputs, **QUICK),
            self.follow.click(self._prepare_follow_up, form, outputs, **QUICK),
            *(
                answer.fork(partial(self._prepare_onward, column), asked, outputs, **QUICK)
                for column, answer in quantized
            ),
        ):
            answered = begun.then(self._answer, self.asking, panes, **answering).then(*standing, **QUICK)
            answered.then(self._read_along, asked, panes, **answering).then(*standing, **QUICK)
        self.stop.click(self._halt, self.asking, None, **QUICK)
        self.address.change(None, self.address, None, js="(search) => { lowbit.go('ask', search); }", **QUICK)

    def fill(self, asked: Asked) -> list[Any]:
        """Updates of `outputs` that set question and columns to a link."""
        columns, model = self.columns.fill(asked), asked.model or self.columns.model.value
        room = len(read_settings(asked.settings)) < len(FIRST_SETTINGS)
        return [asked.question, *columns, gr.update(interactive=room), about_model(model)]

    def _prepare(self, asking: Asking | None, _: Answered | None, *form: Any) -> tuple:
        return self._prepare_follow_up(asking, None, *form)

    def _prepare_follow_up(
        self, asking: Asking | None, answered: Answered | None, picture, question, model, length, *columns
    ) -> tuple:
        """Checks everything first, so that a refusal is a sentence beside the form. A question that is still open is
        replaced."""
        before = answered.conversation if answered else None
        try:
            settings, shown = self.columns.read(model, length, *columns)
            request = requests.question(model, picture, question, settings, length, before.turns if before else ())
            if before:
                before.check_follows(request)
        except UserError as refusal:
            return self._refuse(refusal)
        asked = Asked(
            model=model,
            settings=",".join(setting.code for setting in settings),
            question=request.question,
            example=self._number_of(request.image),
            tokens=length,
        )
        return self._begin(asking, Asking(request, shown, first_sides(request)), address(PageView(asked=asked)))

    def _prepare_onward(self, column: int, asking: Asking | None, answered: Answered | None) -> tuple:
        """Has the side of a column go on from where it parts from FP16."""
        number = answered.columns.index(column) if answered and column in answered.columns else 0
        side = answered.sides[number] if answered else None
        if side is None or side.parting is None or side.parting.fork is None:
            return self._refuse(UserError("Ask first: there is no fork to go on from."))
        prefix = "".join(shift.text or "" for shift in side.shifts[: side.parting.fork + 1])
        sides = [*answered.sides]
        sides[number] = replace(side, prefix=prefix, onward=Side(side.setting, "status", message="Asking"))
        onward = Asking(answered.onward(number), answered.columns, tuple(sides), number, answered.request)
        return self._begin(asking, onward, gr.skip())

    def _refuse(self, refusal: UserError) -> tuple:
        return gr.skip(), notice(str(refusal)), *[gr.skip()] * (len(self.columns.panes) + 5)

    def _begin(self, before: Asking | None, asking: Asking, link: Any) -> tuple:
        self.questions.begin(asking.request, before.request if before else None)
        panes = [gr.skip()] * len(self.columns.panes)
        for column, side in zip(asking.columns, asking.sides, strict=True):
            panes[column] = pane(side)
        off = gr.update(interactive=False)
        return asking, "", link, *panes, gr.update(visible=False), gr.update(visible=True), off, off

    def _answer(self, asking: Asking | None) -> Iterator[list[Any]]:
        """The panes that change, anew after each event; at the end all answers."""
        nothing = [gr.skip()] * (len(self.columns.panes) + 1)
        if asking is None or not self.questions.take(asking.request, "asked", "answering"):
            yield nothing
            return
        sides, onward = [*asking.sides], asking.onward
        for event in self.questions.events(asking.request):
            number = event.side if onward is None else onward
            side = sides[number]
            sides[number] = side.after(event) if onward is None else replace(side, onward=side.onward.after(event))
            yield [*self._pane(asking.columns[number], sides[number]), gr.skip()]
        replaced = self.questions.is_replaced(asking.request)
        if onward is None and not replaced:
            self.questions.take(asking.request, "answering", "answered")
        else:
            self.questions.end(asking.request)
        request = asking.request if onward is None else asking.before
        yield [*nothing[:-1], gr.skip() if replaced else Answered(request, asking.columns, tuple(sides))]

    def _read_along(self, asking: Asking | None, answered: Answered | None) -> Iterator[list[Any]]:
        """What each quantized side finds of FP16's answer: its pane anew after each event, at the end all answers."""
        if asking is None or not self.questions.take(asking.request, "answered", "reading"):
            yield [gr.skip()] * (len(self.columns.panes) + 1)
            return
        sides = [*answered.sides]
        along = along_fp16(asking.request, [side.tokens for side in sides])
        request, numbers = along or (None, [])
        for event in self.questions.events(request) if request else ():
            number = numbers[event.side]
            sides[number] = sides[number].after_reading(event, sides[0].text)
            yield [*self._pane(asking.columns[number], sides[number]), gr.skip()]
        replaced = self.questions.is_replaced(asking.request)
        self.questions.end(asking.request)
        panes = [gr.skip()] * len(self.columns.panes)
        yield [*panes, gr.skip() if replaced else Answered(asking.request, asking.columns, tuple(sides))]

    def _pane(self, column: int, side: Side) -> list[Any]:
        """The panes with one of them drawn anew."""
        return [pane(side) if column == number else gr.skip() for number in range(len(self.columns.panes))]

    def _stand(self, asking: Asking | None, answered: Answered | None, shown: tuple[bool, ...]) -> tuple:
        """The buttons as the question stands. While its answers are read along, another one may be asked."""
        stage = self.questions.stage(asking.request) if asking else None
        answering = stage in ("asked", "answering")
        return (
            gr.update(visible=not answering),
            gr.update(visible=stage is not None),
            gr.update(interactive=answered is not None and not answering),
            gr.update(interactive=not answering and not all(shown)),
        )

    def _halt(self, asking: Asking | None) -> None:
        if asking is not None:
            self.questions.stop(asking.request)
