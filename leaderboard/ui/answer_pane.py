"""One side of a question as HTML: the setting, its answer so far, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

from leaderboard.ui.table import bit_bar
from quant_engine import notation
from quant_engine.answers.messages import AnswerEvent
from quant_engine.results import AnswerStats
from quant_engine.spec import QuantSetting


@dataclass(frozen=True)
class Side:
    """The state of one side after its last event: `state` is empty, status, token, done or error."""

    setting: QuantSetting
    state: str = "empty"
    text: str = ""
    message: str = ""
    stats: AnswerStats | None = None

    def after(self, event: AnswerEvent) -> Side:
        """The side after one more event; an error keeps the text that came before it."""
        return replace(
            self, state=event.kind, text=event.text or self.text, message=event.message, stats=event.stats or self.stats
        )


def pane(side: Side) -> str:
    """The side as HTML, whatever state it is in."""
    label, bits = escape(side.setting.label), side.setting.w_bits
    weights = escape(side.stats.describe_weights(side.setting)) if side.stats else ""
    return (
        f'<article class="answer at-{side.state}" aria-busy="{str(side.state in ("status", "token")).lower()}">'
        f"<header><b>{label}</b>{bit_bar(bits)}<span>{weights}</span></header>"
        f'<div class="said" aria-live="polite">{_answer(side)}</div>{_costs(side.stats)}</article>'
    )


def _answer(side: Side) -> str:
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


def _costs(stats: AnswerStats | None) -> str:
    speed = f"{stats.tokens_per_s:.1f}" if stats and stats.tokens_per_s else "–"
    first = notation.seconds(stats.ttft_s) if stats else "–"
    memory = notation.size(stats.weight_bytes) if stats else "–"
    return (
        f"<dl><div><dt>First token</dt><dd>{first}</dd></div>"
        f"<div><dt>Tokens/s</dt><dd>{speed}</dd></div>"
        f"<div><dt>Weight memory</dt><dd>{memory}</dd></div></dl>"
    )
