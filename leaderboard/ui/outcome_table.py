"""The numbers of a finished run as a small table: with intervals, against FP16, and where the study's lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from leaderboard import against_fp16
from leaderboard.run_outcome import Outcome, RunNumber, StudyNumber, measures_fp16
from quant_engine import notation
from quant_engine.runs.paired import Comparison

_MARGIN = 0.06
"""The part of a strip's width that stays free at either end."""


def outcome_html(outcome: Outcome) -> str:
    """The table, without columns that would be empty, and remarks on what they can't be compared with."""
    numbers = outcome.numbers
    with_fp16 = any(number.fp16 for number in numbers)
    with_study = any(number.study for number in numbers)
    heads = ["", "This run", *(["FP16 here", "Difference to FP16"] if with_fp16 else [])]
    heads += [*(["The study"] if with_study else []), *(["On one scale"] if with_fp16 or with_study else [])]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(_row(number, with_fp16, with_study) for number in numbers)
    marks = "<span><i class='mark fp16'></i>FP16</span>" * with_fp16
    marks += "<span><i class='mark study'></i>the study</span>" * with_study
    own = "<span><i class='mark own'></i>this run with its 95% interval</span>"
    legend = (
        f'<p class="legend">{own}{marks}</p>' if marks else "<p>The interval is one of 95%, for items drawn anew.</p>"
    )
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in outcome.remarks)
    return (
        '<section class="outcome" aria-label="What the numbers say"><h3>What the numbers say</h3>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{legend}{remarks}</section>"
    )


def _row(number: RunNumber, with_fp16: bool, with_study: bool) -> str:
    column = number.column
    cells = f'<th scope="row">{escape(column.title)} {column.arrow}</th>{_own(number)}'
    if with_fp16:
        cells += _fp16(number) + _difference(number)
    if with_study:
        cells += _study(number)
    return f"<tr>{cells}{_strip(number) if with_fp16 or with_study else ''}</tr>"


def _cell(label: str, text: str, small: str = "", css: str = "", style: str = "") -> str:
    """A cell; narrow pages show its label before it."""
    attributes = (f' class="{css}"' if css else "") + (f' style="{style}"' if style else "")
    below = f"<small>{escape(small)}</small>" if small else ""
    return f'<td{attributes} data-label="{label}"><b>{escape(text)}</b>{below}</td>'


def _own(number: RunNumber) -> str:
    count = f"{number.items} {number.counted if number.items != 1 else number.counted.removesuffix('s')}"
    if number.collapsed:
        value = "" if number.value is None else f"{number.text(number.value)}, "
        return _cell("This run", "collapsed", value + count, "collapsed")
    text = "·" if number.value is None else number.text(number.value)
    if number.interval is None:
        return _cell("This run", text, count)
    return _cell("This run", text, f"{_between(number.text, *number.interval)}, {count}")


def _fp16(number: RunNumber) -> str:
    if number.fp16 is None:
        return _cell("FP16 here", "·", css="none")
    fewer = number.fp16.units < number.items
    return _cell("FP16 here", number.text(number.fp16.a), f"of {number.fp16.units} of them" if fewer else "")


def _difference(number: RunNumber) -> str:
    """The paired difference. It has a colour only if it is more than chance."""
    pair, label = number.fp16, "Difference to FP16"
    if pair is None:
        by_itself = "measured against FP16 itself" if measures_fp16(number.column.task) else ""
        return _cell(label, "·", by_itself, "" if by_itself else "none")
    if number.collapsed:
        return _cell(label, "collapsed", css="collapsed")

    def signed(value: float) -> str:
        return notation.difference(number.text(value))

    interval = "" if math.isnan(pair.low) else f"{_between(signed, pair.low, pair.high)}, "
    if not pair.separable:
        return _cell(label, signed(pair.difference), interval + _chance(pair))
    better = (pair.difference > 0) == pair.higher_is_better
    shade = abs(float(against_fp16.shade(pair.b, pair.a, not pair.higher_is_better)))
    words = f"{interval}{'better' if better else 'worse'}, more than chance"
    return _cell(label, signed(pair.difference), words, "gained" if better else "lost", f"--s:{shade:.3f}")


def _chance(pair: Comparison) -> str:
    """Why a difference may be chance, where its interval doesn't say it."""
    if pair.difference == pair.low == pair.high == 0:
        return "no item differs"
    leaves_out_zero = pair.low > 0 or pair.high < 0
    return f"may be chance (p {pair.p:.2g})" if leaves_out_zero and pair.p is not None else "may be chance"


def _study(number: RunNumber) -> str:
    study, label = number.study, "The study"
    if study is None:
        return _cell(label, "·", css="none")
    if study.value is None:
        return _cell(label, "collapsed", "as here" if number.collapsed else study.caveat, "collapsed")
    where = f"{study.where} our interval" if study.where else ""
    return _cell(label, number.column.text(study.value, measured=False), "; ".join(filter(None, [where, study.caveat])))


def _strip(number: RunNumber) -> str:
    """Our interval, FP16 and the study's number on one line."""
    fp16 = None if number.fp16 is None else number.fp16.a
    study = _comparable(number.study)
    if number.collapsed or number.interval is None or number.value is None:
        return "<td></td>"
    points = [number.value, *number.interval, *(value for value in (fp16, study) if value is not None)]
    position_of = _scale(points, ratios=number.column.better == "lower" and min(points) > 0)
    low, high = map(position_of, number.interval)
    marks = f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    for name, value in (("fp16", fp16), ("study", study), ("own", number.value)):
        if value is not None:
            marks += f'<i class="mark {name}" style="left:{position_of(value):.1f}%"></i>'
    return f'<td class="strip" aria-hidden="true"><span>{marks}</span></td>'


def _comparable(study: StudyNumber | None) -> float | None:
    return study.value if study and study.where else None


def _scale(points: list[float], *, ratios: bool) -> Callable[[float], float]:
    """From values to percents of a strip's width; by their ratios for perplexities."""
    of = math.log if ratios else float
    least, most = of(min(points)), of(max(points))

    def position(value: float) -> float:
        share = (of(value) - least) / (most - least) if most > least else 0.5
        return 100 * (_MARGIN + (1 - 2 * _MARGIN) * share)

    return position


def _between(text: Callable[[float], str], low: float, high: float) -> str:
    return f"{text(low)} to {text(high)}"
