"""FP16's answer as a quantized model sees it: its tokens shaded by the probability that they lost, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from quant_engine import notation
from quant_engine.answers.parting import Parting
from quant_engine.results import TokenShift

_HELP = "Point at a token, or go along them with the arrow keys."


def along_html(parting: Parting, shifts: Sequence[TokenShift], can_go_on: bool) -> str:
    """The line in words, the tokens, and the way on from the first fork."""
    tokens = "".join(_token(index, shift, index == parting.fork) for index, shift in enumerate(shifts))
    button = '<button type="button" data-fork>Go on from the fork</button>'
    onward = button if can_go_on and parting.fork is not None else ""
    return (
        f'<section class="along"><p class="verdict">{escape(parting.words)}</p>'
        "<h4>FP16's answer as this model sees it</h4>"
        f'<p class="tokens" role="listbox" aria-label="Tokens of FP16\'s answer">{tokens}</p>'
        f'<p class="detail" role="status">{_HELP}</p>{onward}</section>'
    )


def _token(index: int, shift: TokenShift, is_fork: bool) -> str:
    drop = max(0.0, shift.p - shift.q)
    kind = "token fork" if is_fork else "token"
    detail = describe(shift)
    text = "end" if shift.text is None else shift.text.replace("\n", "↵\n") or "▯"
    return (
        f'<span class="{kind}{" end" if shift.text is None else ""}" style="--s:{drop:.3f}" role="option"'
        f' aria-selected="false" tabindex="{0 if index == 0 else -1}" data-detail="{escape(detail, quote=True)}"'
        f' aria-label="{escape(detail, quote=True)}">{escape(text)}</span>'
    )


def describe(shift: TokenShift) -> str:
    """What a quantized model finds of a token, in a line."""
    if shift.agrees:
        choice = "its first choice too"
    else:
        choice = f"its own first choice is {_named(shift.choice)} ({_percent(shift.choice_q)})"
    probability = f"{_percent(shift.p)} → {_percent(shift.q)}"
    return f"{_named(shift.text)}: {probability}; KL {notation.number(shift.divergence)} nats; {choice}"


def _named(text: str | None) -> str:
    return "the end" if text is None else f"“{text.strip() or text.replace(chr(10), '↵')}”"


def _percent(probability: float) -> str:
    """A probability: 61.9%, and <0.1% rather than a zero that is none."""
    return notation.percent(100 * probability)
