"""The Leaderboard tab: choosers, filters and the table. Every answer comes from `analysis.view`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import gradio as gr

from leaderboard import analysis
from leaderboard.analysis import PER_ROW, Board, Query
from leaderboard.store import Problem, Store, read_notes
from leaderboard.ui import table
from leaderboard.ui.theme import html
from quant_engine.folders import PROJECT
from quant_engine.spec import digest

EVERY_MODEL = "All models"
FIRST_MODEL = "LLaMA3-8B"
MODES = [("Value", "absolute"), ("Δ FP16", "difference"), ("% kept", "retained")]
_JS = (PROJECT / "leaderboard" / "ui" / "table.js").read_text(encoding="utf-8")


class Boards:
    """The arranged board of the store's current snapshot, made anew only when the store changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notes = read_notes()
        self._arranged = lru_cache(maxsize=1)(lambda version: analysis.arrange(store.snapshot().frame))

    def current(self) -> Board:
        return self._arranged(self.store.snapshot().version)

    def problems(self) -> tuple[Problem, ...]:
        return self.store.snapshot().problems


@dataclass(frozen=True)
class Shown:
    """What the tab shows for a choice: the table, what the filters offer, and what of the query is kept."""

    table: str
    query: Query
    choices: analysis.Choices
    models: list[str]


def show(boards: Boards, query: Query) -> Shown:
    """The tab's content. Filters that the model and track can't have are dropped, so no choice empties the table."""
    board = boards.current()
    known = analysis.models(board)
    if query.model is not None and query.model not in known:
        query = query.model_copy(update={"model": FIRST_MODEL})
    offered = analysis.choices(board, query.model, query.track)
    if query.track not in offered.tracks:
        query = query.model_copy(update={"track": offered.tracks[0]})
        offered = analysis.choices(board, query.model, query.track)
    kept = {
        "methods": tuple(name for name in query.methods if name in offered.methods),
        "bits": tuple(bits for bits in query.bits if bits in offered.bits),
        "groups": tuple(size for size in query.groups if size in offered.groups),
        "sources": tuple(source for source in query.sources if source in offered.sources),
    }
    query = query.model_copy(update=kept)
    seen = analysis.view(board, query)
    return Shown(table.table(seen, boards.notes, offered.rows), query, offered, known)


def signature(boards: Boards, query: Query) -> str:
    """What a table is drawn from: the results as they are now, and the query."""
    return digest([boards.store.version(), query.model_dump(mode="json")])


def next_sort(sort: str | None, reverse: bool, column: str) -> tuple[str | None, bool]:
    """What a click on a header makes of the sort: best first, then worst first, then the study's order."""
    if sort != column:
        return column, False
    return (None, False) if reverse else (column, True)


def problems_html(problems: tuple[Problem, ...]) -> str:
    """The run folders that were left out, by name and with the reason."""
    if not problems:
        return ""
    items = "".join(f"<li>{escape(one.reason)}</li>" for one in problems)
    word = "1 run folder is" if len(problems) == 1 else f"{len(problems)} run folders are"
    return f'<div class="notice" role="alert"><b>{word} left out.</b><ul>{items}</ul></div>'


@dataclass(frozen=True)
class Controls:
    """The tab's components, in the order in which `query_of` reads them."""

    model: gr.Dropdown
    track: gr.Radio
    mode: gr.Radio
    methods: gr.CheckboxGroup
    bits: gr.CheckboxGroup
    groups: gr.CheckboxGroup
    sources: gr.CheckboxGroup
    search: gr.Textbox
    sort: gr.State

    def all(self) -> list[gr.components.Component]:
        return list(vars(self).values())


def offers_of(shown: Shown) -> list[list]:
    """What the model and track choosers and the four filters offer, as (label, value)."""
    offered = shown.choices
    return [
        [(name, name) for name in (*shown.models, EVERY_MODEL)],
        [(analysis.TRACKS[track], track) for track in offered.tracks],
        [(name, name) for name in offered.methods],
        [(f"{bits:g}", float(bits)) for bits in offered.bits],
        [("per row" if size == PER_ROW else str(size), size) for size in offered.groups],
        [(source, source) for source in offered.sources],
    ]


def chosen_of(query: Query) -> list:
    """The values of the same six controls."""
    filters = (query.methods, query.bits, query.groups, query.sources)
    return [query.model or EVERY_MODEL, query.track, *map(list, filters)]


def query_of(model, track, mode, methods, bits, groups, sources, search, sort) -> Query:
    """The controls' values as a query."""
    return Query(
        model=None if model == EVERY_MODEL else model,
        track=track or "llm_ptq",
        mode=mode or "absolute",
        methods=tuple(methods or ()),
        bits=tuple(float(bit) for bit in bits or ()),
        groups=tuple(int(size) for size in groups or ()),
        sources=tuple(sources or ()),
        search=search or "",
        sort=sort[0],
        reverse=sort[1],
    )


def build(boards: Boards, page: gr.Blocks) -> tuple[Controls, list, Callable[..., list]]:
    """Lays out the tab and wires it. Returns its controls, its outputs, and the function that fills them."""
    first = show(boards, Query(model=FIRST_MODEL))
    all_models, tracks, all_methods, all_bits, all_groups, all_sources = offers_of(first)
    with gr.Row(elem_classes="choosers"):
        model = gr.Dropdown(all_models, value=FIRST_MODEL, label="Model", elem_classes="narrow")
        track = gr.Radio(tracks, value="llm_ptq", label="Track", elem_classes="segments")
        mode = gr.Radio(MODES, value="absolute", label="Show", elem_classes="segments")
        search = gr.Textbox(label="Search", placeholder="gptq w4 g128", elem_classes="search", max_lines=1)
        clear = gr.Button("Clear filters", size="sm", elem_classes="clear", scale=0, min_width=0)
    with gr.Row(elem_classes="filters"):
        methods = gr.CheckboxGroup(all_methods, label="Method", elem_classes="pills")
        bits = gr.CheckboxGroup(all_bits, label="Weight bits", elem_classes="pills")
        groups = gr.CheckboxGroup(all_groups, label="Group size", elem_classes="pills")
        sources = gr.CheckboxGroup(all_sources, label="Source", elem_classes="pills")
    problems = html(problems_html(boards.problems()), elem_id="problems")
    board = html(first.table, elem_id="board", js_on_load=_JS)
    sort = gr.State((None, False))
    # What the table in the browser was drawn from. Answers may arrive in another order than questions were asked: the
    # timer compares this with the controls and draws again what came out wrong, as it does when there are new results.
    drawn = gr.Textbox(signature(boards, first.query), visible="hidden")
    controls = Controls(model, track, mode, methods, bits, groups, sources, search, sort)
    offers = [model, track, methods, bits, groups, sources]
    drawing = [board, drawn]
    outputs, refreshing = [*offers, *drawing], [*offers, problems, *drawing]

    def draw(shown: Shown) -> list[str]:
        return [shown.table, signature(boards, shown.query)]

    def fill(*values) -> list:
        shown = show(boards, query_of(*values))
        offered = zip(offers_of(shown), chosen_of(shown.query), strict=True)
        return [*(gr.update(choices=choices, value=value) for choices, value in offered), *draw(shown)]

    def refine(*values) -> list:
        return draw(show(boards, query_of(*values)))

    def sorted_by(event: gr.EventData, *values) -> list:
        *others, sort_now = values
        sort_now = next_sort(*sort_now, event._data["column"])
        return [*refine(*others, sort_now), sort_now]

    def cleared(*values) -> list:
        chosen = list(values)
        chosen[3:8] = [[], [], [], [], ""]
        return [*fill(*chosen), ""]

    def refreshed(before: str, *values) -> list:
        """Draws anew if the table is not what it should be. Choices are left alone: they may be changing meanwhile."""
        query = query_of(*values)
        if signature(boards, query) == before:
            return [gr.skip()] * len(refreshing)
        shown = show(boards, query)
        offered = [gr.update(choices=choices) for choices in offers_of(shown)]
        return [*offered, problems_html(boards.problems()), *draw(shown)]

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on([model.input, track.input], fill, controls.all(), outputs, **quick)
    gr.on(
        [mode.input, methods.input, bits.input, groups.input, sources.input, search.change],
        refine,
        controls.all(),
        drawing,
        trigger_mode="always_last",
        **quick,
    )
    board.sort(sorted_by, controls.all(), [*drawing, sort], **quick)
    clear.click(cleared, controls.all(), [*outputs, search], **quick)
    gr.on([page.load, gr.Timer(3).tick], refreshed, [drawn, *controls.all()], refreshing, **quick)
    return controls, outputs, fill
