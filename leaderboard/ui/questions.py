"""Questions on their way that a visitor can stop at any time, also before they have left."""

from __future__ import annotations

from collections.abc import Iterator

from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AnswerEvent, AskRequest


class Questions:
    """The open questions of a part of the page."""

    def __init__(self, service: AnswerService) -> None:
        self._service = service
        self._stopped: set[str] = set()

    def events(self, request: AskRequest) -> Iterator[AnswerEvent]:
        """The events of a question as they come."""
        for event in self._service.ask(request):
            if request.request_id in self._stopped:
                self._stopped.discard(request.request_id)
                self._service.cancel(request.request_id)
            yield event

    def stop(self, request: AskRequest) -> None:
        """Stop a question; one that is not on its way yet stops when it is."""
        self._stopped.add(request.request_id)
        self._service.cancel(request.request_id)

    def end(self, request: AskRequest) -> None:
        """Nothing more of a question is wanted."""
        self._stopped.discard(request.request_id)
