"""Messages between the page, the answering process and those that quantize for it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from quant_engine.progress import Progress
from quant_engine.results import AnswerStats, TokenShift
from quant_engine.spec import Identifier, QuantSetting, Text

MOST_QUESTION_CHARACTERS = 4000
MOST_NEW_TOKENS = 1024
MOST_SIDES = 8
MOST_EARLIER = 16


class Turn(BaseModel):
    """A question that was asked before in a conversation, with the answer of each side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: Text
    answers: tuple[Text, ...]


class AskRequest(BaseModel):
    """One question for one model, answered once per setting in `sides`. `image` is the path of a picture, or None.

    `earlier` are the questions before it: each side goes on from its own answers. `prefix` are the tokens that the
    answer begins with. With `along`, the tokens of FP16's answer, nothing is answered: each side finds how probable it
    holds them to be, and FP16, the first side, is what the others are held against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Identifier
    image: Path | None = None
    question: Text
    sides: tuple[QuantSetting, ...]
    earlier: tuple[Turn, ...] = ()
    prefix: tuple[int, ...] = ()
    along: tuple[int, ...] = ()
    max_new_tokens: int = Field(default=128, ge=1, le=MOST_NEW_TOKENS)
    request_id: str = Field(default_factory=lambda: uuid4().hex)

    @field_validator("question")
    @classmethod
    def _has_text(cls, question: str) -> str:
        question = question.strip()
        if not question:
            raise ValueError("Type a question.")
        if len(question) > MOST_QUESTION_CHARACTERS:
            raise ValueError(
                f"The question has {len(question):,} characters; shorten it to {MOST_QUESTION_CHARACTERS:,}."
            )
        return question

    @field_validator("sides")
    @classmethod
    def _are_few(cls, sides: tuple[QuantSetting, ...]) -> tuple[QuantSetting, ...]:
        if not 1 <= len(sides) <= MOST_SIDES:
            raise ValueError(f"Choose from 1 to {MOST_SIDES} settings to compare, not {len(sides)}.")
        return sides

    @model_validator(mode="after")
    def _goes_on(self) -> AskRequest:
        if len(self.earlier) > MOST_EARLIER:
            raise ValueError(f"A conversation has at most {MOST_EARLIER + 1} questions: begin a new one.")
        if any(len(turn.answers) != len(self.sides) for turn in self.earlier):
            raise ValueError("The settings are not those of the conversation so far: begin a new one.")
        if self.along and self.sides[0].method != "fp16":
            raise ValueError("Answers are held against FP16's: name it first.")
        return self

    def of(self, numbers: Sequence[int], **changes: object) -> AskRequest:
        """The request of some of its sides alone, with the same id: what stops that stops it."""
        earlier = tuple(
            Turn(question=turn.question, answers=tuple(turn.answers[number] for number in numbers))
            for turn in self.earlier
        )
        sides = tuple(self.sides[number] for number in numbers)
        return AskRequest(**dict(self) | {"sides": sides, "earlier": earlier} | changes)

    def conversation(self, side: int) -> tuple[tuple[str, str], ...]:
        """The earlier questions with a side's answers."""
        return tuple((turn.question, turn.answers[side]) for turn in self.earlier)


class AnswerEvent(BaseModel):
    """Something happened on one side of a request.

    status: `message` says what is being done. token: `text` is the whole answer so far. done: `text` is the answer, and
    `message` says so if it was computed for an earlier question; `tokens` are its ids, or `shifts` what the side finds
    of those that it was asked about.
    error: `message` is one sentence, `text` what was answered until then. Each side ends with one done or one error.
    """

    model_config = ConfigDict(extra="forbid")

    request_id: str
    side: int
    kind: Literal["status", "token", "done", "error"]
    text: str = ""
    message: Text = ""
    stats: AnswerStats | None = None
    tokens: tuple[int, ...] = ()
    shifts: tuple[TokenShift, ...] = ()


class ToWorker(BaseModel):
    """One line on the answering process's standard input: a request, the id of one to cancel, or the id of a model to
    load, unquantized, before anybody asks it."""

    model_config = ConfigDict(extra="forbid")

    ask: AskRequest | None = None
    cancel: str | None = None
    load: Identifier | None = None


class FromQuantizer(BaseModel):
    """One line of a process that quantizes: where it stands, that the weights are there, or in a sentence why they
    can't be made."""

    model_config = ConfigDict(extra="forbid")

    progress: Progress | None = None
    done: bool = False
    failure: Text = ""
