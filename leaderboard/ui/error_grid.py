"""The error of each linear as a grid of coloured cells, light enough to be drawn again each second."""

from __future__ import annotations

import math
import statistics
from html import escape

from leaderboard.error_map import ErrorMap

LEAST_SHADE = 0.06
"""The smallest error is not quite as pale as a cell that is empty."""
PALEST = 0.05
"""The share of the errors that may be smaller than the scale begins."""
LABELLED_BLOCKS = (1, 2, 5, 10, 20)
MOST_LABELS = 8
_STEPS = (1.0, 3.0)


def grid_html(errors: ErrorMap) -> str:
    """The grid with its finding and its legend."""
    low, high = _scale(errors)
    rows = "".join(
        f'<tr><th scope="row">{escape(_short(linear))}</th>'
        f"{''.join(_cell(errors, block, linear, low, high) for block in range(errors.blocks))}</tr>"
        for linear in errors.linears
    )
    dense = " dense" if errors.blocks > 48 else ""
    return (
        f'<section class="error-map{dense}" aria-label="Error by layer"><h3>Error by layer</h3>'
        f"<p>{escape(_finding(errors))}</p><table><tbody>{rows}</tbody><tfoot>{_axis(errors.blocks)}</tfoot></table>"
        f"{_legend(errors, low, high)}</section>"
    )


def _cell(errors: ErrorMap, block: int, linear: str, low: float, high: float) -> str:
    key = (block, linear)
    name = f"block {block}, {escape(linear)}"
    kinds = ["now"] if errors.working and errors.working in (key, (block, None)) else []
    if key in errors.errors:
        error, bits = errors.errors[key], errors.bits.get(key)
        stored = "" if bits is None else f", {bits:.2f} bits stored"
        title = f"{name}: {errors.what} {_percent(error)}{stored}"
        style = f' style="--s:{_shade(error, low, high):.2f}"'
        kinds.append("known")
    elif key in errors.bits:
        title, style = f"{name}: {errors.bits[key]:.2f} bits stored, its error is measured afterwards", ""
        kinds.append("stored")
    else:
        title, style = f"{name}: {'in work' if kinds else 'not yet'}", ""
    css = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<td{css}{style} title="{title}"></td>'


def _axis(blocks: int) -> str:
    """Block numbers below the columns, as many as there is room for."""
    step = next((step for step in LABELLED_BLOCKS if blocks / step <= MOST_LABELS), LABELLED_BLOCKS[-1])
    labels = "".join(f"<td colspan={min(step, blocks - start)}>{start}</td>" for start in range(0, blocks, step))
    return f'<tr><th scope="row">block</th>{labels}</tr>'


def _finding(errors: ErrorMap) -> str:
    finished = errors.finished_blocks
    verb = "is" if finished == 1 else "are"
    count = f"{finished} of {errors.blocks} blocks {verb} quantized" if finished < errors.blocks else ""
    if not errors.errors:
        when = "when all are" if count else "now"
        later = f"what their linears lose is measured {when}" if errors.bits else ""
        return "; ".join(filter(None, [count or f"All {errors.blocks} blocks are quantized", later])) + "."
    (block, linear), worst = max(errors.errors.items(), key=lambda pair: pair[1])
    median = _percent(statistics.median(errors.errors.values()))
    largest = f"the largest {errors.what} is {_percent(worst)} in block {block}, {linear}, the median {median}"
    text = "; ".join(filter(None, [count, largest]))
    return f"{text[0].upper()}{text[1:]}."


def _legend(errors: ErrorMap, low: float, high: float) -> str:
    parts = []
    if errors.errors:
        what = f"relative {errors.what}: squared change over the original's, log scale"
        least = "≤\N{NO-BREAK SPACE}" if min(errors.errors.values()) < low else ""
        parts.append(f'{least}{_percent(low)}<i class="ramp"></i>{_percent(high)}<em>{escape(what)}</em>')
    if errors.bits.keys() - errors.errors.keys():
        parts.append('<i class="key stored"></i>quantized')
    if errors.finished_blocks < errors.blocks:
        parts.append('<i class="key"></i>not yet')
    if errors.working:
        parts.append('<i class="key now"></i>in work')
    return f'<p class="legend">{"".join(f"<span>{part}</span>" for part in parts)}</p>'


def _scale(errors: ErrorMap) -> tuple[float, float]:
    """The errors that have the palest and the full colour: 1 or 3 times a power of ten, so that they seldom change. The
    few smallest do not stretch the scale: they are as pale as the first of the others."""
    positive = sorted(error for error in errors.errors.values() if error > 0 and math.isfinite(error))
    if not positive:
        return 0.001, 0.1
    low, high = _round(positive[int(PALEST * len(positive))], up=False), _round(positive[-1], up=True)
    return low, high if high > low else 10 * low


def _round(error: float, *, up: bool) -> float:
    """The next 1 or 3 times a power of ten that is not below (above) the error."""
    power = 10.0 ** math.floor(math.log10(error))
    steps = [step * power for step in (*_STEPS, 10.0)]
    close = 1 + 1e-9
    return next(s for s in steps if s * close >= error) if up else next(s for s in steps[::-1] if s <= error * close)


def _shade(error: float, low: float, high: float) -> float:
    if not math.isfinite(error):
        return 1.0
    if error <= 0:
        return LEAST_SHADE
    share = math.log(min(error, high) / low) / math.log(high / low)
    return LEAST_SHADE + (1 - LEAST_SHADE) * min(max(share, 0.0), 1.0)


def _percent(error: float) -> str:
    return f"{100 * error:.2g}%" if error < 0.995 else f"{100 * error:.0f}%"


def _short(linear: str) -> str:
    return linear.removesuffix("_proj")
