"""One side of a question as HTML: the setting, its answer so far, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from leaderboard.ui.along import along_html
from leaderboard.ui.table import bit_bar
from quant_engine import notation
from quant_engine.answers.messages import AnswerEvent, AskRequest
from quant_engine.answers.parting import Parting, parting
from quant_engine.results import AnswerStats, TokenShift
from quant_engine.spec import QuantSetting


@dataclass(frozen=True)
class Side:
    """The state of one side after its last event: `state` is empty, status, token, done or error. `earlier` are the
    questions of the conversation before its last `question`, with this side's answers.

    `shifts` are what it finds of FP16's answer, which is `reference`; until they come `reading` says what is being
    done. `onward` is its answer from the fork on, behind the text `prefix` of FP16's.
    """

    setting: QuantSetting
    state: str = "empty"
    text: str = ""
    message: str = ""
    stats: AnswerStats | None = None
    question: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    tokens: tuple[int, ...] = ()
    reference: str = ""
    shifts: tuple[TokenShift, ...] = ()
    reading: str = ""
    prefix: str = ""
    onward: Side | None = None

    def after(self, event: AnswerEvent) -> Side:
        """The side after one more event; an error keeps the text that came before it."""
        return replace(
            self,
            state=event.kind,
            text=event.text or self.text,
            message=event.message,
            stats=event.stats or self.stats,
            tokens=event.tokens,
        )

    def after_reading(self, event: AnswerEvent, reference: str) -> Side:
        """The side after one more event of the question what it finds of FP16's answer."""
        return replace(self, reference=reference, shifts=event.shifts, reading=event.message)

    @property
    def parting(self) -> Parting | None:
        """How its answer parts from FP16's; None where that is not known."""
        return parting(self.reference, self.text, self.shifts) if self.shifts else None


def first_sides(request: AskRequest) -> tuple[Side, ...]:
    """The sides of a question that was just asked."""
    return tuple(
        Side(setting, "status", message="Asking", question=request.question, earlier=request.conversation(number))
        for number, setting in enumerate(request.sides)
    )


def pane(side: Side) -> str:
    """The side as HTML, whatever state it is in."""
    # The controls above say what will be asked; a setting stands here once it is asked.
    is_asked = side.state != "empty" or side.setting.method == "fp16"
    name = f"<b>{escape(side.setting.label)}</b>{bit_bar(side.setting.w_bits)}" if is_asked else "<b>&nbsp;</b>"
    dtype = escape(side.stats.computed) if side.stats else ""
    return (
        f'<article class="answer at-{side.state}" aria-busy="{str(side.state in ("status", "token")).lower()}">'
        f"<header>{name}<span>{dtype}</span></header>{costs_html(side.stats)}"
        f'<div class="said" aria-live="polite"><div>{_earlier(side)}{answer_html(side)}</div></div>'
        f"{_along(side)}</article>"
    )


def _earlier(side: Side) -> str:
    """The conversation before the answer; nothing for a first question, which stands above the answers."""
    if not side.earlier:
        return ""
    turns = "".join(f'<p class="asked">{escape(q)}</p><p class="before">{escape(a)}</p>' for q, a in side.earlier)
    return f'{turns}<p class="asked">{escape(side.question)}</p>'


def answer_html(side: Side) -> str:
    """What a side said so far, or what is being done for it."""
    text = escape(side.text)
    if side.state == "empty":
        return '<p class="hint">The answer will stand here.</p>'
    if side.state == "status":
        return f'<p class="wait">{escape(side.message)}<i></i></p>'
    if side.state == "token":
        return f"<p>{text}<i class='caret'></i></p>"
    if side.state == "error":
        kind = "hint" if side.message == "Stopped." else "sorry"
        return (f"<p>{text}</p>" if text else "") + f'<p class="{kind}" role="alert">{escape(side.message)}</p>'
    answer = f"<p>{text}</p>" if text.strip() else '<p class="hint">The model ended its answer without a word.</p>'
    return answer + (f'<p class="hint">{escape(side.message)}</p>' if side.message else "")


def _along(side: Side) -> str:
    """What a quantized side finds of FP16's answer, and how it goes on from there."""
    if side.setting.method == "fp16":
        return ""
    if not side.shifts:
        return f'<section class="along"><p class="hint">{escape(side.reading)}</p></section>' if side.reading else ""
    onward = ""
    if side.onward:
        text = side.onward.text.removeprefix(side.prefix)
        answer = answer_html(replace(side.onward, text=text)) if text else answer_html(side.onward)
        onward = (
            '<section class="onward" aria-live="polite"><h4>From the fork on</h4>'
            f"<div><q>{escape(side.prefix)}</q>{answer}</div></section>"
        )
    return along_html(side.parting, side.shifts, can_go_on=side.onward is None) + onward


def costs_html(stats: AnswerStats | None) -> str:
    figures: Sequence[tuple[str, str]] = (
        ("First token", notation.seconds(stats.ttft_s) if stats else "–"),
        ("Tokens/s", f"{stats.tokens_per_s:.1f}" if stats and stats.tokens_per_s else "–"),
        ("Weight memory", notation.size(stats.weight_bytes) if stats else "–"),
        ("Stored bits", f"{stats.stored_bits:.2f}" if stats else "–"),
    )
    titles = {"Stored bits": ' title="Bits stored per quantized weight, side data counted"'}
    cells = (f"<div{titles.get(name, '')}><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f"<dl>{''.join(cells)}</dl>"
