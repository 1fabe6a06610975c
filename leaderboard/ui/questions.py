"""Questions on their way that a visitor can stop or replace at any time, also before they have left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Literal

from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AnswerEvent, AskRequest

Stage = Literal["asked", "answering", "answered", "reading"]
"""How far a question is: `reading` is when quantized sides go along FP16's answer."""


class Questions:
    """The open questions of a part of the page. A step of the page takes a question on only from the stage that it
    stands at, so that no step is taken twice, whatever was pressed meanwhile."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._stopped: set[str] = set()
        self._replaced: set[str] = set()

    def begin(self, request: AskRequest, instead_of: AskRequest | None = None) -> None:
        """A question is asked; of the one before, if it is open, nothing more is shown."""
        self._stages[request.request_id] = "asked"
        if instead_of is not None and instead_of.request_id in self._stages:
            self._replaced.add(instead_of.request_id)
            self._service.cancel(instead_of.request_id)

    def stage(self, request: AskRequest) -> Stage | None:
        """How far a question is; None when it is at its end."""
        return self._stages.get(request.request_id)

    def take(self, request: AskRequest, before: Stage, after: Stage) -> bool:
        """Whether a question stands at the stage `before`, and none else has taken it from there to the next one."""
        with self._lock:
            if self._stages.get(request.request_id) != before:
                return False
            self._stages[request.request_id] = after
            return True

    def events(self, request: AskRequest) -> Iterator[AnswerEvent]:
        """The events of a question as they come, until it is replaced."""
        for event in self._service.ask(request):
            if request.request_id in self._stopped | self._replaced:
                self._stopped.discard(request.request_id)
                self._service.cancel(request.request_id)
            if request.request_id in self._replaced:
                return
            yield event

    def stop(self, request: AskRequest) -> None:
        """Stop an open question; one that is not on its way yet stops when it is."""
        if request.request_id in self._stages:
            self._stopped.add(request.request_id)
            self._service.cancel(request.request_id)

    def is_replaced(self, request: AskRequest) -> bool:
        return request.request_id in self._replaced

    def end(self, request: AskRequest) -> None:
        """Nothing more of a question is wanted."""
        self._stages.pop(request.request_id, None)
        self._stopped.discard(request.request_id)
        self._replaced.discard(request.request_id)
