"""The blind vote of the Ask tab: FP16's answer and a quantized one without names; the visitor says which is which."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from leaderboard import requests, votes
from leaderboard.lab import Lab
from leaderboard.ui import setting_picker
from leaderboard.ui.answer_pane import Side, answer_html, costs_html, first_sides
from leaderboard.ui.notice import notice
from leaderboard.ui.pressed import pressed
from leaderboard.ui.questions import Questions
from leaderboard.ui.table import bit_bar
from leaderboard.ui.theme import NO_PROGRESS, QUICK, html
from leaderboard.votes import Ballot, Verdict
from quant_engine.answers.messages import AskRequest
from quant_engine.methods import METHODS, resolve_setting
from quant_engine.spec import QuantSetting, UserError

BLIND_AT_ONCE = 8
MOST_VOTER = 64
"""Characters that say whose vote it is."""
FIRST_SETTING = QuantSetting(method="rtn", w_bits=3, group_size=64)
LETTERS = "AB"
UNSURE = "unsure"
_HELP = "FP16's answer and a quantized one's, unnamed and in random order."
_KEEP = "Store my question's words with the vote (otherwise no words are stored, and the picture never is)"
_EMPTY = '<p class="hint">Both answers will stand here at once, when both are finished.</p>'
_HINT = '<p class="hint">It will stand here when both are finished.</p>'
_VOTE_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-vote]');
  if (button) trigger('vote', { vote: button.dataset.vote });
});
"""


@dataclass(frozen=True)
class Blind:
    """A blind question as it stands. `sides` are FP16's and the quantized one's, and `order` their numbers as A and B.

    `picture` identifies the picture. `known` are the questions whose FP16 answer this visitor has seen under its name
    here: (model, picture, question). `hidden` says that the setting is a surprise, `outcome` what came of the vote, and
    `counted` what became of it.
    """

    request: AskRequest
    picture: str
    order: tuple[int, int]
    sides: tuple[Side, ...]
    known: frozenset[tuple[str, str, str]] = frozenset()
    hidden: bool = False
    outcome: str = ""
    counted: str = ""

    @property
    def setting(self) -> QuantSetting:
        return self.request.sides[1]

    @property
    def question(self) -> tuple[str, str, str]:
        return self.request.model, self.picture, self.request.question

    @property
    def finished(self) -> bool:
        """Whether both answers are there."""
        return all(side.state == "done" for side in self.sides)

    @property
    def same(self) -> bool:
        """Whether the answers show the same words."""
        first, second = (" ".join(side.text.split()) for side in self.sides)
        return first == second

    @property
    def open(self) -> bool:
        """Whether it can be voted on."""
        return self.finished and not self.same and not self.outcome

    def revealed(self, outcome: str, counted: str) -> Blind:
        """The same with its names: FP16's answer is known from now on."""
        return replace(self, outcome=outcome, counted=counted, known=self.known | {self.question})

    def verdict(self, vote: str) -> Verdict:
        """What a vote, A, B or unsure, is worth. Raises UserError for any other."""
        if vote == UNSURE:
            return "unsure"
        if vote not in list(LETTERS):
            raise UserError("Vote for A or B, or say that you can't tell.")
        return "right" if self.order[LETTERS.index(vote)] == 1 else "wrong"


def surprise() -> QuantSetting:
    """A random method that needs no training, at 2 to 4 bits if it has such widths, with a random group."""
    methods = [method.card for method in METHODS.values() if not (method.train or method.fine_tunes)]
    card = secrets.choice(methods)
    bits = secrets.choice([width for width in card.bits if 2 <= width <= 4] or card.bits)
    group = secrets.choice((32, 64, 128)) if card.grouped else None
    return resolve_setting(QuantSetting(method=card.name, w_bits=bits, a_bits=card.a_bits[-1], group_size=group))


class BlindPart:
    """The setting, two unnamed answers, and the vote."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the part."""
        self.questions, self._votes = Questions(lab.answers), lab.votes
        self.blind = gr.State(None)
        self.voter = gr.BrowserState(None, storage_key="lowbit-voter", secret="lowbit-voter")
        with gr.Accordion("Blind: can you tell the quantized answer?", open=False, elem_classes="more-options blind"):
            html(f'<p class="remark">{escape(_HELP)}</p>')
            with gr.Row(elem_classes="sweeping"):
                with gr.Column(elem_classes="blind-setting", min_width=0):
                    self.picker = setting_picker.build(fp16=False, first=FIRST_SETTING)
                self.ask = gr.Button("Ask blind", elem_id="ask-blind", min_width=88)
                self.surprise = gr.Button("Surprise me", elem_id="surprise", min_width=88)
                self.stop = gr.Button("Stop", visible=False, elem_id="stop-blind", min_width=88)
            self.problem = html("", elem_id="blind-problem")
            self.answers = html(_EMPTY, elem_id="blind", js_on_load=_VOTE_JS)
            self.keep = gr.Checkbox(False, label=_KEEP, visible=False, elem_id="keep-words")

    def connect(
        self,
        model: gr.Dropdown,
        picture: gr.State,
        question: gr.Textbox,
        length: gr.Dropdown,
        named: list[gr.State],
    ) -> None:
        """Connects the part with what is asked. `named` hold what was asked of FP16 under its name on this page: each
        an AskRequest, something with one as its `request`, or None."""
        buttons = [self.ask, self.surprise, self.stop]
        form = [self.blind, model, picture, question, length, *self.picker]
        for button, prepare in ((self.ask, self._prepare), (self.surprise, self._prepare_surprise)):
            button.click(prepare, form, [self.blind, self.problem, self.answers, self.keep, *buttons], **QUICK).then(
                self._answer,
                self.blind,
                [self.answers, self.blind],
                concurrency_limit=BLIND_AT_ONCE,
                concurrency_id="blind",
                api_visibility="private",
                **NO_PROGRESS,
            ).then(self._stand, self.blind, [self.keep, *buttons], **QUICK)
        self.stop.click(lambda blind: self.questions.stop(blind.request) if blind else None, self.blind, None, **QUICK)
        outputs = [self.blind, self.problem, self.answers, self.keep, self.voter]
        self.answers.vote(self._vote, [self.blind, self.keep, self.voter, *named], outputs, **QUICK)

    def _prepare_surprise(self, blind: Blind | None, model, picture, question, length, *_: Any) -> tuple:
        return self._begin(blind, model, picture, question, length, surprise, hidden=True)

    def _prepare(self, blind: Blind | None, model, picture, question, length, method, bits, a_bits, group) -> tuple:
        choose = partial(requests.setting, method, bits, group, a_bits=a_bits)
        return self._begin(blind, model, picture, question, length, choose, hidden=False)

    def _begin(self, before: Blind | None, model, picture, question, length, choose, *, hidden: bool) -> tuple:
        """Checks everything first: a refusal is a sentence, and leaves the question before it."""
        try:
            request = requests.question(model, picture, question, [choose()], length)
            identity = picture_digest(request)
        except UserError as refusal:
            return gr.skip(), notice(str(refusal)), *[gr.skip()] * 5
        order = secrets.choice([(0, 1), (1, 0)])
        known = before.known if before else frozenset()
        blind = Blind(request, identity, order, first_sides(request), known, hidden)
        self.questions.begin(request, before.request if before else None)
        off, on = gr.update(visible=False), gr.update(visible=True)
        return blind, "", blind_html(blind), off, off, off, on

    def _answer(self, blind: Blind | None) -> Iterator[list[Any]]:
        """What is waited for, anew when that changes; at the end both answers at once."""
        if blind is None or not self.questions.take(blind.request, "asked", "answering"):
            yield [gr.skip(), gr.skip()]
            return
        sides, shown = list(blind.sides), blind_html(blind)
        try:
            for event in self.questions.events(blind.request):
                sides[event.side] = sides[event.side].after(event)
                waiting = blind_html(replace(blind, sides=tuple(sides)), waiting=True)
                if waiting != shown:
                    shown = waiting
                    yield [shown, gr.skip()]
        except UserError as problem:
            sides = [replace(side, state="error", message=str(problem)) for side in sides]
        finally:
            replaced = self.questions.is_replaced(blind.request)
            self.questions.end(blind.request)
        if replaced:
            yield [gr.skip(), gr.skip()]
            return
        blind = replace(blind, sides=tuple(sides))
        if blind.finished and blind.same:
            blind = blind.revealed("Both gave the same answer, word for word.", "Nothing to vote on, nothing counted.")
        yield [blind_html(blind), blind]

    def _stand(self, blind: Blind | None) -> tuple:
        """The buttons as the question stands."""
        waiting = blind is not None and self.questions.stage(blind.request) is not None
        votable = blind is not None and not waiting and blind.open
        return (
            gr.update(visible=votable),
            gr.update(visible=not waiting),
            gr.update(visible=not waiting),
            gr.update(visible=waiting),
        )

    def _vote(
        self, event: gr.EventData, request: gr.Request, blind: Blind | None, keep: bool, voter: Any, *named: Any
    ) -> tuple:
        """Stores the vote, and then reveals the names. Where it can't be stored nothing is revealed: it can be cast
        again. The browser stores as whose vote it was: the session in which the first one was cast."""
        if blind is None or not blind.open:
            return gr.skip(), notice("Ask a question first, and wait for both answers."), *[gr.skip()] * 3
        try:
            vote = pressed(event, "vote")
            verdict = blind.verdict(vote)
            session = getattr(request, "session_hash", None)
            voter = voter if session and isinstance(voter, str) and 0 < len(voter) <= MOST_VOTER else session
            counted = self._count(blind, verdict, voter, keep is True, named)
        except UserError as refusal:
            return gr.skip(), notice(str(refusal)), *[gr.skip()] * 3
        quantized = LETTERS[blind.order.index(1)]
        words = {"right": "Right", "wrong": "Not so", "unsure": "Now you know"}[verdict]
        blind = blind.revealed(f"{words}: {quantized} is {blind.setting.label}.", counted)
        return blind, "", blind_html(blind), gr.update(visible=False), voter

    def _count(self, blind: Blind, verdict: Verdict, voter: str | None, keep: bool, named: tuple) -> str:
        """Stores a vote if it is a blind one, and says in a sentence whether it counts and what the rate is now."""
        if not voter:
            raise UserError("A vote comes from a page that is open: reload the page, then ask again.")
        if blind.question in blind.known or any(is_about(asked, blind.request) for asked in named):
            return "Not counted: FP16's answer to this question was shown under its name before."
        model, setting = blind.request.model, blind.setting
        ballot = Ballot(voter, model, blind.picture, blind.request.question, setting, verdict, keep)
        words = "Counted." if self._votes.cast(ballot) else "Not counted: you have voted on this question before."
        rate = self._votes.rate(model, setting)
        if rate is None:
            return words
        return f"{words} Told apart so far: {100 * rate.share:.0f}% of {votes.describe(100 * rate.share, rate.votes)}."


def picture_digest(request: AskRequest) -> str:
    """What identifies the picture that is asked about. Raises UserError if it is gone."""
    try:
        return hashlib.sha256(request.image.read_bytes()).hexdigest()
    except OSError:
        raise UserError("The picture is no longer there: give it again.") from None


def is_about(asked: Any, request: AskRequest) -> bool:
    """Whether what was asked under names, a request or something that has one, is this question."""
    asked = getattr(asked, "request", asked)
    fields = ("model", "image", "question")
    return isinstance(asked, AskRequest) and all(getattr(asked, name) == getattr(request, name) for name in fields)


def blind_html(blind: Blind, *, waiting: bool | None = None) -> str:
    """The two answers: on their way, without names, or revealed. While one is on its way nothing of the other shows."""
    if waiting is None:
        waiting = any(side.state in ("status", "token") for side in blind.sides)
    failed = [] if waiting else [side for side in blind.sides if side.state == "error"]
    line = f'<p class="wait">{escape(_waiting_line(blind))}<i></i></p>' if waiting else ""
    if failed:
        line = f'<p class="sorry">No vote: {escape(_failure(failed))}</p>'
    elif blind.outcome:
        line = f'<p><b class="verdict">{escape(blind.outcome)}</b> {escape(blind.counted)}</p>'
    elif not waiting:
        line = "<p>Which answer is the quantized model's?</p>"
    cards = "".join(_card(blind, letter, shown=not waiting and not failed) for letter in LETTERS)
    return (
        f'<section class="unnamed" aria-busy="{str(waiting).lower()}"><p class="hint">{escape(blind.request.question)}'
        f'</p><div class="line" role="status">{line}</div><div class="pair">{cards}</div>{_unsure(blind)}</section>'
    )


def _waiting_line(blind: Blind) -> str:
    """What the side that is furthest behind waits for; a surprise's setting isn't named."""
    messages = [side.message for side in blind.sides if side.state == "status"]
    message = messages[-1] if messages else "Answering"
    return message.replace(blind.setting.label, "the quantized model") if blind.hidden else message


def _failure(failed: list[Side]) -> str:
    problems = [f"{side.setting.label}: {side.message}" for side in failed if side.message != "Stopped."]
    return " ".join(problems) or "stopped before both answers were there."


def _card(blind: Blind, letter: str, *, shown: bool) -> str:
    side = blind.sides[blind.order[LETTERS.index(letter)]]
    # Words alone: that an answer was computed before, or took long, would give it away.
    waits = _HINT if not any(side.state == "error" for side in blind.sides) else '<p class="hint">No answer.</p>'
    body = answer_html(Side(side.setting, "done", text=side.text)) if shown else waits
    name, costs, button = "", "", ""
    if shown and blind.outcome:
        name = f"<span>{escape(side.setting.label)}</span>{bit_bar(side.setting.w_bits)}"
        costs = costs_html(side.stats)
    elif shown and blind.open:
        button = f'<button type="button" data-vote="{letter}">{letter} is quantized</button>'
    return (
        f'<article class="answer" aria-label="Answer {letter}"><header><b>{letter}</b>{name}</header>{costs}'
        f'<div class="said"><div>{body}</div></div>{button}</article>'
    )


def _unsure(blind: Blind) -> str:
    """The vote of those who can't tell."""
    if not blind.open:
        return ""
    return (
        f'<p class="unsure"><button type="button" data-vote="{UNSURE}">I can\'t tell</button>'
        "<small>Counts as half a right vote, which is what a guess is worth on average.</small></p>"
    )
