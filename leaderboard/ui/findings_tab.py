"""The Findings tab: each claim of the study with its rule, both sides' numbers in a chart, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from leaderboard.boards import Boards
from leaderboard.findings import OURS, Finding, count, findings
from leaderboard.ui.chart import DRAW_JS, figure_html
from leaderboard.ui.theme import QUICK, html
from leaderboard.view import PageView

_INTRODUCTION = (
    "What the study claims, by its own numbers and by those that were measured here. A bar is a 95% interval over "
    "items, in pairs with the run that it is compared with, and over orders of sums where those were measured; the "
    "study prints none. The models here are small: {language} has 135 million weights, of which each carries more than "
    "one of 8 billion does, so it loses earlier. That a claim fails here does not say that it fails at 8B."
)


def findings_html(found: Sequence[Finding]) -> str:
    """The claims as cards."""
    introduction = escape(_INTRODUCTION.format(language=OURS[0]))
    cards = "".join(map(_card, found))
    return f'<p class="lead"><b>{escape(count(found))}</b> {introduction}</p><div class="figures">{cards}</div>'


def _card(finding: Finding) -> str:
    kind = finding.verdict.partition(" ")[0].replace("'", "")
    protocol = f"<p class='hint'>{escape(finding.protocol)}</p>" if finding.protocol else ""
    see = f'<a href="?{escape(finding.link)}">See the rows</a>' if finding.ours else ""
    return (
        f'<div class="finding"><p class="verdict"><mark class="{kind}">{escape(finding.verdict)}</mark>{see}</p>'
        f"{figure_html(finding.figure)}<p class='hint'><b>Rule.</b> {escape(finding.claim.rule)}</p>{protocol}</div>"
    )


class FindingsTab:
    """The tab, drawn when it is opened. `outputs` is all that it shows: `fill` gives its values for a view."""

    def __init__(self, boards: Boards) -> None:
        self.boards = boards
        self.cards = html("", elem_id="findings", js_on_load=DRAW_JS)
        self.outputs = [self.cards]

    def connect(self, tab: gr.Tab) -> None:
        tab.select(self._draw, None, self.cards, **QUICK)

    def fill(self, view: PageView) -> list:
        return [self._draw() if view.tab == "findings" else gr.skip()]

    def _draw(self) -> str:
        return findings_html(findings(self.boards.current()))
