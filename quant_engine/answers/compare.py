"""One question to several settings, with all answers at the end: what the command line and programs ask for.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel

from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import MOST_SIDES, AnswerEvent, AskRequest
from quant_engine.answers.parting import parting
from quant_engine.methods import METHODS, resolve_setting
from quant_engine.results import AnswerStats, TokenShift
from quant_engine.spec import QuantSetting, UserError, read_code

SWEEP_BITS = (8, 6, 4, 3, 2)


class SideAnswer(BaseModel):
    """A setting's answer and what it cost; or, in a sentence, its `problem`. `parted` says in words how it parts from
    FP16's, `fork` is the index of the first token of FP16's answer that is not its own first choice, `divergence` the
    mean KL in nats, and `shifts` what it finds of each token: empty where that was not asked."""

    setting: QuantSetting
    text: str = ""
    problem: str = ""
    stats: AnswerStats | None = None
    tokens: tuple[int, ...] = ()
    parted: str = ""
    fork: int | None = None
    divergence: float | None = None
    shifts: tuple[TokenShift, ...] = ()


def read_settings(codes: str) -> tuple[QuantSetting, ...]:
    """The settings of codes with commas between them, such as fp16,gptq-4-g64. Raises UserError for what is none."""
    settings = tuple(resolve_setting(read_code(code)) for code in codes.split(",") if code.strip())
    if not 1 <= len(settings) <= MOST_SIDES:
        raise UserError(f"Name from 1 to {MOST_SIDES} settings, such as fp16,gptq-4-g64.")
    return settings


def sweep_settings(method: str, group_size: int | None) -> tuple[QuantSetting, ...]:
    """FP16, then a method at each of 8, 6, 4, 3 and 2 bits that it is defined for. Raises UserError for no method."""
    name = method.strip().lower()
    if name not in METHODS:
        raise UserError(f"There is no method {method!r}; the methods are: {', '.join(METHODS)}.")
    card = METHODS[name].card
    widths = [bits for bits in SWEEP_BITS if bits in card.bits] or list(card.bits[: MOST_SIDES - 1])
    group = group_size if card.grouped else None
    settings = (QuantSetting(method=name, w_bits=bits, a_bits=card.a_bits[-1], group_size=group) for bits in widths)
    return (QuantSetting(), *map(resolve_setting, settings))


def along_fp16(request: AskRequest, tokens: Sequence[tuple[int, ...]]) -> tuple[AskRequest, list[int]] | None:
    """The question what each quantized side finds of FP16's answer, and which sides of `request` it is asked of; None
    where FP16 or all others have no whole answer. It has the request's id: what stops that stops it.

    `tokens` are those of each side's answer, empty where it is not whole.
    """
    numbers = [number for number, answer in enumerate(tokens) if answer]
    if len(numbers) < 2 or numbers[0] != 0 or request.sides[0].method != "fp16":
        return None
    return request.of(numbers, along=tokens[0]), numbers


def compare(
    service: AnswerService,
    request: AskRequest,
    *,
    divergence: bool,
    watch: Callable[[QuantSetting, AnswerEvent], None] = lambda setting, event: None,
) -> list[SideAnswer]:
    """The answers of all sides of a request, and with `divergence` how they part from FP16's, which is then the first.

    `watch` gets each event as it comes. Raises UserError if answers are to be held against FP16's and it is not there.
    """
    if divergence and request.sides[0].method != "fp16":
        raise UserError("Answers are held against FP16's: name fp16 first among the settings.")
    answers = [SideAnswer(setting=setting) for setting in request.sides]
    for event in service.ask(request):
        answer = answers[event.side]
        watch(answer.setting, event)
        if event.kind in ("done", "error"):
            answer.text, answer.stats, answer.tokens = event.text, event.stats, event.tokens
            answer.problem = event.message if event.kind == "error" else ""
    along = along_fp16(request, [answer.tokens for answer in answers]) if divergence else None
    if along:
        request, numbers = along
        for event in service.ask(request):
            answer = answers[numbers[event.side]]
            watch(answer.setting, event)
            if event.kind == "error":
                answer.problem = event.message
            elif event.kind == "done" and event.side:
                parted = parting(answers[0].text, answer.text, event.shifts)
                answer.shifts, answer.fork = event.shifts, parted.fork
                answer.parted, answer.divergence = parted.words, parted.divergence
    return answers
