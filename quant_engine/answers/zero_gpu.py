"""Answers on a Space with ZeroGPU, where a GPU is there only during a call that `spaces.GPU` decorates, in the process
that is forked for that call.

What needs no GPU comes before the call, so that it takes nothing of the visitor's time on one: files are fetched, and
weights are quantized by child processes on the CPU. The call then loads the models of one question and answers it. A
process that is given a second question still has the models of the first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

from quant_engine.answers.client import AnswerService, Inbox, Settled, nothing_settled
from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.deferred import deferred
from quant_engine.failures import failure
from quant_engine.models.catalog import model_card
from quant_engine.models.device import lend_gpu
from quant_engine.spec import QuantSetting, UserError

spaces = deferred("spaces")
quantizing = deferred("quant_engine.answers.quantizing")
files, line = deferred("quant_engine.models.files"), deferred("quant_engine.answers.line")
model_cache, worker = deferred("quant_engine.answers.model_cache"), deferred("quant_engine.answers.worker")

logger = logging.getLogger(__name__)

SECONDS, SECONDS_EACH, MOST_SECONDS = 30, 20, 120
"""What a call may take: for itself, for each side, and at most."""


class ZeroGpuAnswers(AnswerService):
    """Answers questions as AnswerService does, each in a call that has a GPU. Make it before the page is launched, and
    before anything loads torch. Raises UserError if the package `spaces` is not installed."""

    def __init__(self, settled: Settled = nothing_settled) -> None:
        super().__init__(settled=settled)
        self._open: set[str] = set()
        self._cancelled: set[str] = set()
        try:
            self._answer = spaces.GPU(duration=_seconds)(answer)
        except ImportError:
            raise UserError(
                "This Space has ZeroGPU, which needs the package spaces: name it in requirements.txt."
            ) from None

    def warm_up(self, model: str | None = None) -> None:
        """Nothing can be loaded ahead of a call."""

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next event; while it waits for a GPU there is none."""
        if request_id in self._open:
            self._cancelled.add(request_id)

    def _ask(self, request: AskRequest) -> Iterator[AnswerEvent]:
        inbox, request_id = Inbox(set(range(len(request.sides)))), request.request_id
        ending = "The GPU was taken back before the answer was whole; ask again."
        self._open.add(request_id)
        try:
            with closing(self._events(request)) as events:
                for event in events:
                    if request_id in self._cancelled:
                        ending = "Stopped."
                        break
                    inbox.note(event)
                    yield event
        except Exception as error:  # spaces raises Gradio's errors: no GPU, no time left
            logger.info("No answer on ZeroGPU: %r", error)
            ending = _sentence(error)
        finally:
            self._open.discard(request_id)
            self._cancelled.discard(request_id)
        for side in sorted(inbox.open_sides):
            text = inbox.texts.get(side, "")
            yield AnswerEvent(request_id=request_id, side=side, kind="error", text=text, message=ending)

    def _events(self, request: AskRequest) -> Iterator[AnswerEvent]:
        """First what needs no GPU, side by side; then the answers of those that are ready."""
        ready = []
        for number, setting in enumerate(request.sides):
            event = {"request_id": request.request_id, "side": number}
            try:
                for text in prepare(request.model, setting):
                    yield AnswerEvent(kind="status", message=text, **event)
            except UserError as refusal:
                yield AnswerEvent(kind="error", message=str(refusal), **event)
                continue
            yield AnswerEvent(kind="status", message="Waiting for a GPU", **event)
            ready.append(number)
        if ready:
            with closing(self._answer(request.of(ready).model_dump_json())) as lines:
                for text in lines:
                    event = AnswerEvent.model_validate_json(text)
                    yield event.model_copy(update={"side": ready[event.side]})


def prepare(model: str, setting: QuantSetting) -> Iterator[str]:
    """Have a model's files and its weights in a setting on disk, without a GPU: what is done, in words. Raises
    UserError."""
    yield "Looking for the model"
    spec, to_quantize = worker.resolve(model, setting)
    files.folder_of(model_card(model), spec.revision)
    if to_quantize:
        yield from quantizing.quantize_in_child(spec)


class _Output:
    """Takes the events of the line of questions, as lines of text."""

    def __init__(self) -> None:
        self.lines: SimpleQueue[str | None] = SimpleQueue()

    def write(self, content: bytes) -> None:
        self.lines.put(content.decode())

    def flush(self) -> None:
        """There is nothing to wait for."""


class _Here:
    """The line of questions of this process, which has a GPU."""

    def __init__(self) -> None:
        self._output = _Output()
        models = model_cache.ModelCache(worker.load_weights, worker.memory_budget())
        self._line = line.RequestLine(models, worker.resolve, lambda model: False, self._output, ())
        threading.Thread(target=self._serve, name="answers", daemon=True).start()

    def _serve(self) -> None:
        try:
            self._line.serve()
        finally:
            self._output.lines.put(None)

    def events(self, request: AskRequest) -> Iterator[str]:
        """The events of a request, until each side has ended; closing this stops it."""
        self._send(ToWorker(ask=request))
        inbox = Inbox(set(range(len(request.sides))))
        try:
            while inbox.open_sides:
                text = self._output.lines.get()
                if text is None:
                    raise RuntimeError("The line of questions ended.")
                event = AnswerEvent.model_validate_json(text)
                if event.request_id == request.request_id:  # not what was left of a question that was stopped
                    inbox.note(event)
                    yield text
        finally:
            if inbox.open_sides:
                self._send(ToWorker(cancel=request.request_id))

    def _send(self, message: ToWorker) -> None:
        self._line.read(iter([message.model_dump_json().encode()]))


_here: _Here | None = None


def answer(text: str) -> Iterator[str]:
    """The events of a request, both as JSON. To be decorated: this alone may touch CUDA."""
    global _here
    lend_gpu()
    _here = _here or _Here()
    yield from _here.events(AskRequest.model_validate_json(text))


def _sentence(error: Exception) -> str:
    """Why there is no answer: in the words of `spaces`, where it says why."""
    if hasattr(error, "title") and hasattr(error, "message"):
        return f"{error.title}: {str(error.message).rstrip('.')}."
    return failure(error, "answer", "compare fewer settings", "ask again")


def _seconds(text: str) -> int:
    """How long the call for a request may take."""
    return min(MOST_SECONDS, SECONDS + SECONDS_EACH * len(AskRequest.model_validate_json(text).sides))
