"""The page: masthead, tabs, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import gradio as gr

from leaderboard import api
from leaderboard.analysis import Query
from leaderboard.lab import Lab
from leaderboard.provenance import row_run
from leaderboard.store import model_name
from leaderboard.ui import ask_tab, explore_tab, leaderboard_tab, methods_tab, run_tab, theme
from leaderboard.view import FIRST_MODEL, PageView, read_address
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError

FORGET_UPLOADS_S = 1800
_BACK_JS = "window.addEventListener('popstate', () => trigger('moved'));"


def build(lab: Lab) -> gr.Blocks:
    """The whole page over one lab."""
    boards = leaderboard_tab.Boards(lab.store)
    gr.set_static_paths([theme.PLOTLY])
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(
        title="Low-Bit Lab",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(FORGET_UPLOADS_S, FORGET_UPLOADS_S),
    ) as page:
        theme.html(theme.MASTHEAD, js_on_load=theme.MASTHEAD_JS)
        with gr.Tabs(elem_id="rooms") as rooms:
            with gr.Tab("Leaderboard", id="leaderboard") as first:
                board = leaderboard_tab.build(boards)
            with gr.Tab("Explore", id="explore") as second:
                explore = explore_tab.build(boards)
            with gr.Tab("Ask a picture", id="ask") as third:
                ask_tab.build(lab)
            with gr.Tab("Run", id="run") as fourth:
                run = run_tab.build(lab)
            with gr.Tab("Methods", id="methods") as fifth:
                cards = methods_tab.build(boards)
        history = theme.html("", js_on_load=_BACK_JS)
        search = gr.Textbox("", visible="hidden")

        def restore(address: str) -> list:
            """Every tab as an address says."""
            view = read_address(address)
            return [gr.Tabs(selected=view.tab), *board.fill(view), *explore.fill(view)]

        def loaded(address: str) -> list:
            """An address without a view is left to the page as it is: the visitor may have begun to use it."""
            return restore(address) if read_address(address) != PageView() else [gr.skip()] * len(everything)

        def to_board(view: PageView) -> list:
            return [gr.Tabs(selected="leaderboard"), *board.fill(view)]

        def lead(run_id: str, *values) -> list:
            """To the leaderboard, at the model and track of a run, with no filter in the way."""
            try:
                spec = lab.queue.get(run_id).spec
            except UserError:
                return [gr.skip()] * (len(board.outputs) + 1)
            view = leaderboard_tab.view_of(*values)
            track = MODELS[spec.weights.model].track if spec.weights.model in MODELS else "llm_ptq"
            kept = view.query.model_dump(include={"mode", "sort", "reverse"})
            query = Query(model=model_name(spec.weights.model), track=track, **kept)
            return to_board(view.model_copy(update={"query": query}))

        def see_method(event: gr.EventData) -> list:
            return to_board(PageView(query=Query(model=FIRST_MODEL, methods=(str(event._data["method"]),))))

        def again(event: gr.EventData) -> list:
            """To the Run tab, with its form set to a row's setting."""
            spec = row_run(boards.current(), str(event._data["row"]))
            if spec is None:
                return [gr.skip()] * (len(run.form.outputs) + 1)
            return [gr.Tabs(selected="run"), *run.form.fill(spec)]

        everything = [rooms, *board.outputs, *explore.outputs]
        opening = page.load(loaded, search, everything, js="() => [location.search]", **quick)
        opening.then(None, None, None, js="() => lowbit.shown()", **quick).then(*board.refreshing, **quick)
        # A step during another waits for it, and then reads the address of the last one.
        here = {"js": "() => [location.search]", "trigger_mode": "always_last"}
        history.moved(restore, search, everything, **here, **quick)
        run.see.click(lead, [run.run_id, *board.controls.all()], [rooms, *board.outputs], **quick)
        board.card.again(again, None, [rooms, *run.form.outputs], **quick)
        for part in cards:
            part.see(see_method, None, [rooms, *board.outputs], **quick)
        second.select(explore.refresh, explore.inputs, explore.outputs, **quick)
        for room in (first, second, third, fourth, fifth):
            name = "" if room is first else f"tab={room.id}"
            room.select(None, None, None, js=f"() => {{ lowbit.go('tab', '{name}'); }}", **quick)
        for function in api.endpoints(boards.current, boards.notes):
            gr.api(_refusing(function), api_name=function.__name__, queue=False)
    return page


def _refusing(function: Callable) -> Callable:
    """The function with its refusals as errors that Gradio tells the caller in full."""

    @wraps(function)
    def answer(*given, **named):
        try:
            return function(*given, **named)
        except UserError as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None

    return answer
