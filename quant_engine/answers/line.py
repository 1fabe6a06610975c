"""The questions that wait for answers, and whose turn it is.

One thread computes all answers. A question that it has begun goes on until none of its sides can: they take turns token
by token, so that they stream at the same time. Then comes the first in line that has a side whose weights are there.
Sides whose weights are still being quantized keep nobody waiting.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import torch
from PIL.Image import Image
from pydantic import ValidationError

from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.answers.model_cache import ModelCache
from quant_engine.answers.quantizing import Quantizing
from quant_engine.data.open_picture import open_picture
from quant_engine.failures import failure
from quant_engine.models.decode import PictureCache, Step, answer
from quant_engine.progress import Progress
from quant_engine.spec import QuantSetting, UserError, WeightSpec, sentence

Resolve = Callable[[str, QuantSetting], tuple[WeightSpec, bool]]
ANSWERS_KEPT = 256


class _Cancelled(Exception):
    """The visitor no longer wants the answer."""


@dataclass(eq=False)
class _Side:
    """One setting that is asked: its weights, whether they are still being quantized, and its tokens, once it began."""

    setting: QuantSetting
    spec: WeightSpec | None = None
    quantizing: bool = False
    steps: Iterator[Step] | None = None
    text: str = ""


@dataclass(eq=False)
class _Question:
    """A request in line with its open sides, by their numbers."""

    request: AskRequest
    sides: dict[int, _Side] = field(default_factory=dict)
    picture: Image | None = None
    picture_digest: str = ""
    prepared: bool = False
    cancelled: bool = False
    position: tuple[int, list[int]] | None = None

    def ready(self) -> list[int]:
        """The sides that can be computed."""
        return [number for number, side in self.sides.items() if not side.quantizing]


class RequestLine:
    """Takes requests from one thread, answers them in another, and tells each visitor what they wait for.

    Args:
        models: loads them.
        resolve: the weights of a model in a setting, and whether they have to be quantized before they can be loaded.
        has_room: says whether there is memory to load a model before anybody asks it.
        output: takes the events.
        command: starts a process that quantizes.
    """

    def __init__(
        self,
        models: ModelCache,
        resolve: Resolve,
        has_room: Callable[[str], bool],
        output: BinaryIO,
        command: tuple[str, ...],
    ) -> None:
        self._models, self._resolve, self._has_room, self._output = models, resolve, has_room, output
        self._pictures = PictureCache()
        self._answers: OrderedDict[tuple[str | int, ...], Step] = OrderedDict()  # the last steps of whole answers
        self._quantizing = Quantizing(self._on_quantizing, self._on_quantized, command)
        self._cores = torch.get_num_threads()
        self._questions: list[_Question] = []
        self._to_load: str | None = None  # a model that nobody has asked yet …
        self._loading_ahead = False  # … and whether it is being loaded now
        self._current: _Question | None = None  # whose turn it is
        self._computing: _Question | None = None  # what the other thread works on at this moment
        self._changed = threading.Condition(threading.RLock())
        self._writing = threading.Lock()

    def read(self, lines: Iterator[bytes]) -> None:
        """Take what the page sends until it closes the line."""
        for line in lines:
            try:
                message = ToWorker.model_validate_json(line)
            except ValidationError as error:
                print(f"A request could not be read: {sentence(error)}", file=sys.stderr)
                continue
            with self._changed:
                if message.ask:
                    sides = {number: _Side(setting) for number, setting in enumerate(message.ask.sides)}
                    self._questions.append(_Question(message.ask, sides))
                    self._send_positions()
                    for number in sides if self._loading_ahead else ():
                        self._send(self._questions[-1], number, "status", message="Loading the model")
                if message.load:
                    self._to_load = message.load
                if message.cancel:
                    self._cancel(message.cancel)
                self._changed.notify()

    def serve(self) -> None:
        """Answer requests for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next() or self._to_load)
                question = self._computing = self._next()
            if question is None:
                self._load_ahead()
                continue
            self._share_cores()
            try:
                if question.prepared:
                    self._advance(question)
                else:
                    self._prepare(question)
            except _Cancelled:
                pass
            with self._changed:
                self._computing = None
                if question.cancelled:
                    self._stop(question)

    def _load_ahead(self) -> None:
        """Load the model that the page offers first, and the libraries that rounding it takes, if there is memory."""
        with self._changed:
            model, self._to_load, self._loading_ahead = self._to_load, None, True
        try:
            if self._has_room(model):
                spec, _ = self._resolve(model, QuantSetting())
                self._models.get(spec, set(), lambda progress: None)
                self._quantizing.get_ready()
        except Exception as error:  # whoever asks it is told
            print(f"{model} could not be loaded ahead: {error!r}", file=sys.stderr)
        with self._changed:
            self._loading_ahead = False

    def _share_cores(self) -> None:
        """Leave their cores to the processes that quantize: waiting for a thread that is not running costs most."""
        threads = max(1, self._cores - self._quantizing.threads())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def _next(self) -> _Question | None:
        """What to work on: new questions are looked at first, which takes a moment."""
        new = next((question for question in self._questions if not question.prepared), None)
        if new:
            return new
        ready = [question for question in self._questions if question.ready()]
        if self._current not in ready:
            self._current = ready[0] if ready else None
        return self._current

    def _cancel(self, request_id: str) -> None:
        """A waiting request leaves the line at once; one that is being computed stops between two tokens."""
        for question in self._questions:
            if question.request.request_id == request_id:
                question.cancelled = True
                if question is not self._computing:
                    self._stop(question)
                return

    def _stop(self, question: _Question) -> None:
        """End what is open of a cancelled question. Called with the lock held."""
        for number, side in list(question.sides.items()):
            self._end(question, number)
            self._send(question, number, "error", side.text, message="Stopped.")

    def _end(self, question: _Question, number: int) -> None:
        """Take a side out of the line, before its visitor hears that it has ended and asks again."""
        with self._changed:
            side = question.sides.pop(number)
            if not question.sides:
                self._questions.remove(question)
            self._send_positions()
            if side.quantizing and not self._waiting(side.spec):
                self._quantizing.remove(side.spec)

    def _prepare(self, question: _Question) -> None:
        """Open the picture, and have quantized what is not there yet.

        A side that was asked the same before ends here, and one for which that fails.
        """
        request = question.request
        try:
            if request.image:
                question.picture = open_picture(request.image)
                question.picture_digest = _digest(question.picture)
        except Exception as error:
            for number in list(question.sides):
                self._fail(question, number, error)
            return
        for number, side in list(question.sides.items()):
            self._check(question)
            try:
                side.spec, to_quantize = self._resolve(request.model, side.setting)
            except Exception as error:
                self._fail(question, number, error)
                continue
            before = self._answers.get(self._key(question, side))
            if before:
                self._answers.move_to_end(self._key(question, side))
                self._end(question, number)
                message = "Answered before; the times are those of then."
                self._send(question, number, "done", before.text, stats=before.stats, message=message)
            elif to_quantize:
                with self._changed:
                    side.quantizing = True
                    self._send(question, number, "status", message=self._quantizing.add(side.spec))
        question.prepared = True

    def _advance(self, question: _Question) -> None:
        """One more token of each side that is ready, or its first."""
        ready = question.ready()
        for number in ready:
            if question.sides[number].steps is None:
                label = question.sides[number].setting.label
                self._send(question, number, "status", message=f"Loading {label}")
        for number in ready:
            self._check(question)
            side = question.sides[number]
            try:
                side.steps = side.steps or self._load(question, number, side)
                step = next(side.steps)
            except _Cancelled:
                raise
            except Exception as error:
                self._fail(question, number, error)
                continue
            side.text = step.text
            if step.finished:
                self._answers[self._key(question, side)] = step
                if len(self._answers) > ANSWERS_KEPT:
                    self._answers.popitem(last=False)
                self._end(question, number)
            self._send(question, number, "done" if step.finished else "token", step.text, stats=step.stats)

    def _load(self, question: _Question, number: int, side: _Side) -> Iterator[Step]:
        """The steps of a side whose weights are there."""
        request = question.request

        def on_progress(progress: Progress) -> None:
            self._check(question)
            self._send(question, number, "status", message=progress.text())

        needed = {self._models.key(other.spec) for other in question.sides.values() if other.steps}
        loaded = self._models.get(side.spec, needed, on_progress)
        self._send(question, number, "status", message="Reading")
        return answer(loaded, question.picture, request.question, request.max_new_tokens, pictures=self._pictures)

    def _key(self, question: _Question, side: _Side) -> tuple[str | int, ...]:
        """What an answer hangs on."""
        request = question.request
        return side.spec.model_dump_json(), question.picture_digest, request.question, request.max_new_tokens

    def _fail(self, question: _Question, number: int, error: Exception) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        text = question.sides[number].text
        self._end(question, number)
        less_memory = "choose a smaller model or compare fewer settings at once"
        self._send(question, number, "error", text, message=failure(error, "answer", less_memory, "ask again"))

    def _check(self, question: _Question) -> None:
        if question.cancelled:
            raise _Cancelled

    def _waiting(self, spec: WeightSpec) -> list[tuple[_Question, int]]:
        """The sides that wait for these weights."""
        return [
            (question, number)
            for question in self._questions
            for number, side in question.sides.items()
            if side.quantizing and side.spec == spec
        ]

    def _on_quantizing(self, spec: WeightSpec, text: str) -> None:
        with self._changed:
            for question, number in self._waiting(spec):
                self._send(question, number, "status", message=text)

    def _on_quantized(self, spec: WeightSpec, problem: str) -> None:
        with self._changed:
            for question, number in self._waiting(spec):
                question.sides[number].quantizing = False
                if problem:
                    self._end(question, number)
                    self._send(question, number, "error", message=problem)
                else:
                    self._send(question, number, "status", message=f"{question.sides[number].setting.label} is ready")
            self._send_positions()
            self._changed.notify()

    def _send_positions(self) -> None:
        """Tell whoever waits for other answers how many come first, if that changed. Called with the lock held."""
        busy = [question for question in self._questions if question.ready()]
        if self._current in busy:
            busy.remove(self._current)
            busy.insert(0, self._current)
        for ahead, question in enumerate(busy):
            position = (ahead, question.ready())
            if ahead and position != question.position:
                text = "1 question is" if ahead == 1 else f"{ahead} questions are"
                for number in question.ready():
                    self._send(question, number, "status", message=f"In line: {text} answered first")
            question.position = position

    def _send(self, question: _Question, number: int, kind: str, text: str = "", **fields: object) -> None:
        event = AnswerEvent(request_id=question.request.request_id, side=number, kind=kind, text=text, **fields)
        with self._writing:
            self._output.write(event.model_dump_json().encode() + b"\n")
            self._output.flush()


def _digest(picture: Image) -> str:
    """Identifies the content of a picture."""
    return hashlib.sha256(repr((picture.mode, picture.size)).encode() + picture.tobytes()).hexdigest()
