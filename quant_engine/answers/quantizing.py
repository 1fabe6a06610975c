"""Quantizing while answers go on: in a process of its own, `python -m quant_engine.answers.quantizing`.

The process reads one WeightSpec as a line of JSON, writes a FromQuantizer line whenever it has come further, and ends
when the checkpoint folder is complete. It also ends when its standard input does, so it never outlives whoever waits;
what it had finished is found by the next one. It steps back from the processor for answers.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from quant_engine.answers.messages import FromQuantizer
from quant_engine.children import end_with_parent, start_child
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
    process: subprocess.Popen[bytes] | None = None
    text: str = "Starting to quantize"


class _Lane:
    """Quantizes one model after another, each in a process of its own."""

    def __init__(self, on_progress: OnProgress, on_end: OnEnd, command: Sequence[str]) -> None:
        self._on_progress, self._on_end, self._command = on_progress, on_end, tuple(command)
        self._keeps_ready = False
        self._jobs: list[_Job] = []  # the first one is being made
        self._idle_process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="quantizing", daemon=True).start()

    def get_ready(self) -> None:
        with self._changed, suppress(OSError):  # whoever needs the process says so
            self._keeps_ready = True
            if self._idle_process is None:
                self._idle_process = self._start()

    def add(self, spec: WeightSpec) -> str:
        with self._changed:
            job = next((job for job in self._jobs if job.spec == spec), None)
            if job is None:
                job = _Job(spec)
                self._jobs.append(job)
                self._changed.notify()
            return job.text if job.process else _position(self._jobs.index(job)) or job.text

    def remove(self, spec: WeightSpec) -> None:
        with self._changed:
            for job in [job for job in self._jobs if job.spec == spec]:
                self._jobs.remove(job)
                if job.process:
                    job.process.kill()

    def is_busy(self) -> bool:
        return bool(self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                job = self._jobs[0]
                problem = self._take_process(job)
            problem = problem or self._follow(job)
            with self._changed:
                wanted = job in self._jobs
                if wanted:
                    self._jobs.remove(job)
                waiting = [(other.spec, _position(number)) for number, other in enumerate(self._jobs)]
            if wanted:
                self._on_end(job.spec, problem)
            for spec, text in waiting[1:]:
                self._on_progress(spec, text)
            if self._keeps_ready:
                self.get_ready()

    def _start(self) -> subprocess.Popen[bytes]:
        return _start(self._command)

    def _take_process(self, job: _Job) -> str:
        """Give a job its process: the idle one, or a new one. Returns why that can't be. Called with the lock held."""
        job.process, self._idle_process = self._idle_process, None
        if job.process is None or job.process.poll() is not None:
            try:
                job.process = self._start()
            except OSError as error:
                return f"The process that quantizes can't be started ({error.strerror}): free memory."
        return ""

    def _follow(self, job: _Job) -> str:
        """Watch a job to its end. Returns why it failed, or an empty text."""
        problem = ""
        for news in _news(job.process, job.spec):
            problem = news.failure
            if news.progress and news.progress.text() != job.text:
                job.text = news.progress.text()
                self._on_progress(job.spec, job.text)
        return problem or _sentence(job.process.wait())


def quantize_in_child(spec: WeightSpec) -> Iterator[str]:
    """Make these weights in a process of its own: where it stands, in words. Closing this stops it. Raises UserError if
    they can't be made."""
    process, problem = _start(COMMAND), ""
    try:
        for news in _news(process, spec):
            problem = news.failure
            if news.progress:
                yield news.progress.text()
        problem = problem or _sentence(process.wait())
    finally:
        process.kill()
        process.wait()
    if problem:
        raise UserError(problem)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {"OMP_NUM_THREADS": str(THREADS), "NUMBA_NUM_THREADS": str(THREADS)}
    return start_child(command, subprocess.PIPE, subprocess.PIPE, None, nice=NICE, environment=environment)


def _news(process: subprocess.Popen[bytes], spec: WeightSpec) -> Iterator[FromQuantizer]:
    """What a process that was given a spec has to say, until it ends."""
    with suppress(OSError):  # it has ended: its exit code says the rest
        process.stdin.write(spec.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    for line in process.stdout:
        try:
            yield FromQuantizer.model_validate_json(line)
        except ValidationError:
            logger.warning("The process that quantizes was cut off in the middle of a line.")
    process.wait()
    with suppress(OSError):  # what it never read is sent again here
        process.stdin.close()


def _position(ahead: int) -> str:
    """What a setting waits for that is not being quantized yet."""
    if not ahead:
        return ""
    return f"In line: {'1 other setting is' if ahead == 1 else f'{ahead} other settings are'} quantized first"


def _sentence(code: int) -> str:
    """How a process ended that said nothing of it; empty if all is well."""
    if code == -signal.SIGKILL:
        return (
            "Quantizing was stopped by the system (signal 9), most likely because memory ran out; choose a smaller"
            f" model, or {_RETRY}."
        )
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"Quantizing ended unexpectedly ({how}); see the log for the reason, then {_RETRY}."
    return ""


def main() -> int:
    """Quantize what standard input says. Returns the exit code."""
    output = os.fdopen(os.dup(1), "wb")  # libraries print to standard output as they like: give them standard error
    os.dup2(2, 1)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    threading.Thread(target=end_with_parent, daemon=True).start()

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
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # somebody waits: the interpreter would take half a second to clear its libraries away
