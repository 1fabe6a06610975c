"""A conversation about a picture: one question after another to the same settings."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.answers.messages import AskRequest, Turn
from quant_engine.spec import UserError


@dataclass(frozen=True)
class Conversation:
    """The last question of a conversation and the answer of each of its sides."""

    request: AskRequest
    answers: tuple[str, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All its questions and answers."""
        return (*self.request.earlier, Turn(question=self.request.question, answers=self.answers))

    def check_follows(self, request: AskRequest) -> None:
        """Raises UserError if a question that goes on from here is to somebody else, or about another picture."""
        before = self.request
        for what, same in (
            ("model", request.model == before.model),
            ("picture", request.image == before.image),
            ("choice of settings", request.sides == before.sides),
        ):
            if not same:
                raise UserError(f"Another {what} begins a new conversation: press Ask.")
