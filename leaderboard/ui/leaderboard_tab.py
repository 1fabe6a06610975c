"""The Leaderboard tab: choosers, filters and the table. Every answer comes from `analysis.view`."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import gradio as gr
import numpy as np

from leaderboard import analysis, export, figures, notation, quality
from leaderboard.analysis import PER_ROW, Board, Query, Range
from leaderboard.provenance import provenance
from leaderboard.ranks import Comparisons, ranking
from leaderboard.store import Problem, Store, read_notes
from leaderboard.ui import table
from leaderboard.ui.card import card, pins
from leaderboard.ui.chart import chart
from leaderboard.ui.theme import html, offer
from leaderboard.view import FIRST_MODEL, MOST_PINS, PageView, address, find_row, read_address
from quant_engine.folders import PROJECT
from quant_engine.runs import folder as run_folder
from quant_engine.spec import UserError, digest

EVERY_MODEL = "All models"
MODES = [("Value", "absolute"), ("Δ FP16", "difference"), ("% kept", "retained")]
STATUS_CHOICES = [("nothing collapsed", "ok"), ("collapsed", "collapsed")]
_JS = (PROJECT / "leaderboard" / "ui" / "table.js").read_text(encoding="utf-8")


class Boards:
    """The arranged board of the store's current snapshot, made anew only when the store changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notes = read_notes()
        self.comparisons = Comparisons()
        self._arranged = lru_cache(maxsize=1)(lambda version: analysis.arrange(store.snapshot().frame))

    def current(self) -> Board:
        return self._arranged(self.store.snapshot().version)

    def state(self) -> str:
        """Changes whenever what tables are drawn from does: the results, or what is known of their ranks."""
        return digest([self.store.version(), self.comparisons.finished()])

    def problems(self) -> tuple[Problem, ...]:
        return self.store.snapshot().problems


@dataclass(frozen=True)
class Shown:
    """What the tab shows for a choice: the table, what of the query is kept, what the filters offer, and `drawn`, which
    identifies what the table was drawn from."""

    table: str
    query: Query
    drawn: str
    choices: analysis.Choices
    models: list[str]


def show(boards: Boards, query: Query) -> Shown:
    """The tab's content. Filters that the model and track can't have are dropped, so no choice empties the table."""
    state, board = boards.state(), boards.current()
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
        "a_bits": tuple(bits for bits in query.a_bits if bits in offered.a_bits),
        "columns": tuple(group for group in query.columns if group in offered.columns),
    }
    query = query.model_copy(update=kept)
    seen = analysis.view(board, query)
    ranked = ranking(board, seen, boards.comparisons)
    html = table.table(seen, boards.notes, offered.rows, ranked)
    return Shown(html, query, signature(state, query), offered, known)


def signature(state: str, query: Query) -> str:
    """Identifies a table: what it is drawn from (see `Boards.state`), and the query."""
    return digest([state, query.model_dump(mode="json")])


def beside_signature(state: str, view: PageView) -> str:
    """Identifies the open card and the pins likewise; nothing where there are none, whatever the results are."""
    return digest([state, list(view.pins), view.row]) if view.pins or view.row else ""


def card_html(boards: Boards, view: PageView) -> str:
    """The provenance card of the open row; nothing if none is open, or if it is gone."""
    board = boards.current()
    place = find_row(board, view.row) if view.row else None
    if place is None:
        return ""
    told = provenance(board, place, boards.notes)
    return card(told, pinned=view.row in view.pins, w_bits=board.rows["w_bits"].iloc[place])


def pins_html(boards: Boards, keys: tuple[str, ...]) -> str:
    """The pinned rows, and how they compare task by task."""
    board = boards.current()
    places = {key: place for key in keys if (place := find_row(board, key)) is not None}
    if not places:
        return ""
    titles = {key: _title(board.rows.iloc[place].to_dict(), len(places)) for key, place in places.items()}
    scores = [at for at, column in enumerate(board.columns) if not column.cost]
    at = np.ix_(list(places.values()), scores)
    columns = tuple(board.columns[place] for place in scores)
    lower = np.array([column.better == "lower" for column in columns], dtype=bool)
    kept = quality.kept_percent(board.values[at], board.reference[at], board.cells[at], lower)
    figure = chart(lambda: figures.dumbbells(list(titles.values()), columns, kept), "Pinned settings")
    return pins(list(titles.items()), figure)


def toggled(keys: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The pins after a press on one: it goes if it was pinned; a fifth one takes the place of the oldest."""
    return tuple(one for one in keys if one != key) if key in keys else (*keys, key)[-MOST_PINS:]


def exported(boards: Boards, search: str, form: str) -> dict[str, str]:
    """A file of the view that an address describes, for the browser to save: name, type, and content in base64."""
    if form not in export.FORMATS:
        raise UserError(f"There is no format {form!r}; the formats are: {', '.join(export.FORMATS)}.")
    shown = show(boards, read_address(search).query)
    content = export.FORMATS[form](analysis.view(boards.current(), shown.query))
    name = f"low-bit-lab-{re.sub(r'[^A-Za-z0-9]+', '-', shown.query.model or 'all')}.{form}"
    return {"name": name, "content": base64.b64encode(content).decode()}


def zipped(run_id: str) -> dict[str, str]:
    """A run's folder as a zip file, in the same form."""
    root, buffer = run_folder.run_path(run_id), io.BytesIO()
    if not (root / "run.json").exists():
        raise UserError(f"There is no run {run_id!r} on this machine.")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                packed.write(path, f"{run_id}/{path.relative_to(root)}")
    return {"name": f"{run_id}.zip", "content": base64.b64encode(buffer.getvalue()).decode()}


def range_of(text: str | None) -> Range:
    """A typed range: "2.5-4", "<4", ">=3", or a single number. Anything else is open on both sides."""
    found = re.fullmatch(r"\s*(<=?|>=?)?\s*(\d+(?:\.\d+)?)\s*(?:(?:-|–|\.\.)\s*(\d+(?:\.\d+)?))?\s*", text or "")
    if not found:
        return None, None
    sign, first, second = found[1] or "", float(found[2]), found[3]
    if second is not None:
        return first, float(second)
    return (None, first) if sign.startswith("<") else (first, None) if sign else (first, first)


def range_text(bounds: Range) -> str:
    """A range as one would type it."""
    least, most = bounds
    if least is None:
        return "" if most is None else f"<{most:g}"
    return f">{least:g}" if most is None else f"{least:g}" if least == most else f"{least:g}-{most:g}"


def _title(row: dict, several: int) -> str:
    setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
    mark = " (measured)" if row["source"] == "measured" else ""
    return f"{setting}{mark} · {row['model']}" if several > 1 else f"{setting}{mark}"


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
    """The tab's components, in the order in which `view_of` reads them."""

    model: gr.Dropdown
    track: gr.Radio
    mode: gr.Radio
    methods: gr.CheckboxGroup
    bits: gr.CheckboxGroup
    groups: gr.CheckboxGroup
    sources: gr.CheckboxGroup
    a_bits: gr.CheckboxGroup
    columns: gr.CheckboxGroup
    statuses: gr.CheckboxGroup
    stored: gr.Textbox
    size: gr.Textbox
    search: gr.Textbox
    sort: gr.JSON
    pins: gr.JSON
    row: gr.Textbox

    def all(self) -> list[gr.components.Component]:
        return list(vars(self).values())


@dataclass(frozen=True)
class Wired:
    """What the page connects the tab by: its controls; the outputs of `fill`, which shows a view; the card, whose event
    `again` asks for a setting to be run; and `refreshing`, the function that draws anew where that is due, with its
    inputs and outputs."""

    controls: Controls
    outputs: list[gr.components.Component]
    fill: Callable[[PageView], list]
    card: gr.HTML
    refreshing: tuple[Callable[..., list], list, list]


def offers_of(shown: Shown) -> list[list]:
    """What the model and track choosers and the filters offer, as (label, value)."""
    offered = shown.choices
    return [
        [(name, name) for name in (*shown.models, EVERY_MODEL)],
        [(analysis.TRACKS[track], track) for track in offered.tracks],
        [(name, name) for name in offered.methods],
        [(f"{bits:g}", float(bits)) for bits in offered.bits],
        [("per row" if size == PER_ROW else str(size), size) for size in offered.groups],
        [(source, source) for source in offered.sources],
        [(f"{bits:g}", float(bits)) for bits in offered.a_bits],
        [(group, group) for group in offered.columns],
    ]


def chosen_of(query: Query) -> list:
    """The values of the same controls."""
    filters = (query.methods, query.bits, query.groups, query.sources, query.a_bits, query.columns)
    return [query.model or EVERY_MODEL, query.track, *map(list, filters)]


def view_of(
    model, track, mode, methods, bits, groups, sources, a_bits, columns, statuses, stored, size, search, sort, pins, row
) -> PageView:  # fmt: skip
    """The controls' values as a view."""
    query = Query(
        model=None if model == EVERY_MODEL else model,
        track=track or "llm_ptq",
        mode=mode or "absolute",
        methods=tuple(methods or ()),
        bits=tuple(float(bit) for bit in bits or ()),
        groups=tuple(int(size) for size in groups or ()),
        sources=tuple(sources or ()),
        a_bits=tuple(float(bit) for bit in a_bits or ()),
        columns=tuple(columns or ()),
        statuses=tuple(statuses or ()),
        stored=range_of(stored),
        size=range_of(size),
        search=search or "",
        sort=sort[0],
        reverse=sort[1],
    )
    return PageView(query=query, pins=tuple(pins), row=row or None)


def build(boards: Boards) -> Wired:
    """Lays out the tab and wires it."""
    first = show(boards, Query(model=FIRST_MODEL))
    offers = offers_of(first)

    def pills(label: str, choices: list) -> gr.CheckboxGroup:
        return gr.CheckboxGroup(choices, label=label, elem_classes="pills")

    def export_view(asked: list[str]) -> dict[str, str]:
        """`asked` is the address and the format: several arguments of the browser come as one list."""
        return exported(boards, *asked)

    with gr.Row(elem_classes="choosers"):
        model = gr.Dropdown(offers[0], value=FIRST_MODEL, label="Model", elem_classes="narrow")
        track = gr.Radio(offers[1], value="llm_ptq", label="Track", elem_classes="segments")
        mode = gr.Radio(MODES, value="absolute", label="Show", elem_classes="segments")
        search = gr.Textbox(
            label="Search", placeholder="gptq g128, bits:<=3, wikitext2:<8", elem_classes="search", max_lines=1
        )
        clear = gr.Button("Clear filters", size="sm", elem_classes="clear", scale=0, min_width=0)
    with gr.Row(elem_classes="filters"):
        methods, bits = pills("Method", offers[2]), pills("Weight bits", offers[3])
        groups, sources = pills("Group size", offers[4]), pills("Source", offers[5])
    with (
        gr.Accordion("More filters and columns", open=False, elem_classes="more-options"),
        gr.Row(elem_classes="filters"),
    ):
        a_bits, columns = pills("Activation bits", offers[6]), pills("Columns (none chosen: all)", offers[7])
        statuses = pills("Status", STATUS_CHOICES)
        stored = gr.Textbox(label="Stored bits per weight", placeholder="2.5-4", elem_classes="range", max_lines=1)
        size = gr.Textbox(label="Size of weights, GB", placeholder="<6", elem_classes="range", max_lines=1)
    problems = html(problems_html(boards.problems()), elem_id="problems")
    pinned = html("", elem_id="pins", js_on_load=_JS)
    board = html(first.table, elem_id="board", js_on_load=_JS, server_functions=[export_view])
    opened = html("", elem_id="card", js_on_load=_JS, server_functions=[zipped])
    # In the browser like all other controls, so that a question never mixes what is old there with what is new here.
    sort, pins_state = gr.JSON([None, False], visible="hidden"), gr.JSON([], visible="hidden")
    row = gr.Textbox("", visible="hidden")
    # What the table in the browser was drawn from. Answers may arrive in another order than questions were asked: the
    # timer compares this with the controls and draws again what came out wrong, as it does when there are new results.
    drawn, drawn_beside = gr.Textbox(first.drawn, visible="hidden"), gr.Textbox("", visible="hidden")
    where, where_beside = gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden")
    controls = Controls(
        model, track, mode, methods, bits, groups, sources, a_bits, columns, statuses, stored, size, search, sort,
        pins_state, row,
    )  # fmt: skip
    filtering = [model, track, methods, bits, groups, sources, a_bits, columns]
    drawing = [board, drawn, where]
    beside = [pinned, opened, drawn_beside, where_beside]
    typed_in = [statuses, stored, size, search]
    outputs = [*filtering, *typed_in, *drawing, mode, sort, pins_state, row, *beside]
    refreshing = [*filtering, problems, *drawing, *beside]

    # The next answers may come after the visitor has gone on. So each writes what it is about and nothing else: the
    # table and its part of the address, the card and the pins and theirs, and only the controls that it changes.

    def draw(shown: Shown) -> list[str]:
        return [shown.table, shown.drawn, address(PageView(query=shown.query))]

    def where_of(view: PageView) -> str:
        return address(PageView(pins=view.pins, row=view.row))

    def aside(view: PageView) -> list[str]:
        signed = beside_signature(boards.state(), view)
        return [pins_html(boards, view.pins), card_html(boards, view), signed, where_of(view)]

    def filters(shown: Shown, before: Query | None = None) -> list[dict]:
        """What the controls of `filtering` offer for a table, and their values but for those that stay as `before`."""
        values = chosen_of(shown.query)
        old = chosen_of(before) if before else [None] * len(values)
        return [offer(*one) for one in zip(offers_of(shown), values, old, strict=True)]

    def fill(view: PageView) -> list:
        shown = show(boards, view.query)
        query = shown.query
        typed = [list(query.statuses), range_text(query.stored), range_text(query.size), query.search]
        rest = [query.mode, [query.sort, query.reverse], list(view.pins), view.row]
        return [*filters(shown), *typed, *draw(shown), *rest, *aside(view)]

    def chosen(*values) -> list:
        query = view_of(*values).query
        shown = show(boards, query)
        return [*filters(shown, query), *draw(shown)]

    def refine(*values) -> list:
        return draw(show(boards, view_of(*values).query))

    def sorted_by(event: gr.EventData, *values) -> list:
        *others, sort_now, keys, key = values
        sort_now = list(next_sort(*sort_now, event._data["column"]))
        return [*refine(*others, sort_now, keys, key), sort_now]

    def cleared(*values) -> list:
        query = view_of(*values).query
        kept = query.model_dump(include={"model", "track", "mode", "sort", "reverse"})
        shown = show(boards, Query(**kept))
        return [*filters(shown, query), [], "", "", "", *draw(shown)]

    def opens(event: gr.EventData, *values) -> list:
        view = view_of(*values).model_copy(update={"row": event._data["row"]})
        return [view.row, card_html(boards, view), beside_signature(boards.state(), view), where_of(view)]

    def pins_row(event: gr.EventData, *values) -> list:
        view = view_of(*values)
        view = view.model_copy(update={"pins": toggled(view.pins, str(event._data["row"]))})
        return [list(view.pins), *aside(view)]

    def refreshed(before: str, before_beside: str, *values) -> list:
        """Draws anew what is not as it should be. Choices are left alone: they may be changing meanwhile, and so may
        the card and the pins."""
        view, state = view_of(*values), boards.state()
        stale = beside_signature(state, view) != before_beside
        parts = aside(view) if stale else [gr.skip()] * len(beside)
        if signature(state, view.query) == before:
            return [gr.skip()] * (len(refreshing) - len(beside)) + parts
        shown = show(boards, view.query)
        offered = [gr.update(choices=choices) for choices in offers_of(shown)]
        return [*offered, problems_html(boards.problems()), *draw(shown), *parts]

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [model.input, track.input],
        chosen,
        controls.all(),
        [*filtering, *drawing],
        trigger_mode="always_last",
        **quick,
    )
    gr.on(
        [mode.input, methods.input, bits.input, groups.input, sources.input, a_bits.input, columns.input,
         statuses.input, stored.input, size.input, search.input],
        refine,
        controls.all(),
        drawing,
        trigger_mode="always_last",
        **quick,
    )  # fmt: skip
    board.sort(sorted_by, controls.all(), [*drawing, sort], **quick)
    clear.click(cleared, controls.all(), [*filtering, *typed_in, *drawing], **quick)
    for part in (board, opened, pinned):
        part.open(opens, controls.all(), [row, opened, drawn_beside, where_beside], trigger_mode="multiple", **quick)
        part.pin(pins_row, controls.all(), [pins_state, *beside], **quick)
    refreshing_of = (refreshed, [drawn, drawn_beside, *controls.all()], refreshing)
    gr.Timer(3).tick(*refreshing_of, **quick)
    where.change(None, where, None, js="(search) => { lowbit.go('board', search); }", **quick)
    where_beside.change(None, where_beside, None, js="(search) => { lowbit.go('beside', search); }", **quick)
    return Wired(controls, outputs, fill, opened, refreshing_of)
