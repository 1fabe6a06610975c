"""The resident answering process: `python -m quant_engine.answers.worker`.

Reads one JSON request per line from standard input and writes one JSON event per line to standard output; everything
else that anything prints goes to standard error. Ends when standard input does, so it never outlives its page.

One thread does all the computing. Requests are answered in the order in which they came; the sides of a request take
turns token by token, so that they stream at the same time.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
from pydantic import ValidationError

from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.data.open_picture import open_picture
from quant_engine.failures import failure
from quant_engine.models.decode import Step, answer
from quant_engine.models.device import default_device, default_dtype
from quant_engine.models.load import Loaded
from quant_engine.progress import Hooks, Progress
from quant_engine.runs import weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import QuantSetting, UserError, WeightSpec, sentence

OnProgress = Callable[[Progress], None]
ModelKey = tuple[str, str]
MEMORY_FRACTION = 0.5
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


class _Cancelled(Exception):
    """The visitor no longer wants the answer."""


class ModelCache:
    """The loaded models, in order of use; the ones unused for longest make room for others.

    `budget` is in bytes of weights. The models of the request being answered stay even beyond it.
    """

    def __init__(self, load: Callable[[str, QuantSetting, OnProgress], Loaded], budget: int) -> None:
        self._load, self._budget = load, budget
        self._models: OrderedDict[ModelKey, Loaded] = OrderedDict()

    def get(self, model: str, setting: QuantSetting, needed: set[ModelKey], on_progress: OnProgress) -> Loaded:
        """The model in this setting, loaded (and quantized, if it never was) when it isn't at hand.

        `needed` are the models that must not make room for it.
        """
        key = self.key(model, setting)
        if key not in self._models:
            # Room is made first: the same model in another setting is the best guess of what the new one takes.
            sizes = [loaded.weight_bytes for (name, _), loaded in self._models.items() if name == model]
            self._make_room(max(sizes, default=0), needed)
            self._models[key] = self._load(model, setting, on_progress)
            self._make_room(0, needed | {key})
        self._models.move_to_end(key)
        return self._models[key]

    @staticmethod
    def key(model: str, setting: QuantSetting) -> ModelKey:
        return model, setting.model_dump_json()

    def _make_room(self, expected: int, needed: set[ModelKey]) -> None:
        for key in [key for key in self._models if key not in needed]:
            if sum(loaded.weight_bytes for loaded in self._models.values()) + expected <= self._budget:
                return
            del self._models[key]
            gc.collect()  # a model refers to itself in circles, and its memory is wanted now


class RequestLine:
    """Takes requests from one thread, answers them in order in another, and tells each visitor how many are ahead."""

    def __init__(self, models: ModelCache, output: BinaryIO) -> None:
        self._models, self._output = models, output
        self._requests: list[AskRequest] = []  # the first one is being answered …
        self._first_has_ended = False  # … or has just had its last event, and nobody waits for it
        self._cancelled: set[str] = set()
        self._changed = threading.Condition()
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
                    self._requests.append(message.ask)
                    self._send_position(len(self._requests) - 1)
                if message.cancel:
                    self._cancel(message.cancel)
                self._changed.notify()

    def serve(self) -> None:
        """Answer requests for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests)
                request = self._requests[0]
            self._answer(request)
            with self._changed:
                self._requests.pop(0)
                self._first_has_ended = False
                self._cancelled.discard(request.request_id)
                for position in range(1, len(self._requests)):
                    self._send_position(position)

    def _cancel(self, request_id: str) -> None:
        """A waiting request leaves the line at once; the one being answered stops between two tokens."""
        ids = [request.request_id for request in self._requests]
        if request_id in ids[:1]:
            self._cancelled.add(request_id)
        elif request_id in ids:
            request = self._requests.pop(ids.index(request_id))
            self._send_stopped(request, dict.fromkeys(range(len(request.sides)), ""))

    def _answer(self, request: AskRequest) -> None:
        texts = dict.fromkeys(range(len(request.sides)), "")  # of the sides that have not ended
        try:
            answers = dict(self._prepare(request, texts))
            for side in answers:
                self._send(request, side, "status", message="Reading")
            while answers:
                for side in list(answers):
                    self._check(request)
                    step = self._step(request, side, answers[side], texts)
                    if step is None or step.finished:
                        del answers[side]
        except _Cancelled:
            self._first_has_ended = True
            self._send_stopped(request, texts)

    def _prepare(self, request: AskRequest, texts: dict[int, str]) -> Iterator[tuple[int, Iterator[Step]]]:
        """Load what each side needs. A side that can't be answered ends here; the others go on."""
        try:
            picture = open_picture(request.image) if request.image else None
        except UserError as refusal:
            for side in list(texts):
                self._fail(request, side, refusal, texts)
            return
        needed: set[ModelKey] = set()
        for side, setting in enumerate(request.sides):
            self._check(request)

            def on_progress(progress: Progress, side: int = side) -> None:
                self._check(request)
                self._send(request, side, "status", message=_progress_text(progress))

            self._send(request, side, "status", message=f"Loading {setting.label}")
            try:
                loaded = self._models.get(request.model, setting, needed, on_progress)
            except _Cancelled:
                raise
            except Exception as error:
                self._fail(request, side, error, texts)
                continue
            needed.add(self._models.key(request.model, setting))
            self._send(request, side, "status", message=f"{setting.label} is ready")
            yield side, answer(loaded, picture, request.question, request.max_new_tokens)

    def _step(self, request: AskRequest, side: int, steps: Iterator[Step], texts: dict[int, str]) -> Step | None:
        """One more token of a side, or None where it fails."""
        try:
            step = next(steps)
        except Exception as error:
            self._fail(request, side, error, texts)
            return None
        texts[side] = step.text
        if step.finished:
            del texts[side]
            self._first_has_ended = not texts
        self._send(request, side, "done" if step.finished else "token", step.text, stats=step.stats)
        return step

    def _fail(self, request: AskRequest, side: int, error: Exception, texts: dict[int, str]) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        text = texts.pop(side)
        self._first_has_ended = not texts
        less_memory = "choose a smaller model or compare fewer settings at once"
        self._send(request, side, "error", text, message=failure(error, "answer", less_memory, "ask again"))

    def _check(self, request: AskRequest) -> None:
        if request.request_id in self._cancelled:
            raise _Cancelled

    def _send_position(self, position: int) -> None:
        ahead = position - self._first_has_ended
        if ahead > 0:
            request, questions = self._requests[position], "1 question is" if ahead == 1 else f"{ahead} questions are"
            for side in range(len(request.sides)):
                self._send(request, side, "status", message=f"In line: {questions} answered first")

    def _send_stopped(self, request: AskRequest, texts: dict[int, str]) -> None:
        for side, text in texts.items():
            self._send(request, side, "error", text, message="Stopped.")

    def _send(self, request: AskRequest, side: int, kind: str, text: str = "", **fields: object) -> None:
        event = AnswerEvent(request_id=request.request_id, side=side, kind=kind, text=text, **fields)
        with self._writing:
            self._output.write(event.model_dump_json().encode() + b"\n")
            self._output.flush()


def _progress_text(progress: Progress) -> str:
    """What loading does now, for the visitor who waits."""
    if progress.block is not None and progress.blocks:
        return f"{progress.stage.capitalize()} block {progress.block} of {progress.blocks}"
    text = progress.message or progress.stage
    return text[:1].upper() + text[1:]


def memory_budget() -> int:
    """How many bytes of weights to keep loaded: a fraction of what this machine, or the container, has."""
    limit = _MEMORY_LIMIT.read_text().strip() if _MEMORY_LIMIT.exists() else "max"
    memory = psutil.virtual_memory().total
    return int(MEMORY_FRACTION * (memory if limit == "max" else min(memory, int(limit))))


def main() -> None:
    """Answer until standard input ends, on the GPU where there is one."""
    # Libraries print to standard output as they like, down to C code: give them standard error instead.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    line = RequestLine(ModelCache(load_setting, memory_budget()), output)
    threading.Thread(target=_listen, args=(line,), name="listener", daemon=True).start()
    line.serve()


def load_setting(model: str, setting: QuantSetting, on_progress: OnProgress) -> Loaded:
    """The model in a setting, quantized now if it never was, on the GPU where there is one."""
    device = default_device()
    plan = resolve_weights(WeightSpec(model=model, setting=setting))
    return weights.load(plan, default_dtype(device), device, Hooks(on_progress))


def _listen(line: RequestLine) -> None:
    line.read(iter(sys.stdin.buffer.readline, b""))
    os._exit(0)  # the page is gone: whatever is being computed, nobody waits for it


if __name__ == "__main__":
    main()
