"""The page's side of answering: starts the resident process when it is needed and hands its events out.

Imports no torch. Safe to use from any thread. When the process dies, every open request ends with one sentence, and
the next request starts a fresh one.
"""

from __future__ import annotations

import atexit
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

import psutil
from pydantic import ValidationError

from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.children import start_child
from quant_engine.kernels import ahead
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

IDLE_S = 300.0
CLOSE_S = 3.0
_COMMAND = (sys.executable, "-m", "quant_engine.answers.worker")

Settled = Callable[[AskRequest], Mapping[int, AnswerEvent]]


def held_memory() -> int:
    """Bytes that this page's answering processes have for themselves: their models make room for others."""
    held = 0
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            if child.cmdline()[-2:] == list(_COMMAND[-2:]):
                memory = child.memory_info()
                held += memory.rss - getattr(memory, "shared", 0)
    return held


def nothing_settled(request: AskRequest) -> Mapping[int, AnswerEvent]:
    """Every side can be answered here."""
    return {}


class AnswerService:
    """Answers questions through one resident process, which ends after `idle_s` seconds without a question.

    `settled` says which sides of a request can't be answered on this machine, and how they end instead: with a sentence
    that says why, or with an answer that another machine gave. Nothing is loaded for them.
    """

    def __init__(
        self, command: Sequence[str] = _COMMAND, idle_s: float = IDLE_S, settled: Settled = nothing_settled
    ) -> None:
        self._command, self._idle_s, self._settled = tuple(command), idle_s, settled
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._compiling: subprocess.Popen[bytes] | None = None
        self._idle: threading.Timer | None = None
        atexit.register(self.close)

    def warm_up(self, model: str | None = None) -> None:
        """Start the process now and have it load a model, so that the first question doesn't wait. Meanwhile a machine
        that never did so compiles what answers need. Returns at once.

        Raises UserError when no process can be started.
        """
        with self._lock:
            if self._worker is None and ahead.is_needed():
                with suppress(OSError):  # then it is compiled when the model has been loaded
                    self._compiling = start_child(ahead.COMMAND, subprocess.DEVNULL, subprocess.DEVNULL, stderr=None)
            worker = self._running()
            if model:
                worker.load(model)
            self._watch_idleness()

    def ask(self, request: AskRequest) -> Iterator[AnswerEvent]:
        """Answer a request: events of all its sides as they come, until each side has ended with done or error.

        The request is sent with the first event that is asked for. Closing the iterator cancels it. Raises UserError
        when no process can be started.
        """
        settled = self._settled(request)
        yield from settled.values()
        numbers = [side for side in range(len(request.sides)) if side not in settled]
        if numbers:
            with closing(self._ask(request.of(numbers))) as events:
                for event in events:
                    yield event.model_copy(update={"side": numbers[event.side]})

    def _ask(self, request: AskRequest) -> Iterator[AnswerEvent]:
        """The events of a request whose sides can all be answered here."""
        with self._lock:
            previous = self._worker
            worker, inbox = self._send(request)
        try:
            if worker is not previous:
                for side in range(len(request.sides)):
                    message = "Starting the answering process"
                    yield AnswerEvent(request_id=request.request_id, side=side, kind="status", message=message)
            while inbox.open_sides:
                event = inbox.events.get()
                if event.side in inbox.open_sides:  # a dying process ends all sides, the answered ones too
                    inbox.note(event)
                    yield event
        finally:
            worker.forget(request.request_id, cancel=bool(inbox.open_sides))
            with self._lock:
                self._watch_idleness()

    def cancel(self, request_id: str) -> None:
        """Stop a request: each of its open sides ends with an error event that says so and keeps the text so far."""
        with self._lock:
            if self._worker:
                self._worker.cancel(request_id)

    def close(self) -> None:
        """End the process. Open requests end with a sentence; a later request starts a new process."""
        with self._lock:
            worker, self._worker = self._worker, None
            compiling, self._compiling = self._compiling, None
            if self._idle:
                self._idle.cancel()
        if compiling:
            compiling.terminate()
            compiling.wait()
        if worker:
            worker.close()

    def _running(self) -> _Worker:
        """The running process, started if there is none. Called with the lock held."""
        if self._worker is None or not self._worker.is_alive():
            self._worker = _Worker(self._command)
        return self._worker

    def _send(self, request: AskRequest) -> tuple[_Worker, Inbox]:
        """Hand a request to the process; one that just died is replaced. Called with the lock held."""
        worker = self._running()
        inbox = worker.ask(request)
        if inbox is None:
            worker = self._worker = _Worker(self._command)
            inbox = worker.ask(request)
        if inbox is None:
            raise UserError("The answering process ends as soon as it is started: see the log for the reason.")
        return worker, inbox

    def _watch_idleness(self) -> None:
        """Let the process go, with all its models, when nobody asks for a while. Called with the lock held."""
        if self._idle:
            self._idle.cancel()
        self._idle = threading.Timer(self._idle_s, self._close_if_idle)
        self._idle.daemon = True
        self._idle.start()

    def _close_if_idle(self) -> None:
        with self._lock:
            if self._worker is None or self._worker.is_busy():
                return
            worker, self._worker = self._worker, None
        worker.close()


@dataclass
class Inbox:
    """What one request still waits for, and the events that came for it."""

    open_sides: set[int]
    events: SimpleQueue[AnswerEvent] = field(default_factory=SimpleQueue)
    texts: dict[int, str] = field(default_factory=dict)

    def note(self, event: AnswerEvent) -> None:
        if event.kind in ("done", "error"):
            self.open_sides.remove(event.side)
        if event.kind == "token":
            self.texts[event.side] = event.text
        elif event.kind == "error" and not event.text:
            event.text = self.texts.get(event.side, "")


class _Worker:
    """One life of the answering process, and the requests that it has not ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self._ended = False
        self._lock = threading.Lock()
        try:
            self._process = start_child(command, subprocess.PIPE, subprocess.PIPE, stderr=None)
        except OSError as error:
            raise UserError(f"The answering process can't be started ({error.strerror}): free memory.") from error
        threading.Thread(target=self._read, name="answers", daemon=True).start()

    def is_alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def is_busy(self) -> bool:
        return bool(self._inboxes)

    def ask(self, request: AskRequest) -> Inbox | None:
        """Send a request; None when the process is dead."""
        inbox = Inbox(set(range(len(request.sides))))
        with self._lock:
            if self._ended or not self._write(ToWorker(ask=request)):
                return None
            self._inboxes[request.request_id] = inbox
        return inbox

    def load(self, model: str) -> None:
        """Have a model loaded; a process that is dead leaves that to the next question."""
        with self._lock:
            self._write(ToWorker(load=model))

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if request_id in self._inboxes:
                self._write(ToWorker(cancel=request_id))

    def forget(self, request_id: str, cancel: bool) -> None:
        """Nobody waits for a request any more."""
        with self._lock:
            self._inboxes.pop(request_id, None)
            if cancel:
                self._write(ToWorker(cancel=request_id))

    def close(self) -> None:
        """End the process; one that doesn't notice is killed."""
        with self._lock:
            self._close_input()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _close_input(self) -> None:
        """Let the process end. Called with the lock held."""
        with suppress(OSError):  # a dead process leaves its last message unread, and closing tries to send it again
            self._process.stdin.close()

    def _write(self, message: ToWorker) -> bool:
        """Called with the lock held. False when the process is gone, or was closed: then its end tells the rest."""
        try:
            self._process.stdin.write(message.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            logger.info("The answering process takes no more requests: %s", error)
            return False
        return True

    def _read(self) -> None:
        """Hand out events until the process ends; then end whatever it left open."""
        for line in self._process.stdout:
            try:
                event = AnswerEvent.model_validate_json(line)
            except ValidationError:
                logger.warning("The answering process was cut off in the middle of an event.")
                continue
            with self._lock:
                inbox = self._inboxes.get(event.request_id)
            if inbox:
                inbox.events.put(event)
        code = self._process.wait()
        if code:
            logger.warning("The answering process ended with %s.", code)
        with self._lock:
            self._ended = True
            self._close_input()
            for request_id, inbox in self._inboxes.items():
                for side in list(inbox.open_sides):
                    inbox.events.put(
                        AnswerEvent(request_id=request_id, side=side, kind="error", message=_sentence(code))
                    )


def _sentence(code: int) -> str:
    """How the process ended, for somebody who waits for its answer."""
    if code == -signal.SIGKILL:
        return (
            "The answering process was stopped by the system (signal 9), most likely because memory ran out; choose a"
            " smaller model or compare fewer settings, then ask again."
        )
    if code < 0:
        return f"The answering process crashed (signal {-code}); ask again, and see the log if it happens twice."
    if code > 0:
        return f"The answering process could not go on (exit code {code}); see the log for the reason, then ask again."
    return "The answering process was closed; ask again."
