"""Quantizing while answers go on: in a process of its own, `python -m quant_engine.answers.quantizing`.

The process reads WeightSpecs, each a line of JSON, and makes one after another: it writes a FromQuantizer line whenever
it has come further, and when the checkpoint folder is complete. It ends when its standard input does, so it never
outlives whoever waits; what it had finished is found by the next one. It steps back from the processor for answers.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from pydantic import ValidationError

from quant_engine import memory
from quant_engine.answers.messages import FromQuantizer
from quant_engine.children import start_child
from quant_engine.failures import failure
from quant_engine.methods import METHODS
from quant_engine.models.device import default_device
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import UserError, WeightSpec

logger = logging.getLogger(__name__)

NICE = 10
THREADS = max(1, (os.cpu_count() or 1) // 4)
"""Threads of a process that quantizes."""
COMMAND = (sys.executable, "-m", "quant_engine.answers.quantizing")
_RETRY = "ask again: finished blocks are kept"
_LESS_MEMORY = f"choose a smaller model, then {_RETRY}"

OnProgress = Callable[[WeightSpec, str], None]
OnEnd = Callable[[WeightSpec, str], None]


class Quantizing:
    """Makes quantized weights in the background: methods that only round in one lane, those that take long in another,
    so that none of the former waits for one of the latter.

    Args:
        on_progress: gets a spec and a line of text whenever its work has come further.
        on_end: gets a spec when its weights are there, with an empty text, or with why they can't be made.
        command: starts the process.
    Both functions are called from threads of the lanes.
    """

    def __init__(self, on_progress: OnProgress, on_end: OnEnd, command: Sequence[str] = COMMAND) -> None:
        self._quick, self._slow = (_Lane(on_progress, on_end, command) for _ in range(2))

    def get_ready(self) -> None:
        """Keep a process ready for methods that only round: loading its libraries takes longer than rounding."""
        self._quick.get_ready()

    def add(self, spec: WeightSpec) -> str:
        """Make these weights, unless they are being made already. Returns what they wait for, in words."""
        return self._lane(spec).add(spec)

    def remove(self, spec: WeightSpec) -> None:
        """Nobody waits for these weights any more: stop making them. Finished blocks stay on disk."""
        self._lane(spec).remove(spec)

    def threads(self) -> int:
        """How many threads are quantizing now."""
        return THREADS * (self._quick.is_busy() + self._slow.is_busy())

    def _lane(self, spec: WeightSpec) -> _Lane:
        method = METHODS.get(spec.setting.method)
        long = method and (method.card.calibrated or method.train or method.fine_tunes)
        return self._slow if long else self._quick


@dataclass(eq=False)
class _Job:
    spec: WeightSpec
    text: str = "Starting to quantize"


class _Lane:
    """Quantizes one model after another in a process that ends when none is left, unless it is to be ready."""

    def __init__(self, on_progress: OnProgress, on_end: OnEnd, command: Sequence[str]) -> None:
        self._on_progress, self._on_end, self._command = on_progress, on_end, tuple(command)
        self._keeps_ready = False
        self._jobs: list[_Job] = []  # the first one is being made …
        self._process: subprocess.Popen[bytes] | None = None  # … by this process
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="quantizing", daemon=True).start()

    def get_ready(self) -> None:
        with self._changed, suppress(OSError):  # whoever needs the process says so
            self._keeps_ready = True
            self._have_process()

    def add(self, spec: WeightSpec) -> str:
        with self._changed:
            job = next((job for job in self._jobs if job.spec == spec), None)
            if job is None:
                job = _Job(spec)
                self._jobs.append(job)
                self._changed.notify()
            return _position(self._jobs.index(job)) or job.text

    def remove(self, spec: WeightSpec) -> None:
        with self._changed:
            number = next((number for number, job in enumerate(self._jobs) if job.spec == spec), None)
            if number is not None:
                del self._jobs[number]
            if number == 0:
                self._end_process()

    def is_busy(self) -> bool:
        return bool(self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs[0]
            problem = self._make(job)
            with self._changed:
                wanted = job in self._jobs
                if wanted:
                    self._jobs.remove(job)
                waiting = [(other.spec, _position(number)) for number, other in enumerate(self._jobs)]
                if not self._jobs and not self._keeps_ready:
                    self._end_process()
            if wanted:
                self._on_end(job.spec, problem)
            for spec, text in waiting[1:]:
                self._on_progress(spec, text)
            if self._keeps_ready:
                self.get_ready()

    def _make(self, job: _Job) -> str:
        """Have a job done. Returns why it failed, or an empty text."""
        try:
            with self._changed:
                if job not in self._jobs:
                    return ""
                process = self._have_process()
            for text in _progress(process, job.spec):
                if text != job.text:
                    job.text = text
                    self._on_progress(job.spec, text)
        except OSError as error:
            return f"The process that quantizes can't be started ({error.strerror}): free memory."
        except UserError as error:
            return str(error)
        return ""

    def _have_process(self) -> subprocess.Popen[bytes]:
        """The lane's process; a new one if there is none or it has ended. Called with the lock held."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start(self._command)
        return self._process

    def _end_process(self) -> None:
        """Called with the lock held."""
        if self._process:
            self._process.kill()
        self._process = None


def quantize_in_child(spec: WeightSpec) -> Iterator[str]:
    """Make these weights in a process of its own: where it stands, in words. Closing this stops it. Raises UserError if
    they can't be made."""
    process = _start(COMMAND)
    try:
        yield from _progress(process, spec)
    finally:
        process.kill()
        process.wait()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {"OMP_NUM_THREADS": str(THREADS), "NUMBA_NUM_THREADS": str(THREADS)}
    return start_child(command, subprocess.PIPE, subprocess.PIPE, None, nice=NICE, environment=environment)


def _progress(process: subprocess.Popen[bytes], spec: WeightSpec) -> Iterator[str]:
    """Have a process make these weights: where it stands, in words. Raises UserError if they can't be made."""
    with suppress(OSError):  # it has ended: its exit code says the rest
        process.stdin.write(spec.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    for line in process.stdout:
        try:
            news = FromQuantizer.model_validate_json(line)
        except ValidationError:
            logger.warning("The process that quantizes was cut off in the middle of a line.")
            continue
        if news.failure:
            raise UserError(news.failure)
        if news.done:
            return
        yield news.progress.text()
    code = process.wait()
    with suppress(OSError):  # what it never read is sent again here
        process.stdin.close()
    raise UserError(_sentence(code))


def _position(ahead: int) -> str:
    """What a setting waits for that is not being quantized yet."""
    if not ahead:
        return ""
    return f"In line: {'1 other setting is' if ahead == 1 else f'{ahead} other settings are'} quantized first"


def _sentence(code: int) -> str:
    """How a process ended that said nothing of it."""
    if code == -signal.SIGKILL:
        return (
            "Quantizing was stopped by the system (signal 9), most likely because memory ran out; choose a smaller"
            f" model, or {_RETRY}."
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"Quantizing ended unexpectedly ({how}); see the log for the reason, then {_RETRY}."


def main() -> None:
    """Quantize what standard input says, until it ends."""
    output = os.fdopen(os.dup(1), "wb")  # libraries print to standard output as they like: give them standard error
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), name="listener", daemon=True).start()
    while True:
        _quantize(lines.get(), output)
        gc.collect()  # models refer to themselves in circles
        memory.give_back()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    for line in iter(sys.stdin.buffer.readline, b""):
        lines.put(line)
    os._exit(0)  # whatever is being computed, nobody waits for it


def _quantize(line: bytes, output: BinaryIO) -> None:
    def send(news: FromQuantizer) -> None:
        output.write(news.model_dump_json().encode() + b"\n")
        output.flush()

    try:
        plan = resolve_weights(WeightSpec.model_validate_json(line))
        hooks = Hooks(lambda progress: send(FromQuantizer(progress=progress)))
        weights.quantize(plan, default_device(), hooks, with_tokenizer=False)  # whoever answers reads it
    except Exception as error:
        traceback.print_exception(error)
        send(FromQuantizer(failure=failure(error, "quantization", _LESS_MEMORY, _RETRY)))
    else:
        send(FromQuantizer(done=True))


if __name__ == "__main__":
    main()
