"""The Leaderboard tab: choosers, filters, the table, the open row's card and the pinned rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from leaderboard import analysis
from leaderboard.analysis import PER_ROW, Query
from leaderboard.boards import Boards, sign_details, sign_table
from leaderboard.downloads import export_table, zip_run
from leaderboard.search import MOST_CHARACTERS
from leaderboard.table_view import FILTERS, TableView, next_sort, parse_range, range_text, select_table, toggle_pin
from leaderboard.ui import table
from leaderboard.ui.card import open_card, pinned_rows, problems_html
from leaderboard.ui.pressed import pressed
from leaderboard.ui.theme import QUICK, html, offer
from leaderboard.view import FIRST_MODEL, PageView, address, as_valid
from quant_engine.folders import PROJECT
from quant_engine.spec import clean_text

EVERY_MODEL = "All models"
MODES = [("Value", "absolute"), ("Δ FP16", "difference"), ("% kept", "retained")]
STATUS_CHOICES = [("nothing collapsed", "ok"), ("collapsed", "collapsed")]
_JS = (PROJECT / "leaderboard" / "ui" / "table.js").read_text(encoding="utf-8")

Updates = dict[gr.components.Component, Any]
"""What a function of the page gives for some of its outputs; the others stay as they are."""


def page_view(values: Mapping[str, Any]) -> PageView:
    """The view that the controls show, from their values by name; a value that can't be is as if it were not there."""
    sort, reverse = sort_of(values)
    query = {
        "model": None if values["model"] == EVERY_MODEL else values["model"],
        "track": values["track"] or "llm_ptq",
        "mode": values["mode"] or "absolute",
        **{name: values[name] or () for name in (*FILTERS, "statuses")},
        "stored": parse_range(values["stored"]),
        "size": parse_range(values["size"]),
        "search": str(values["search"] or ""),
        "sort": sort,
        "reverse": reverse,
    }
    rows = {"pins": values["pins"] or (), "row": values["row"] or None}
    return as_valid(PageView, {"query": as_valid(Query, query)} | rows)


def sort_of(values: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The column that the table is sorted by, and whether its worst is first."""
    match values["sort"]:
        case [str(column), bool(reverse)]:
            return clean_text(column), reverse
        case _:
            return None, False


def control_values(view: PageView) -> dict[str, Any]:
    """The controls' values, by name, that show a view."""
    query = view.query
    return {
        "model": query.model or EVERY_MODEL,
        "track": query.track,
        "mode": query.mode,
        **{name: list(getattr(query, name)) for name in (*FILTERS, "statuses")},
        "stored": range_text(query.stored),
        "size": range_text(query.size),
        "search": query.search,
        "sort": [query.sort, query.reverse],
        "pins": list(view.pins),
        "row": view.row,
    }


def control_choices(table_view: TableView) -> dict[str, list[tuple[str, Any]]]:
    """What the choosers and the filters offer beside a table, as (label, value), by the control's name."""
    choices = table_view.choices
    return {
        "model": [(name, name) for name in (*table_view.models, EVERY_MODEL)],
        "track": [(analysis.TRACKS[track], track) for track in choices.tracks],
        "methods": [(name, name) for name in choices.methods],
        "bits": [(f"{bits:g}", float(bits)) for bits in choices.bits],
        "groups": [("per row" if size == PER_ROW else str(size), size) for size in choices.groups],
        "sources": [(source, source) for source in choices.sources],
        "a_bits": [(f"{bits:g}", float(bits)) for bits in choices.a_bits],
        "columns": [(group, group) for group in choices.columns],
    }


class LeaderboardTab:
    """The tab on the page. `controls` are what a view is read from, by the names that `page_view` knows; `outputs` what
    `fill` sets to a view. The event `again` of the `card` asks for a setting to be run."""

    def __init__(self, boards: Boards) -> None:
        """Lays out the tab and connects it."""
        self.boards = boards
        table_view = select_table(boards, Query(model=FIRST_MODEL))
        choices = control_choices(table_view)
        self.controls = self._lay_out_choosers(choices) | self._lay_out_filters(choices)
        self._lay_out_results(table_view)
        # In the browser like all other controls: a question never mixes what is old there with what is new here.
        self.controls |= {
            "sort": gr.JSON([None, False], visible="hidden"),
            "pins": gr.JSON([], visible="hidden"),
            "row": gr.Textbox("", visible="hidden"),
        }
        # What the table in the browser was drawn from. Answers may arrive in another order than questions were asked:
        # after each drawing this is compared with the controls, and what came out wrong is drawn again. A timer does
        # the same for new results.
        self.table_signature, self.details_signature = (
            gr.Textbox(text, visible="hidden") for text in (table_view.signature, "")
        )
        self.address, self.details_address = (gr.Textbox("", visible="hidden") for _ in range(2))
        self.table_outputs = [self.board, self.table_signature, self.address]
        self.details_outputs = [self.pinned, self.card, self.details_signature, self.details_address]
        self.outputs = [*self.controls.values(), *self.table_outputs, *self.details_outputs]
        self._connect()

    def fill(self, view: PageView) -> Updates:
        """Sets controls, table, card and pins to a view."""
        table_view = select_table(self.boards, view.query)
        values = control_values(view.model_copy(update={"query": table_view.query}))
        rest = {self.controls[name]: value for name, value in values.items()}
        return rest | self._offers(table_view) | self._table(table_view) | self._details(view)

    def connect_refresh(self, event: Callable) -> None:
        """Lets an event of the page draw anew what is not as it should be."""
        signatures = {"table_signature": self.table_signature, "details_signature": self.details_signature}
        outputs = [*self._controls(*FILTERS, "model", "track"), self.problems]
        outputs += [*self.table_outputs, *self.details_outputs]
        event(self.refresh, None, outputs, inputs_kwargs=signatures | self.controls, preprocess=False, **QUICK)

    def refresh(self, table_signature: str, details_signature: str, **values: Any) -> Updates:
        """Draws anew what is not as it should be. What is chosen, open and pinned is left alone: it may be changing
        meanwhile."""
        view, state = page_view(values), self.boards.state()
        updates: Updates = {}
        if sign_details(state, view) != details_signature:
            updates |= self._details(view)
        if sign_table(state, view.query) != table_signature:
            table_view = select_table(self.boards, view.query)
            for name, choices in control_choices(table_view).items():
                updates[self.controls[name]] = gr.update(choices=choices)
            updates |= {self.problems: self._problems_html()} | self._table(table_view)
        return updates or gr.skip()

    def _lay_out_choosers(self, choices: Mapping[str, list]) -> dict[str, gr.components.Component]:
        with gr.Row(elem_classes="choosers"):
            controls = {
                "model": gr.Dropdown(choices["model"], value=FIRST_MODEL, label="Model", elem_classes="narrow"),
                "track": gr.Radio(choices["track"], value="llm_ptq", label="Track", elem_classes="segments"),
                "mode": gr.Radio(MODES, value="absolute", label="Show", elem_classes="segments"),
                "search": gr.Textbox(
                    label="Search",
                    placeholder="gptq g128, bits:<=3, wikitext2:<8",
                    elem_classes="search",
                    max_lines=1,
                    max_length=MOST_CHARACTERS,
                ),
            }
            self.clear = gr.Button("Clear filters", size="sm", elem_classes="clear", scale=0, min_width=0)
        return controls

    def _lay_out_filters(self, choices: Mapping[str, list]) -> dict[str, gr.components.Component]:
        def pills(label: str, choices: list) -> gr.CheckboxGroup:
            return gr.CheckboxGroup(choices, label=label, elem_classes="pills")

        def range_box(label: str, example: str) -> gr.Textbox:
            return gr.Textbox(label=label, placeholder=example, elem_classes="range", max_lines=1)

        with gr.Row(elem_classes="filters"):
            controls = {
                "methods": pills("Method", choices["methods"]),
                "bits": pills("Weight bits", choices["bits"]),
                "groups": pills("Group size", choices["groups"]),
                "sources": pills("Source", choices["sources"]),
            }
        with (
            gr.Accordion("More filters and columns", open=False, elem_classes="more-options"),
            gr.Row(elem_classes="filters"),
        ):
            return controls | {
                "a_bits": pills("Activation bits", choices["a_bits"]),
                "columns": pills("Columns (none chosen: all)", choices["columns"]),
                "statuses": pills("Status", STATUS_CHOICES),
                "stored": range_box("Stored bits per weight", "2.5-4"),
                "size": range_box("Size of weights, GB", "<6"),
            }

    def _lay_out_results(self, table_view: TableView) -> None:
        def export_view(arguments: list[str]) -> dict[str, str]:
            """`arguments` are the address and the format: several of the browser come as one list."""
            return export_table(self.boards, *arguments)

        self.problems = html(self._problems_html(), elem_id="problems")
        self.pinned = html("", elem_id="pins", js_on_load=_JS)
        self.board = html(
            self._results_html(table_view), elem_id="board", js_on_load=_JS, server_functions=[export_view]
        )
        self.card = html("", elem_id="card", js_on_load=_JS, server_functions=[zip_run])

    # No event is preprocessed: a list's value that is not among its choices, since an answer that came late has left
    # those of another table, would be an error there, and is as if it were not chosen here.

    def _connect(self) -> None:
        controls = {"inputs_kwargs": self.controls, "preprocess": False}
        latest = {"trigger_mode": "always_last"}
        choosers, table_outputs = self._controls("model", "track"), self.table_outputs
        offering = [*choosers, *self._controls(*FILTERS)]
        typed = self._controls("statuses", "stored", "size", "search")
        refining = [*self._controls("mode", *FILTERS), *typed]
        for inputs, function, outputs in (
            (choosers, self._choose, [*offering, *table_outputs]),
            (refining, self._refine, table_outputs),
        ):
            gr.on([control.input for control in inputs], function, None, outputs, **controls, **latest, **QUICK)
        self.board.sort(self._sort, None, [*table_outputs, self.controls["sort"]], **controls, **QUICK)
        self.clear.click(self._clear, None, [*offering, *typed, *table_outputs], **controls, **QUICK)
        opening = [self.controls["row"], self.card, self.details_signature, self.details_address]
        pinning = [self.controls["pins"], *self.details_outputs]
        for part in (self.board, self.card, self.pinned):
            part.open(self._open, None, opening, **controls, trigger_mode="multiple", **QUICK)
            part.pin(self._pin, None, pinning, **controls, **QUICK)
        for event in (gr.Timer(3).tick, self.table_signature.change, self.details_signature.change):
            self.connect_refresh(event)
        for box, part in ((self.address, "board"), (self.details_address, "details")):
            box.change(None, box, None, js=f"(search) => {{ lowbit.go('{part}', search); }}", **QUICK)

    # The next answers may come after the visitor has gone on. So each writes what it is about and nothing else: the
    # table and its part of the address, the card and the pins and theirs, and only the controls that it changes.

    def _choose(self, **values: Any) -> Updates:
        query = page_view(values).query
        table_view = select_table(self.boards, query)
        return self._offers(table_view, query) | self._table(table_view)

    def _refine(self, **values: Any) -> Updates:
        return self._table(select_table(self.boards, page_view(values).query))

    def _sort(self, event: gr.EventData, **values: Any) -> Updates:
        column = pressed(event, "column")
        if not column:
            return gr.skip()
        sort = list(next_sort(*sort_of(values), column))
        return self._refine(**values | {"sort": sort}) | {self.controls["sort"]: sort}

    def _clear(self, **values: Any) -> Updates:
        query = page_view(values).query
        lasting = query.model_dump(include={"model", "track", "mode", "sort", "reverse"})
        table_view = select_table(self.boards, Query(**lasting))
        empty = {"statuses": [], "stored": "", "size": "", "search": ""}
        emptied = {self.controls[name]: value for name, value in empty.items()}
        return self._offers(table_view, query) | emptied | self._table(table_view)

    def _open(self, event: gr.EventData, **values: Any) -> Updates:
        view = page_view(values).model_copy(update={"row": pressed(event, "row") or None})
        return self._card(view) | {self.controls["row"]: view.row}

    def _pin(self, event: gr.EventData, **values: Any) -> Updates:
        view, row = page_view(values), pressed(event, "row")
        if not row:
            return gr.skip()
        view = view.model_copy(update={"pins": toggle_pin(view.pins, row)})
        return self._details(view) | {self.controls["pins"]: list(view.pins)}

    def _controls(self, *names: str) -> list[gr.components.Component]:
        return [self.controls[name] for name in names]

    def _offers(self, table_view: TableView, before: Query | None = None) -> Updates:
        """What the choosers and the filters offer for a table, and their values but for those that stay as `before`."""
        values = control_values(PageView(query=table_view.query))
        old = control_values(PageView(query=before)) if before else {}
        return {
            self.controls[name]: offer(choices, values[name], old.get(name))
            for name, choices in control_choices(table_view).items()
        }

    def _table(self, table_view: TableView) -> Updates:
        return {
            self.board: self._results_html(table_view),
            self.table_signature: table_view.signature,
            self.address: address(PageView(query=table_view.query)),
        }

    def _details(self, view: PageView) -> Updates:
        return self._card(view) | {self.pinned: pinned_rows(self.boards, view.pins)}

    def _card(self, view: PageView) -> Updates:
        signature = sign_details(self.boards.state(), view)
        return {
            self.card: open_card(self.boards, view),
            self.details_signature: signature,
            self.details_address: address(PageView(pins=view.pins, row=view.row)),
        }

    def _problems_html(self) -> str:
        return problems_html(self.boards.problems(), self.boards.votes.tally().problem, self.boards.sharing_problem())

    def _results_html(self, table_view: TableView) -> str:
        return table.results_html(table_view.view, self.boards.notes, table_view.choices.rows, table_view.ranking)
