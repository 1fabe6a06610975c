"""Rows of data from outside, checked: a file's fields as pydantic models, and what is wrong with a row in words."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

_UNANSWERED = "so there is nothing to score; give a split whose answers are published"
_KINDS = {bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}
_LONGEST = 40
_WHOLE_NUMBER = re.compile(r"\s*([+-]?\d{1,9})(?:\.0*)?\s*")
"""Also as a table writes it where another row has no value: 1.0."""


class Row(BaseModel):
    """The fields that are read; others may be there. A field that is not there is one without a value."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _absent_is_none(cls, row: Any) -> Any:
        return dict.fromkeys(cls.model_fields) | row if isinstance(row, dict) else row


def as_text(value: object) -> str:
    """A text, or the text of a number. Raises ValueError for anything else."""
    if value is None or value != value:  # NaN stands where a table has no value
        raise ValueError("is missing")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"is {_KINDS.get(type(value), type(value).__name__)}, where text or a number belongs")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _maybe_text(value: object) -> str | None:
    return None if value is None or value != value else as_text(value)


def _as_number(value: object) -> int:
    match = _WHOLE_NUMBER.fullmatch(as_text(value))
    if not match:
        raise ValueError(f"is {shortened(value)}, where a whole number belongs")
    return int(match[1])


def given(value: object) -> object:
    """An answer as it is. Raises ValueError where it is missing, as in splits whose answers are not published."""
    if value is None or value != value or value == []:
        raise ValueError(f"is missing, {_UNANSWERED}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"is empty, {_UNANSWERED}")
    return value


def _not_negative(number: int) -> int:
    if number < 0:  # -1 stands for an answer that is not published
        raise ValueError(f"is {number}, {_UNANSWERED}")
    return number


AnyText = Annotated[str, BeforeValidator(as_text)]
Text = Annotated[AnyText, AfterValidator(_filled)]
MaybeText = Annotated[str | None, BeforeValidator(_maybe_text)]
Number = Annotated[int, BeforeValidator(_as_number)]
Answer = Annotated[AnyText, BeforeValidator(given)]
AnswerNumber = Annotated[Number, AfterValidator(_not_negative), BeforeValidator(given)]


def check_number(field: str, number: int, count: int, first: int = 0) -> None:
    """Raises ValueError where `number`, counted from `first`, is none of `count` choices."""
    if not first <= number < first + count:
        raise ValueError(f"{field} is {number}, which is none of its {count} choices (from {first} on)")


def problem(error: ValidationError) -> str:
    """What is wrong with a row, behind the name of the field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":  # "Input should be a valid list"
        message = f"should{message.partition('should')[2]}"
        if ", not " not in message:
            message += f", not {shortened(first['input'])}"
    return f"{field} {message}".lstrip()


def shortened(value: object) -> str:
    text = ascii(value) if isinstance(value, str) else f"{value}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
