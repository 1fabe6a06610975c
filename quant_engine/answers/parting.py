"""Where the answers of FP16 and of a quantized model part, in a number and in words. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quant_engine import notation
from quant_engine.results import TokenShift

_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Parting:
    """A quantized model's answer against FP16's.

    `fork` is the index of the first token of FP16's answer that is not the quantized model's own first choice; None if
    each is. `divergence` is the mean KL over the answer's tokens, in nats.
    """

    fork: int | None
    divergence: float
    same: bool
    same_short: bool

    @property
    def words(self) -> str:
        """In a line."""
        if self.same:
            relation = "Same answer"
        elif self.same_short:
            relation = "Same short answer"
        elif self.fork is None:
            relation = "Parted"
        else:
            relation = f"Parted at token {self.fork + 1}"
        return f"{relation}; mean KL {notation.number(self.divergence)} nats"


def parting(reference: str, answer: str, shifts: Sequence[TokenShift]) -> Parting:
    """How an answer parts from FP16's, `reference`, along whose tokens the `shifts` are."""
    fork = next((index for index, shift in enumerate(shifts) if not shift.agrees), None)
    mean = sum(shift.divergence for shift in shifts) / len(shifts)
    same = reference.strip() == answer.strip()
    return Parting(fork, mean, same, same or short_answer(reference) == short_answer(answer) != "")


def short_answer(text: str) -> str:
    """The first sentence of an answer without case, punctuation and articles: 'The total is 101.00. It …' is 'total is
    101.00'."""
    first = _SENTENCE_END.split(text.strip(), maxsplit=1)[0].lower()
    words = (word.strip(".,;:!?\"'()") for word in first.split())
    return " ".join(word for word in words if word and word not in _ARTICLES)
