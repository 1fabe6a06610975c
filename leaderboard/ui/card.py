"""The provenance card of a row, and the bar of pinned rows, as HTML."""

from __future__ import annotations

from html import escape
from itertools import groupby

from leaderboard.provenance import Provenance
from leaderboard.ui.table import bit_bar


def card(told: Provenance, *, pinned: bool, w_bits: float) -> str:
    """Everything about one row, in a panel that can be closed."""
    groups = "".join(
        f"<tbody><tr><th colspan=3 scope=rowgroup>{escape(group)}</th></tr>"
        + "".join(
            f'<tr><td>{escape(one.title)}</td><td class="n">{escape(one.text)} <small>{escape(one.error)}</small></td>'
            f"<td>{escape(one.source)}{f'<em>{escape(one.note)}</em>' if one.note else ''}</td></tr>"
            for one in members
        )
        + "</tbody>"
        for group, members in groupby(told.numbers, key=lambda one: one.group)
    )
    about = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in told.about)
    return (
        f'<article class="card" role="region" aria-label="Where the numbers of {escape(told.title)} come from" '
        f'data-row="{escape(told.key)}"><header><div><h2>{escape(told.title)}</h2>{bit_bar(w_bits)}</div>'
        '<button type="button" class="close" data-close aria-label="Close">✕</button>'
        f"<p>{escape(told.model)} · {_source(told)}</p><p>{escape(told.stored)}</p></header>"
        f'<div class="actions"><button type="button" data-pin="{escape(told.key)}" '
        f'aria-pressed="{str(pinned).lower()}">'
        f"{'Unpin' if pinned else 'Pin to compare'}</button>{_run_buttons(told)}"
        '<button type="button" data-link>Copy link</button></div>'
        f'<div class="scroller" tabindex="0"><table>{groups}</table><dl>{about}</dl>{_command(told)}</div></article>'
    )


def pins(titles: list[tuple[str, str]], figure: str) -> str:
    """The pinned rows, (key, title) each, and the figure that compares them; nothing if none is pinned."""
    if not titles:
        return ""
    chips = "".join(
        f'<span>{escape(title)}<button type="button" data-pin="{escape(key)}" aria-label="Unpin {escape(title)}">✕'
        "</button></span>"
        for key, title in titles
    )
    more = figure if len(titles) > 1 else '<p class="hint">Pin another row to compare the two.</p>'
    return f'<div class="pinned"><div class="chips"><b>Pinned</b>{chips}</div>{more}</div>'


def _source(told: Provenance) -> str:
    return f"measured, run <code>{escape(told.run_id)}</code>" if told.run_id else "from the study"


def _run_buttons(told: Provenance) -> str:
    again = "Run this setting again" if told.run_id else "Run this setting"
    buttons = f'<button type="button" data-again="{escape(told.key)}">{again}</button>' if told.offered else ""
    if told.run_id:
        buttons += f'<button type="button" data-folder="{escape(told.run_id)}">Download run</button>'
    return buttons


def _command(told: Provenance) -> str:
    if not told.command:
        return '<p class="hint">The engine here has no such method or model, so there is no command for it.</p>'
    what = "The command that makes it again" if told.run_id else "The command that measures this setting here"
    return (
        f"<h3>{what}</h3><pre>{escape(told.command)}</pre>"
        f'<button type="button" data-copy="{escape(told.command)}">Copy command</button>'
    )
