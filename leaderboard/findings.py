"""What the measurements say of the study's claims: for each its rule, both sides' numbers, and a verdict.

    python -m leaderboard.findings     the findings as Markdown, as the README has them

Every number comes from the store. A rule is a comparison with a limit that the study's own numbers keep to; ours agree
where their whole intervals keep to it, disagree where one lies wholly beyond it, and else can't tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from leaderboard import plot
from leaderboard.analysis import Board, Query, arrange
from leaderboard.columns import COMMONSENSE
from leaderboard.evidence import FP16, TEXT, Amount, NotMeasured, Setting, Side, every
from leaderboard.plot import Figure
from leaderboard.store import Store
from leaderboard.view import FIRST_MODEL, PageView, address

Verdict = Literal["agrees", "disagrees", "can't tell", "not measured yet"]
OURS = ("SmolLM2-135M", "Demo LLaVA-NeXT")
STUDY = (FIRST_MODEL, "LLaVA-Next-8B")
ROUNDED = ("RTN", "GPTQ", "AWQ")
NEARLY, LOSSLESS, COLLAPSE, DEPENDS, HIDDEN = 2.0, 1.0, 10.0, 1.5, 0.1
"""Points of mean accuracy that "nearly lossless" and "lossless" allow to lose; how many times FP16's perplexity is a
collapse; how many times another's is a difference of methods; bits that are more than rounding."""
_PLURAL = {verdict: verdict.removesuffix("s") for verdict in get_args(Verdict)}
Judged = tuple[list[Amount], bool | None]


@dataclass(frozen=True)
class Claim:
    """A claim of the study with the rule that it is judged by. `judge` gives a side's numbers and whether they keep to
    the rule; it raises NotMeasured where one is missing. `limit` is drawn into the chart."""

    key: str
    claim: str
    rule: str
    axis: str
    limit: float
    judge: Callable[[Side], Judged]
    methods: tuple[str, ...]
    bits: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """A claim with what both sides say. `link` is the address of our rows, `protocol` how the two were measured."""

    claim: Claim
    verdict: Verdict
    sentence: str
    protocol: str
    study: list[Amount]
    ours: list[Amount]
    figure: Figure
    link: str


def _four_bits(side: Side) -> Judged:
    amounts = [side.accuracy(Setting(method, 4, grouped=True)) for method in ("GPTQ", "AWQ")]
    return amounts, every(amount.above(-NEARLY) for amount in amounts)


def _three_bits(side: Side) -> Judged:
    plain = Setting("RTN", 3, grouped=True)
    amounts = [side.perplexity(plain, Setting(method, 3, grouped=True)) for method in ("GPTQ", "AWQ")]
    return amounts, every(amount.above(DEPENDS) for amount in amounts)


def _two_bits(side: Side) -> Judged:
    amounts = [side.perplexity(Setting(method, 2, grouped=True)) for method in ROUNDED]
    return amounts, every(amount.above(COLLAPSE) for amount in amounts)


def _ultra_low(side: Side) -> Judged:
    special = [Setting("BiLLM", 1.1, grouped=True), Setting("PB-LLM", 1.7, grouped=True)]
    amounts = [
        side.perplexity(setting, Setting(method, 2, grouped=True)) for setting in special for method in ("RTN", "GPTQ")
    ]
    return amounts, every(amount.below(1) for amount in amounts)


def _activations_of_8_bits(side: Side) -> Judged:
    amount = side.accuracy(Setting("SmoothQuant", 8, 8))
    return [amount], amount.above(-LOSSLESS)


def _activations_of_4_bits(side: Side) -> Judged:
    amount = side.perplexity(Setting("SmoothQuant", 4, 4))
    return [amount], amount.above(COLLAPSE)


def _fine_tuning(side: Side) -> Judged:
    amounts = [side.accuracy(Setting(method, 4), "lora_ft") for method in ("QLoRA", "IR-QLoRA")]
    return amounts, every(amount.below(0) for amount in amounts)


def _language_after_pictures(side: Side) -> Judged:
    amount = side.language_after_pictures()
    return [amount], amount.above(1)


def _stored_bits(side: Side) -> Judged:
    settings = [Setting("RTN", 2, grouped=True), Setting("PB-LLM", 1.7, grouped=True)]
    amounts = [side.hidden_bits(setting) for setting in (*settings, Setting("BiLLM", 1.1, grouped=True))]
    return amounts, every(amount.above(HIDDEN) for amount in amounts)


ACCURACY, TIMES, OTHER = "points of accuracy above FP16", "× FP16's perplexity", "× the other method's perplexity"
CLAIMS = (
    Claim(
        "four-bits", "4 bits are nearly lossless.",
        f"GPTQ and AWQ at 4 bits in groups lose at most {NEARLY:g} points of mean accuracy on five zero-shot tasks.",
        ACCURACY, -NEARLY, _four_bits, ("GPTQ", "AWQ"), (4.0,),
    ),
    Claim(
        "three-bits", "At 3 bits it is the method that decides.",
        f"At 3 bits in groups RTN's perplexity is more than {DEPENDS:g} times that of GPTQ and of AWQ.",
        OTHER, DEPENDS, _three_bits, ROUNDED, (3.0,),
    ),
    Claim(
        "two-bits", "2 bits collapse without a method that is made for them.",
        f"RTN, GPTQ and AWQ at 2 bits in groups have more than {COLLAPSE:g} times FP16's perplexity.",
        TIMES, COLLAPSE, _two_bits, ROUNDED, (2.0,),
    ),
    Claim(
        "ultra-low", "Methods for the lowest widths hold on where others have collapsed.",
        "BiLLM at 1.1 bits and PB-LLM at 1.7 have a lower perplexity than RTN and GPTQ at 2 bits in groups.",
        OTHER, 1.0, _ultra_low, ("BiLLM", "PB-LLM", "RTN", "GPTQ"),
        (2.0, 1.7, 1.1),
    ),
    Claim(
        "w8a8", "8 bits for weights and activations are lossless.",
        f"SmoothQuant W8A8 loses at most {LOSSLESS:g} point of the mean accuracy on five zero-shot tasks.",
        ACCURACY, -LOSSLESS, _activations_of_8_bits, ("SmoothQuant",), (8.0,),
    ),
    Claim(
        "w4a4", "4 bits for weights and activations collapse.",
        f"SmoothQuant W4A4 has more than {COLLAPSE:g} times FP16's perplexity.",
        TIMES, COLLAPSE, _activations_of_4_bits, ("SmoothQuant",), (4.0,),
    ),
    Claim(
        "fine-tuning", "Fine-tuning with low-rank adapters does not make up for the loss.",
        "QLoRA and IR-QLoRA at 4 bits have a lower mean accuracy on five zero-shot tasks than FP16.",
        ACCURACY, 0.0, _fine_tuning, ("QLoRA", "IR-QLoRA"), (4.0,),
    ),
    Claim(
        "language", "A model that has learnt to see is worse at language.",
        "Unquantized, the multimodal model's perplexity on WikiText-2 is above that of the language model in it.",
        "× the language model's perplexity", 1.0, _language_after_pictures, ("FP16",), (16.0,),
    ),
    Claim(
        "stored-bits", "The bits in a name are not those that are stored.",
        f"RTN at 2 bits in groups, PB-LLM at 1.7 and BiLLM at 1.1 store over {HIDDEN:g} bits a weight more than named.",
        "bits a weight beyond the name", HIDDEN, _stored_bits, ("RTN", "PB-LLM", "BiLLM"), (2.0, 1.7, 1.1),
    ),
)  # fmt: skip


def findings(board: Board) -> list[Finding]:
    """Every claim with what both sides say."""
    study, ours = Side(board, "paper", *STUDY), Side(board, "measured", *OURS)
    return [_finding(claim, study, ours) for claim in CLAIMS]


def _finding(claim: Claim, study: Side, ours: Side) -> Finding:
    printed, _ = claim.judge(study)
    try:
        amounts, holds = claim.judge(ours)
        verdict: Verdict = {True: "agrees", False: "disagrees", None: "can't tell"}[holds]
        here = f"Here: {_listed(amounts)}."
    except NotMeasured as missing:
        amounts, verdict = [], "not measured yet"
        here = f"Not measured here yet: {missing}."
    sentence = f"The study: {_listed(printed)}. {here}"
    language, multimodal = OURS
    model = multimodal if claim.key == "language" else language
    query = Query(model=model, methods=claim.methods, bits=claim.bits, sources=("measured",))
    return Finding(
        claim, verdict, sentence, _protocol(ours) if amounts else "", printed, amounts,
        _figure(claim, sentence, printed, amounts), address(PageView(query=query)),
    )  # fmt: skip


def _listed(amounts: Sequence[Amount]) -> str:
    return "; ".join(f"{amount.label} {amount.text}" for amount in amounts)


def _protocol(ours: Side) -> str:
    """How our numbers and the study's were measured, in a sentence."""
    language, _ = OURS
    try:
        text = ours.protocol(ours.row(language, FP16, (TEXT,)), TEXT)
    except NotMeasured:
        return ""
    words = f"Here {language}, perplexity on {text['items']:g} windows of {text['window']:,.0f} tokens"
    try:
        questions = ours.protocol(ours.row(language, FP16, COMMONSENSE), COMMONSENSE[0])
        words += f", accuracy on {questions['items']:g} questions a task"
    except NotMeasured:
        pass
    return f"{words}; the study {FIRST_MODEL}, on whole test sets and windows of 2,048 tokens."


def _figure(claim: Claim, sentence: str, study: Sequence[Amount], ours: Sequence[Amount]) -> Figure:
    """Both sides' numbers with their intervals, a line each, and the rule's limit."""
    data, table = [], []
    for name, amounts, symbol, color in (
        ("the study", study, "diamond-open", "var(--quiet)"),
        ("here", ours, "circle", "var(--ink)"),
    ):
        drawn = [amount for amount in amounts if math.isfinite(amount.value)]
        table += [
            {"setting": amount.label, "of": name, claim.axis: amount.text, "limit": claim.limit} for amount in amounts
        ]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": name, "x": [amount.value for amount in drawn],
                "y": [amount.label for amount in drawn], "text": [amount.text for amount in drawn],
                "hovertemplate": f"%{{y}}, {name}: %{{text}}<extra></extra>",
                "error_x": {
                    "type": "data", "symmetric": False, "array": [a.high - a.value for a in drawn],
                    "arrayminus": [a.value - a.low for a in drawn], "color": color,
                },
                "marker": {"symbol": symbol, "size": 10, "color": color},
            }
        )  # fmt: skip
    axis = plot.axis(claim.axis)
    if any(amount.unit == "times" for amount in study):
        ends = [end for a in (*study, *ours) for end in (a.low, a.high) if math.isfinite(end)]
        lowest, highest = min(*ends, claim.limit), max(*ends, claim.limit)
        axis |= plot.log_scale(lowest, highest) if highest > 5 * lowest else {}
    layout = {
        "xaxis": axis,
        "yaxis": plot.names_axis(),
        "shapes": [plot.level(claim.limit, vertical=True)],
        "height": 170 + 34 * len({amount.label for amount in (*study, *ours)}),
    }
    return Figure(f"finding-{claim.key}", claim.claim, sentence, data, layout, pd.DataFrame(table))


def markdown(found: Sequence[Finding]) -> str:
    """The findings as a table, as the README has it."""
    lines = ["| The study's claim | Here | Numbers |", "| --- | --- | --- |"]
    lines += [f"| {each.claim.claim} | {each.verdict} | {each.sentence} |" for each in found]
    return "\n".join(lines)


def count(found: Sequence[Finding]) -> str:
    """How many claims hold here, in a sentence."""
    verdicts = [each.verdict for each in found]
    numbers = [(name, verdicts.count(name)) for name in _PLURAL if name in verdicts]
    words = [f"{number} {name if number == 1 else _PLURAL[name]}" for name, number in numbers]
    return f"Of {len(found)} claims of the study: {', '.join(words)}."


def main() -> None:
    found = findings(arrange(Store().snapshot().frame))
    print(f"{count(found)} {next((each.protocol for each in found if each.protocol), '')}\n\n{markdown(found)}")


if __name__ == "__main__":
    main()
