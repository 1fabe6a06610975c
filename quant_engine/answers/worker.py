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
from typing import TYPE_CHECKING, BinaryIO

import psutil
from pydantic import ValidationError

from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.data.open_picture import open_picture
from quant_engine.models.decode import Step, answer
from quant_engine.progress import Hooks, Progress
from quant_engine.spec import QuantSetting, UserError, WeightSpec, sentence

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

Load = Callable[[str, QuantSetting, Callable[[Progress], None]], "Loaded"]
MEMORY_FRACTION = 0.5


class _Cancelled(Exception):
    """The visitor no longer wants the answer."""


class Models:
    """The loaded models, in order of use; the ones unused for longest make room for others.

    `budget` is in bytes of weights. The models of the request being answered are kept even beyond it.
    """

    def __init__(self, load: Load, budget: int) -> None:
        self._load, self._budget = load, budget
        self._kept: OrderedDict[tuple[str, str], Loaded] = OrderedDict()

    def get(
        self, model: str, setting: QuantSetting, needed: set[tuple[str, str]], on_progress: Callable[[Progress], None]
    ) -> Loaded:
        """The model in this setting, loaded (and quantized, if it never was) when it isn't at hand."""
        key = self.key(model, setting)
        if key not in self._kept:
            # Room is made first: the same model in another setting is the best guess of what the new one takes.
            expected = max((one.weight_bytes for (name, _), one in self._kept.items() if name == model), default=0)
            self._make_room(expected, needed)
            self._kept[key] = self._load(model, setting, on_progress)
            self._make_room(0, needed | {key})
        self._kept.move_to_end(key)
        return self._kept[key]

    @staticmethod
    def key(model: str, setting: QuantSetting) -> tuple[str, str]:
        return model, setting.model_dump_json()

    def _make_room(self, expected: int, needed: set[tuple[str, str]]) -> None:
        for key in [key for key in self._kept if key not in needed]:
            if sum(one.weight_bytes for one in self._kept.values()) + expected <= self._budget:
                return
            del self._kept[key]
            gc.collect()  # a model refers to itself in circles, and its memory is wanted now


class Desk:
    """Takes requests from one thread, answers them in order in another, and tells each visitor the place in line."""

    def __init__(self, models: Models, output: BinaryIO) -> None:
        self._models, self._output = models, output
        self._line: list[AskRequest] = []  # the first one is being answered …
        self._over = False  # … or has just had its last event, and nobody waits for it
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
                    self._line.append(message.ask)
                    self._tell_place(len(self._line) - 1)
                if message.cancel:
                    self._cancel(message.cancel)
                self._changed.notify()

    def serve(self) -> None:
        """Answer requests for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line)
                request = self._line[0]
            self._answer(request)
            with self._changed:
                self._line.pop(0)
                self._over = False
                self._cancelled.discard(request.request_id)
                for place in range(1, len(self._line)):
                    self._tell_place(place)

    def _cancel(self, request_id: str) -> None:
        """A waiting request leaves the line at once; the one being answered stops between two tokens."""
        place = next((place for place, one in enumerate(self._line) if one.request_id == request_id), None)
        if place:
            request = self._line.pop(place)
            self._stop(request, dict.fromkeys(range(len(request.sides)), ""))
        elif place == 0:
            self._cancelled.add(request_id)

    def _stop(self, request: AskRequest, texts: dict[int, str]) -> None:
        for side, text in texts.items():
            self._tell(request, side, "error", text, message="Stopped.")

    def _answer(self, request: AskRequest) -> None:
        texts = dict.fromkeys(range(len(request.sides)), "")  # of the sides that have not ended
        try:
            answers = dict(self._prepare(request, texts))
            for side in answers:
                self._tell(request, side, "status", message="Reading")
            while answers:
                for side in list(answers):
                    self._check(request)
                    step = self._step(request, side, answers[side], texts)
                    if step is None or step.finished:
                        del answers[side]
        except _Cancelled:
            self._over = True
            self._stop(request, texts)

    def _prepare(self, request: AskRequest, texts: dict[int, str]) -> Iterator[tuple[int, Iterator[Step]]]:
        """Load what each side needs. A side that can't be answered ends here; the others go on."""
        try:
            picture = open_picture(request.image) if request.image else None
        except UserError as refusal:
            for side in list(texts):
                self._fail(request, side, refusal, texts)
            return
        needed: set[tuple[str, str]] = set()
        for side, setting in enumerate(request.sides):
            self._check(request)

            def loading(progress: Progress, side: int = side) -> None:
                self._check(request)
                self._tell(request, side, "status", message=_what(progress))

            self._tell(request, side, "status", message=f"Loading {setting.label}")
            try:
                loaded = self._models.get(request.model, setting, needed, loading)
            except _Cancelled:
                raise
            except Exception as error:
                self._fail(request, side, error, texts)
                continue
            needed.add(self._models.key(request.model, setting))
            self._tell(request, side, "status", message=f"{setting.label} is ready")
            yield side, answer(loaded, picture, request.question, request.max_new_tokens)

    def _step(self, request: AskRequest, side: int, steps: Iterator[Step], texts: dict[int, str]) -> Step | None:
        try:
            step = next(steps)
        except Exception as error:
            self._fail(request, side, error, texts)
            return None
        texts[side] = step.text
        if step.finished:
            del texts[side]
            self._over = not texts
        self._tell(request, side, "done" if step.finished else "token", step.text, stats=step.stats)
        return step

    def _fail(self, request: AskRequest, side: int, error: Exception, texts: dict[int, str]) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        text = texts.pop(side)
        self._over = not texts
        self._tell(request, side, "error", text, message=_sentence_for(error))

    def _check(self, request: AskRequest) -> None:
        if request.request_id in self._cancelled:
            raise _Cancelled

    def _tell_place(self, place: int) -> None:
        ahead = place - self._over
        if ahead > 0:
            what = "1 question is" if ahead == 1 else f"{ahead} questions are"
            for side in range(len(self._line[place].sides)):
                self._tell(self._line[place], side, "status", message=f"In line: {what} answered first")

    def _tell(self, request: AskRequest, side: int, kind: str, text: str = "", **more: object) -> None:
        event = AnswerEvent(request_id=request.request_id, side=side, kind=kind, text=text, **more)
        with self._writing:
            self._output.write(event.model_dump_json().encode() + b"\n")
            self._output.flush()


def _what(progress: Progress) -> str:
    """What loading does now, for the visitor who waits."""
    if progress.block is not None and progress.blocks:
        return f"{progress.stage.capitalize()} block {progress.block} of {progress.blocks}"
    said = progress.message or progress.stage
    return said[:1].upper() + said[1:]


def _sentence_for(error: Exception) -> str:
    said = str(error)
    if isinstance(error, UserError):
        return said
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return "Memory ran out: choose a smaller model or compare fewer settings at once."
    return f"The answer failed inside the engine ({type(error).__name__}): the log has the details."


def memory_budget() -> int:
    """How many bytes of weights to keep loaded: a fraction of what this machine, or the container, has."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    memory = psutil.virtual_memory().total
    return int(MEMORY_FRACTION * (memory if text == "max" else min(memory, int(text))))


def main(load: Load | None = None) -> None:
    """Answer until standard input ends."""
    # Libraries print to standard output as they like, down to C code: give them standard error instead.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    desk = Desk(Models(load or _loader(), memory_budget()), output)
    threading.Thread(target=_listen, args=(desk,), name="listener", daemon=True).start()
    desk.serve()


def _loader() -> Load:
    """The engine's own loading, on the GPU where there is one."""
    from quant_engine.models.device import default_device, default_dtype
    from quant_engine.runs.resolve import resolve_weights
    from quant_engine.runs.weights import load

    device = default_device()
    dtype = default_dtype(device)

    def load_setting(model: str, setting: QuantSetting, on_progress: Callable[[Progress], None]) -> Loaded:
        return load(resolve_weights(WeightSpec(model=model, setting=setting)), dtype, device, Hooks(on_progress))

    return load_setting


def _listen(desk: Desk) -> None:
    desk.read(iter(sys.stdin.buffer.readline, b""))
    os._exit(0)  # the page is gone: whatever is being computed, nobody waits for it


if __name__ == "__main__":
    main()
