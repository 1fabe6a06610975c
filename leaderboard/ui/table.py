"""A view as an HTML table: grouped sticky headers that sort, heat against FP16, every odd cell explained."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import groupby

import numpy as np

from leaderboard import orders, votes
from leaderboard.analysis import Cell, View, compared_columns, descends
from leaderboard.columns import Column
from leaderboard.ranks import Ranking
from leaderboard.store import Notes, note_on
from leaderboard.view import row_key
from quant_engine import notation

MOST_ROWS = 400
WHERE = {"paper": "the study", votes.SOURCE: "blind votes on this machine: nothing else was measured of this setting"}
"""Where rows come from that are not of runs, by their source."""
_WORDS = {
    Cell.MISSING: "Not reported.",
    Cell.COMPUTED: "Mean of the five tasks, computed here; the source gives none.",
    Cell.COLLAPSED: "Collapsed: the output is of no use.",
    Cell.NO_REFERENCE: "There is no FP16 number of this source and these conditions to compare with.",
}
_KINDS = {Cell.MISSING: "missing", Cell.COMPUTED: "computed", Cell.COLLAPSED: "collapsed", Cell.NO_REFERENCE: "missing"}
_EXPORTS = (
    '<p class="exports"><span>Export</span>'
    + "".join(
        f'<button type="button" data-format="{form}">{name}</button>'
        for form, name in (
            ("csv", "CSV"), ("json", "JSON"), ("parquet", "Parquet"), ("md", "Markdown"), ("tex", "LaTeX"),
            ("bib", "BibTeX"),
        )
    )
    + '<button type="button" data-link>Copy link</button></p>'
)  # fmt: skip
_FIELDS = (
    ("method", "Method", "k1"),
    ("w_bits", "Bits", "k2"),
    ("group_size", "Group", "k3"),
    ("source", "Source", "k4"),
)


@dataclass
class _Sheet:
    """What the rows are written from. `marked` numbers the notes in the order in which their cells come."""

    view: View
    notes: Notes
    origins: dict[int, str]
    with_model: bool
    ranking: Ranking | None
    marked: dict[str, int] = field(default_factory=dict)


def results_html(view: View, notes: Notes, total: int, ranking: Ranking | None = None) -> str:
    """A view as HTML, at most MOST_ROWS rows, and it says so.

    Args:
        view: The rows and columns to show.
        notes: The study's, of which those on shown cells are listed below.
        total: How many rows there are without a filter.
        ranking: Ranks, which have a column if there are any.
    """
    if not len(view.rows):
        empty = '<div class="empty"><b>No setting matches.</b> Clear a filter or the search.</div>'
        return _summary(view, total) + empty
    ranking = ranking if ranking and ranking.ranks.any() else None
    sheet = _Sheet(view, notes, _origins(view), view.query.model is None, ranking)
    count = min(len(view.rows), MOST_ROWS)
    body = "".join(_row(sheet, index, row) for index, row in enumerate(view.rows.head(count).to_dict("records")))
    rest = (
        f'<p class="more">The first {count} of {len(view.rows):,} rows. Filter or search to see others.</p>'
        if count < len(view.rows)
        else ""
    )
    kind = " ".join(["board", *["several"] * sheet.with_model, *["ranked"] * bool(ranking)])
    return (
        f"{_summary(view, total)}"
        '<div class="scroll" tabindex="0" role="region" aria-label="Results, scrolls in both directions">'
        f'<table class="{kind}"><thead>{_head(sheet)}</thead><tbody>{body}</tbody></table>'
        f"</div>{rest}{_legend(view, ranking)}{_notes(sheet.marked)}"
    )


def bit_bar(bits: float) -> str:
    """Sixteen ticks, as many inked as a weight has bits."""
    return f'<i class="bits" style="--b:{bits:g}" aria-hidden="true"></i>'


def _summary(view: View, total: int) -> str:
    """How much of the table is shown, in one line."""
    count = len(view.rows)
    word = "setting" if total == 1 else "settings"
    what = f"{count:,} {word}" if count == total else f"{count:,} of {total:,} {word}"
    modes = {
        "absolute": "",
        "difference": " · difference to FP16; costs as they are",
        "retained": " · percent of FP16 retained (for perplexity, FP16's over the setting's); costs as they are",
    }
    return f'<div class="above"><p class="summary" role="status">{what}{modes[view.query.mode]}</p>{_EXPORTS}</div>'


def rank_help(ranking: Ranking) -> str:
    """What a rank says, and what a tie."""
    return (
        f"Rank by {ranking.column.title} among the rows shown. A measured row's is 1, and 1 more for each shown run of "
        "the model that is better by more than chance (the same items in pairs: 95% bootstrap interval, and McNemar's "
        "test or random signs) than it or than one above it. So 2= says that rows share rank 2 because "
        "their difference may be chance. Rows of the study come without items: they are ranked by the printed number "
        "alone, where small differences may be chance too. A run without a rank has no items to compare, or was asked "
        "others than most."
    )


def _head(sheet: _Sheet) -> str:
    """Two rows: groups with their direction, then columns that sort."""
    view = sheet.view
    fixed = [("model", "Model", "k0"), *_FIELDS] if sheet.with_model else list(_FIELDS)
    top = "".join(f'<td class="k {kind}"></td>' for _, _, kind in fixed)
    for group, members in groupby(view.columns, key=lambda column: column.group):
        columns = list(members)
        arrow = f" <span>{columns[0].arrow}</span>" if columns[0].compared else ""
        top += f'<th class="group" colspan="{len(columns)}" scope="colgroup"><div>{group}{arrow}</div></th>'
    cells = [
        _sorter(view, field, title, f"k {kind}", f"Sort by {title.lower()}.", None) for field, title, kind in fixed
    ]
    cells += [_sorter(view, c.task, c.title, _edge(view.columns, i), c.help, c) for i, c in enumerate(view.columns)]
    if sheet.ranking:
        top = f'<td class="k kr"></td>{top}'
        cells.insert(0, f'<th class="k kr" scope="col" title="{escape(rank_help(sheet.ranking))}">Rank</th>')
    return f'<tr class="groups">{top}</tr><tr>{"".join(cells)}</tr>'


def _sorter(view: View, key: str, title: str, kind: str, help_: str, column: Column | None) -> str:
    active, falling = view.query.sort == key, descends(view.query, column)
    state = ("descending" if falling else "ascending") if active else "none"
    mark = ("▾" if falling else "▴") if active else ""
    return (
        f'<th class="{kind}" scope="col" aria-sort="{state}" title="{escape(help_)}">'
        f'<button type="button" data-sort="{escape(key)}">{escape(title)}<s aria-hidden="true">{mark}</s></button></th>'
    )


def _row(sheet: _Sheet, index: int, row: dict) -> str:
    reference, measured = row["w_bits"] == 16, row["source"] == "measured"
    kinds = " ".join(["fp16"] * reference + ["measured"] * measured)
    group = "" if reference else "per row" if np.isnan(row["group_size"]) else f"{row['group_size']:g}"
    short = "16 bit" if reference else f"W{row['w_bits']:g}A{row['a_bits']:g}"
    where = f"run {row['run_id']}" if measured else WHERE[row["source"]]
    marks = [f"{short} {'g' + group if group.isdigit() else group}", "measured" if measured else ""]
    rank = sheet.ranking.text(index) if sheet.ranking else ""
    marks += [f"rank {rank}" if rank else "", escape(row["options"])]
    small = " · ".join(filter(None, [escape(row["model"]) if sheet.with_model else "", *marks]))
    cells = f'<td class="k kr">{rank.replace("=", "<i>=</i>")}</td>' if sheet.ranking else ""
    cells += f'<td class="k k0">{escape(row["model"])}</td>' if sheet.with_model else ""
    key = escape(row_key(row))
    options = f'<em title="{escape(row["options"])}">{escape(row["options"])}</em>' if row["options"] else ""
    cells += (
        f'<th class="k k1" scope="row"><button type="button" class="open">{escape(row["method"])}</button>'
        f'<button type="button" class="pin" data-pin="{key}" aria-label="Pin {escape(row["method"])} {short} {group}" '
        f'title="Pin to compare, or unpin">◇</button><small>{small}</small></th>'
        f'<td class="k k2">{bit_bar(row["w_bits"])}<span>{short}</span></td>'
        f'<td class="k k3">{group}</td>'
        f'<td class="k k4" title="{escape(where)}"><mark class="{row["source"]}">{row["source"]}</mark>{options}</td>'
    )
    for column_index, column in enumerate(sheet.view.columns):
        cells += _cell(sheet, index, column_index, note_on(row, column.task, sheet.notes))
    return f'<tr class="{kinds}" data-row="{key}">{cells}</tr>'


def _cell(sheet: _Sheet, row: int, column: int, note: str) -> str:
    view = sheet.view
    cell, shade = Cell(view.cells[row, column]), view.shade[row, column]
    kinds = [_edge(view.columns, column), _KINDS.get(cell, "")]
    style = ""
    if np.isfinite(shade) and abs(shade) > 0.02 and cell is not Cell.COLLAPSED:
        kinds.append("lost" if shade < 0 else "gained")
        style = f' style="--s:{abs(shade):.2f}"'
    chance = "The difference to FP16 may be chance." if view.chance[row, column] else ""
    sentences = [_WORDS.get(cell, ""), sheet.origins.get(view.origin[row, column], ""), chance]
    sign = ""
    if note:
        sign = f"<sup>{sheet.marked.setdefault(note, len(sheet.marked) + 1)}</sup>"
        sentences.append(note)
    title = escape(" ".join(filter(None, sentences)))
    return f'<td class="{" ".join(filter(None, kinds))}"{style} title="{title}">{view.text(row, column)}{sign}</td>'


def _origins(view: View) -> dict[int, str]:
    """Where each result of the shown rows comes from, in a few words, by the result's number."""
    numbers = np.unique(view.origin[:MOST_ROWS])
    fields = ["source", "table", "run_id", "items", "standard_error", "task", "value", *orders.RANGE]
    results = view.results[fields].iloc[numbers[numbers >= 0]]
    origins = {}
    for number, source, table, run_id, items, error, task, value, *of_orders in results.itertuples():
        if task == votes.TASK:
            origins[number] = f"{value:.1f}% of {votes.describe(value, items)}."
            continue
        sentences = [f"Table {table} of the study."] if source == "paper" else [f"Run {run_id}."]
        sentences += [f"{items:g} items."] if not np.isnan(items) else []
        sentences += [f"Standard error {notation.standard_error(error)}."] if not np.isnan(error) else []
        spread = orders.words(dict(zip(orders.RANGE, of_orders, strict=True)), notation.number)
        sentences += [f"{spread.capitalize()}."] if spread else []
        origins[number] = " ".join(sentences)
    return origins


def _edge(columns: tuple[Column, ...], index: int) -> str:
    """Marks the first column of a group, which gets a rule at its left."""
    return "first" if index == 0 or columns[index].group != columns[index - 1].group else ""


def _legend(view: View, ranking: Ranking | None) -> str:
    states = {Cell(cell) for cell in np.unique(view.cells)}
    scores = compared_columns(view.columns)
    with_number = np.isin(view.cells, (Cell.OK, Cell.COMPUTED)) & scores
    parts = [
        '<span><i class="ramp lost"></i>loses against FP16</span>',
        '<span><i class="ramp gained"></i>gains</span>',
        '<span><i class="swatch collapsed"></i>collapsed</span>' if Cell.COLLAPSED in states else "",
        "<span><b>·</b>not reported</span>" if Cell.MISSING in states else "",
        "<span><b><u>68.6</u></b>computed here</span>" if Cell.COMPUTED in states else "",
    ]
    if (with_number & np.isnan(view.shade)).any():
        parts.append("<span>Unshaded: no FP16 of the same source and conditions to compare with.</span>")
    if view.chance.any():
        parts.append(
            "<span>Measured numbers are shaded where the same items, in pairs, say that the difference to FP16 is more "
            "than chance.</span>"
        )
    if any(column.task == votes.TASK for column in view.columns):
        parts.append(
            "<span>Told apart: the share of blind votes on this machine that named the quantized answer, and how many "
            "there are; 50% is chance.</span>"
        )
    if ranking:
        tie = "<b>2=</b>shared rank: the difference may be chance. " if (ranking.shared & view.measured).any() else ""
        of_study = (view.rows["source"] == "paper").any()
        study = " The study's rows are ranked by the printed number alone." if of_study else ""
        parts.append(f"<span>{tie}Ranks are by {escape(ranking.column.title)}.{study}</span>")
    return f'<p class="legend">{"".join(parts)}</p>'


def _notes(marked: dict[str, int]) -> str:
    if not marked:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in marked)
    return f'<ol class="notes" aria-label="Notes on printed numbers">{items}</ol>'
