"""The questions that wait for answers, and whose turn it is.

One thread computes all answers. In each round it reads one question whose weights are there, and computes one more
token of every open answer: those of a model in one setting are decoded together. Sides whose weights are still being
quantized or loaded keep nobody waiting. Only so many answers are open at once; who comes later reads how many come
first.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import torch
from pydantic import ValidationError

from quant_engine.answers.loading import Loading
from quant_engine.answers.messages import AnswerEvent, ToWorker
from quant_engine.answers.model_cache import ModelCache, ModelKey
from quant_engine.answers.quantizing import Quantizing
from quant_engine.answers.questions import Question, Side
from quant_engine.failures import failure
from quant_engine.models.batch import CACHE_BYTES, ROWS
from quant_engine.models.decode import PictureCache, Step
from quant_engine.models.load import Loaded
from quant_engine.models.open_answers import OpenAnswer, OpenAnswers
from quant_engine.spec import QuantSetting, UserError, WeightSpec, sentence

Resolve = Callable[[str, QuantSetting], tuple[WeightSpec, bool]]
ANSWERS_KEPT = 256


class _Cancelled(Exception):
    """The visitor no longer wants the answer."""


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
        self._answers: OrderedDict[tuple[Hashable, ...], Step] = OrderedDict()  # the last steps of whole answers
        self._quantizing = Quantizing(self._on_progress, self._on_quantized, command)
        self._cores = torch.get_num_threads()
        self._questions: list[Question] = []
        self._batches: dict[ModelKey, OpenAnswers] = {}
        self._to_load: str | None = None  # a model that nobody has asked yet …
        self._ahead: WeightSpec | None = None  # … and its weights, while they are loaded
        self._computing: list[Question] = []  # what the other thread works on at this moment
        self._changed = threading.Condition(threading.RLock())
        self._writing = threading.Lock()
        self._loading = Loading(models, self._in_use, self._on_progress, self._on_loaded)

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
                    sides = {number: Side(setting) for number, setting in enumerate(message.ask.sides)}
                    self._questions.append(Question(message.ask, sides))
                if message.load:
                    self._to_load = message.load
                if message.cancel:
                    self._cancel(message.cancel)
                self._changed.notify()

    def serve(self) -> None:
        """Answer requests for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                new = next((question for question in self._questions if not question.prepared), None)
            self._share_cores()
            if new:
                with self._working_on([new]):
                    self._prepare(new)
            elif self._to_load:
                self._load_ahead()
            else:
                self._round()

    def _has_work(self) -> bool:
        sides = [side for question in self._questions for side in question.sides.values()]
        return bool(self._to_load) or any(not q.prepared for q in self._questions) or any(side.loaded for side in sides)

    @contextmanager
    def _working_on(self, questions: list[Question]) -> Iterator[None]:
        """While these questions are computed, whoever cancels one of them leaves ending it to this thread."""
        with self._changed:
            self._computing = questions
        try:
            yield
        except _Cancelled:
            pass
        finally:
            with self._changed:
                self._computing = []
                for question in questions:
                    if question.cancelled:
                        self._stop(question)

    def _load_ahead(self) -> None:
        """Have the model loaded that the page offers first, and the libraries that rounding it takes, if there is
        memory."""
        with self._changed:
            model, self._to_load = self._to_load, None
        try:
            if not self._has_room(model):
                return
            spec, _ = self._resolve(model, QuantSetting())
        except Exception as error:  # whoever asks it is told
            print(f"{model} could not be loaded ahead: {error!r}", file=sys.stderr)
            return
        with self._changed:
            self._ahead = spec
            self._loading.add(spec)

    def _share_cores(self) -> None:
        """Leave their cores to what quantizes and loads: waiting for a thread that is not running costs most."""
        threads = max(1, self._cores - self._quantizing.threads() - self._loading.is_busy())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def _round(self) -> None:
        """Begin the answers of one question for which there is room, and compute a token of each that is open."""
        with self._changed:
            groups = [(batch, group) for batch in self._batches.values() for group in batch.groups()]
            self._hold_back()
            question = next((question for question in self._questions if question.waiting()), None)
            if question and not self._has_seats(question):
                question = None
        if question:
            with self._working_on([question]):
                for number in question.waiting():
                    self._check(question)
                    (self._read_along if question.request.along else self._begin)(question, number)
        with self._changed:
            self._send_positions()
        for batch, group in groups:
            self._advance(batch, group)

    def _hold_back(self) -> None:
        """While a model waits for memory, whoever came later gives up theirs, and gets it again after it. Called with
        the lock held."""
        blocked = self._loading.waits_for_room
        first = next((i for i, q in enumerate(self._questions) for s in q.sides.values() if s.spec == blocked), None)
        if blocked is None or first is None:
            return
        for question in self._questions[first + 1 :]:
            for number in question.waiting():
                side = question.sides[number]
                side.loaded = None
                self._loading.add(side.spec)
                self._send(question, number, "status", message="Waiting for another model that comes first")

    def _has_seats(self, question: Question) -> bool:
        """Whether the waiting sides of a question can be decoded with what is open. Called with the lock held."""
        answers = [answer for batch in self._batches.values() for answer in batch.answers]
        if not answers:
            return True
        sides = [question.sides[number] for number in question.waiting()]
        largest = max(answer.cache_bytes for answer in answers)
        in_use = sum(answer.cache_bytes for answer in answers) + len(sides) * largest
        batches = (self._batches.get(self._models.key(side.spec)) for side in sides)
        rows = max(len(batch.answers) if batch else 0 for batch in batches)
        return rows < ROWS and in_use <= CACHE_BYTES[sides[0].loaded.device.type]

    def _cancel(self, request_id: str) -> None:
        """A waiting request leaves the line at once; one that is being computed stops between two tokens."""
        for question in self._questions:
            if question.request.request_id == request_id:
                question.cancelled = True
                if question not in self._computing:
                    self._stop(question)
                return

    def _stop(self, question: Question) -> None:
        """End what is open of a cancelled question. Called with the lock held."""
        for number, side in list(question.sides.items()):
            self._end(question, number)
            self._send(question, number, "error", side.text, message="Stopped.")

    def _end(self, question: Question, number: int) -> None:
        """Take a side out of the line, before its visitor hears that it has ended and asks again."""
        with self._changed:
            side = question.sides.pop(number)
            if not question.sides:
                self._questions.remove(question)
            if side.answer:
                batch = self._batches.get(self._models.key(side.spec))
                if batch:
                    batch.leave(side.answer)
                    if not batch.answers:
                        del self._batches[self._models.key(side.spec)]
            elif side.spec and not side.loaded and not self._waiting(side.spec):
                self._quantizing.remove(side.spec)
                if side.spec != self._ahead:
                    self._loading.remove(side.spec)
            self._send_positions()

    def _prepare(self, question: Question) -> None:
        """Open the picture, and have quantized what is not there yet.

        A side that was asked the same before ends here, and one for which that fails.
        """
        request = question.request
        try:
            question.open_picture()
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
            key = self._key(question, number)
            before = self._answers.get(key)
            if before:
                self._answers.move_to_end(key)
                self._end(question, number)
                message = "Answered before; the times are those of then."
                fields = {"stats": before.stats, "tokens": before.tokens, "message": message}
                self._send(question, number, "done", before.text, **fields)
            elif to_quantize:
                with self._changed:
                    self._send(question, number, "status", message=self._quantizing.add(side.spec))
            else:
                self._load(question, number)
        question.prepared = True

    def _load(self, question: Question, number: int) -> None:
        """Have a side's model loaded, unless it is at hand."""
        with self._changed:
            side = question.sides[number]
            side.loaded = self._models.find(side.spec)
            if side.loaded is None:
                self._send(question, number, "status", message=f"Loading {side.setting.label}")
                self._loading.add(side.spec)

    def _begin(self, question: Question, number: int) -> None:
        """Read the question for a side: its first token."""
        request, side = question.request, question.sides[number]
        key = self._models.key(side.spec)
        self._send(question, number, "status", message="Reading")
        try:
            batch = self._batches.get(key) or OpenAnswers(side.loaded, self._pictures)
            earlier = request.conversation(number)
            limits = request.max_new_tokens, earlier, request.prefix
            begun = batch.join(question.picture, request.question, *limits)
        except Exception as error:
            self._fail(question, number, error)
            return
        with self._changed:
            side.answer = begun
            if batch.answers:
                self._batches[key] = batch
        self._send_step(question, number, side.answer.last)

    def _read_along(self, question: Question, number: int) -> None:
        """Have a side say what it finds of FP16's answer."""
        self._send(question, number, "status", message="Reading FP16's answer")
        try:
            shifts = question.read_along(number, self._pictures)
        except Exception as error:
            self._fail(question, number, error)
            return
        self._end(question, number)
        self._send(question, number, "done", shifts=shifts)

    def _advance(self, batch: OpenAnswers, group: list[OpenAnswer]) -> None:
        """One more token of the answers that are decoded together."""
        with self._changed:
            sides = {
                side.answer: (question, number)
                for question in self._questions
                for number, side in question.sides.items()
                if side.answer in group
            }
            questions = self._computing = [question for question, _ in sides.values()]
        if not sides:
            return
        with self._working_on(questions):
            try:
                advanced = batch.advance([*sides])
            except Exception as error:
                for question, number in sides.values():
                    self._fail(question, number, error)
                return
            for answer in advanced:
                self._send_step(*sides[answer], answer.last)

    def _send_step(self, question: Question, number: int, step: Step) -> None:
        if step.finished:
            self._answers[self._key(question, number)] = step
            if len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
            self._end(question, number)
        if step.finished:
            self._send(question, number, "done", step.text, stats=step.stats, tokens=step.tokens)
        else:
            self._send(question, number, "token", step.text, stats=step.stats)

    def _key(self, question: Question, number: int) -> tuple[Hashable, ...]:
        """What an answer hangs on."""
        request, spec = question.request, question.sides[number].spec
        asked = request.question, request.conversation(number), request.max_new_tokens, request.prefix, request.along
        return spec.model_dump_json(), question.picture_digest, *asked

    def _fail(self, question: Question, number: int, error: Exception) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        less_memory = "choose a smaller model or compare fewer settings at once"
        message = failure(error, "answer", less_memory, "ask again")
        # Along FP16's answer nobody can go on without FP16.
        for failed in [*question.sides] if question.request.along and number == 0 else [number]:
            text = question.sides[failed].text
            self._end(question, failed)
            self._send(question, failed, "error", text, message=message)

    def _check(self, question: Question) -> None:
        if question.cancelled:
            raise _Cancelled

    def _waiting(self, spec: WeightSpec) -> list[tuple[Question, int]]:
        """The sides that wait for these weights, quantized or loaded. Called with the lock held."""
        return [
            (question, number)
            for question in self._questions
            for number, side in question.sides.items()
            if side.spec == spec and not side.loaded
        ]

    def _on_quantized(self, spec: WeightSpec, problem: str) -> None:
        with self._changed:
            for question, number in self._waiting(spec):
                if problem:
                    self._end(question, number)
                    self._send(question, number, "error", message=problem)
                else:
                    self._send(question, number, "status", message=f"{question.sides[number].setting.label} is ready")
                    self._load(question, number)
            self._changed.notify()

    def _in_use(self) -> set[ModelKey]:
        """The models that answers are computed with, or are about to be."""
        with self._changed:
            sides = [side for question in self._questions for side in question.sides.values()]
            return {self._models.key(side.spec) for side in sides if side.loaded}

    def _on_progress(self, spec: WeightSpec, text: str) -> None:
        with self._changed:
            for question, number in self._waiting(spec):
                self._send(question, number, "status", message=text)

    def _on_loaded(self, spec: WeightSpec, loaded: Loaded | None, problem: Exception | None) -> None:
        with self._changed:
            if spec == self._ahead:
                self._ahead = None
                self._quantizing.get_ready()
                if problem:
                    print(f"{spec.model} could not be loaded ahead: {problem!r}", file=sys.stderr)
            for question, number in self._waiting(spec):
                if problem:
                    self._fail(question, number, problem)
                else:
                    question.sides[number].loaded = loaded
            self._changed.notify()

    def _send_positions(self) -> None:
        """Tell whoever could begin how many questions come first, if that changed. Called with the lock held."""
        for ahead, question in enumerate(question for question in self._questions if question.waiting()):
            position = (ahead, question.waiting())
            if position != question.position:
                text = "1 question comes" if ahead == 1 else f"{ahead} questions come"
                for number in question.waiting():
                    self._send(
                        question, number, "status", message=f"In line: {text} first" if ahead else "Next in line"
                    )
            question.position = position

    def _send(self, question: Question, number: int, kind: str, text: str = "", **fields: object) -> None:
        event = AnswerEvent(request_id=question.request.request_id, side=number, kind=kind, text=text, **fields)
        with self._writing:
            self._output.write(event.model_dump_json().encode() + b"\n")
            self._output.flush()
