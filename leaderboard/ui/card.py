"""The provenance card of the open row, the bar of pinned rows, and the notice about unreadable runs, as HTML."""

from __future__ import annotations

from html import escape
from itertools import groupby

import numpy as np

from leaderboard import figures, quality, votes
from leaderboard.boards import Boards
from leaderboard.provenance import Number, Provenance, provenance_of
from leaderboard.store import Problem
from leaderboard.ui.chart import chart
from leaderboard.ui.table import bit_bar
from leaderboard.view import PageView, find_row
from quant_engine import notation


def open_card(boards: Boards, view: PageView) -> str:
    """The card of the view's open row; nothing if none is open, or if it is gone."""
    board = boards.current()
    index = find_row(board, view.row) if view.row else None
    if index is None:
        return ""
    pinned = view.row in view.pins
    return card_html(provenance_of(board, index, boards.notes), pinned=pinned, w_bits=board.rows["w_bits"].iloc[index])


def card_html(provenance: Provenance, *, pinned: bool, w_bits: float) -> str:
    """Everything about one row, in a panel that can be closed."""
    groups = "".join(
        f"<tbody><tr><th colspan=3 scope=rowgroup>{escape(group)}</th></tr>{''.join(map(_number_row, numbers))}</tbody>"
        for group, numbers in groupby(provenance.numbers, key=lambda number: number.group)
    )
    about = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in provenance.about)
    title, key = escape(provenance.title), escape(provenance.key)
    return (
        f'<article class="card" role="region" aria-label="Where the numbers of {title} come from" '
        f'data-row="{key}"><header><div><h2>{title}</h2>{bit_bar(w_bits)}</div>'
        '<button type="button" class="close" data-close aria-label="Close">✕</button>'
        f"<p>{escape(provenance.model)} · {_source(provenance)}</p><p>{escape(provenance.stored)}</p></header>"
        f'<div class="actions"><button type="button" data-pin="{key}" aria-pressed="{str(pinned).lower()}">'
        f"{'Unpin' if pinned else 'Pin to compare'}</button>{_run_buttons(provenance)}"
        '<button type="button" data-link>Copy link</button></div><div class="scroller" tabindex="0">'
        f"<table>{groups}</table><dl>{about}</dl>{_command(provenance)}</div></article>"
    )


def pinned_rows(boards: Boards, keys: tuple[str, ...]) -> str:
    """The pinned rows that there are, and how they compare task by task; nothing if there are none."""
    board = boards.current()
    rows = {key: index for key in keys if (index := find_row(board, key)) is not None}
    if not rows:
        return ""
    indices = list(rows.values())
    titles = [_pin_title(board.rows.iloc[index].to_dict(), with_model=len(rows) > 1) for index in indices]
    chips = "".join(
        f'<span>{escape(title)}<button type="button" data-pin="{escape(key)}" aria-label="Unpin {escape(title)}">✕'
        "</button></span>"
        for key, title in zip(rows, titles, strict=True)
    )
    figure = '<p class="hint">Pin another row to compare the two.</p>'
    if len(rows) > 1:
        columns, percents = quality.score_percents(board, np.array(indices))
        figure = chart(lambda: figures.dumbbells(titles, columns, percents), "Pinned settings")
    return f'<div class="pinned"><div class="chips"><b>Pinned</b>{chips}</div>{figure}</div>'


def problems_html(problems: tuple[Problem, ...], of_votes: str = "", of_sharing: str = "") -> str:
    """The run folders that were left out, by name and with the reason; and why blind votes and shared results are, if
    they are."""
    notices = []
    if problems:
        items = "".join(f"<li>{escape(problem.reason)}</li>" for problem in problems)
        count = "1 run folder is" if len(problems) == 1 else f"{len(problems)} run folders are"
        notices.append(f"<b>{count} left out.</b><ul>{items}</ul>")
    if of_votes:
        notices.append(f"<b>Blind votes are left out.</b> {escape(of_votes)}")
    if of_sharing:
        notices.append(f"<b>Results are not shared at present.</b> {escape(of_sharing)}")
    return "".join(f'<div class="notice" role="alert">{notice}</div>' for notice in notices)


def _number_row(number: Number) -> str:
    note = f"<em>{escape(number.note)}</em>" if number.note else ""
    return (
        f'<tr><td>{escape(number.title)}</td><td class="n">{escape(number.text)} <small>{escape(number.error)}</small>'
        f"</td><td>{escape(number.source)}{note}</td></tr>"
    )


def _pin_title(row: dict, *, with_model: bool) -> str:
    setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
    mark = " (measured)" if row["source"] == "measured" else ""
    return f"{setting}{mark} · {row['model']}" if with_model else f"{setting}{mark}"


def _source(provenance: Provenance) -> str:
    if provenance.run_id:
        return f"measured, run <code>{escape(provenance.run_id)}</code>"
    return "blind votes alone" if provenance.source == votes.SOURCE else "from the study"


def _run_buttons(provenance: Provenance) -> str:
    again = "Run this setting again" if provenance.run_id else "Run this setting"
    key = escape(provenance.key)
    buttons = f'<button type="button" data-again="{key}">{again}</button>' if provenance.offered else ""
    if provenance.run_id:
        buttons += f'<button type="button" data-folder="{escape(provenance.run_id)}">Download run</button>'
    return buttons


def _command(provenance: Provenance) -> str:
    if not provenance.command:
        return '<p class="hint">The engine here has no such method or model, so there is no command for it.</p>'
    what = "The command that makes it again" if provenance.run_id else "The command that measures this setting here"
    command = escape(provenance.command)
    return f'<h3>{what}</h3><pre>{command}</pre><button type="button" data-copy="{command}">Copy command</button>'
