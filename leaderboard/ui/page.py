"""The page: masthead, tabs, the ways between them, and the programs' endpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
from gradio.utils import get_function_description

from leaderboard import api, api_runs
from leaderboard.analysis import Query
from leaderboard.boards import Boards
from leaderboard.lab import Lab
from leaderboard.provenance import row_run
from leaderboard.store import model_name
from leaderboard.ui import methods_tab, signed_in, theme
from leaderboard.ui.ask_tab import AskTab
from leaderboard.ui.explore_tab import ExploreTab
from leaderboard.ui.findings_tab import FindingsTab
from leaderboard.ui.leaderboard_tab import LeaderboardTab, Updates, page_view
from leaderboard.ui.pressed import pressed
from leaderboard.ui.run_tab import RunTab
from leaderboard.ui.theme import QUICK
from leaderboard.view import FIRST_MODEL, PageView, read_address
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError

FORGET_UPLOADS_S = 1800
PROGRAMS_AT_ONCE = 4
"""Programs that ask about pictures at the same time; the others stand in the queue."""
QUEUE_LOOK_S = 0.05
"""How often Gradio's queue looks for work: as under Windows. Elsewhere a thousand times a second, 7% of a core."""
NO_PROGRESS_S = 1.0
"""How often it looks for gr.Progress, which nothing here uses."""
_BACK_JS = "window.addEventListener('popstate', () => trigger('moved'));"


def build(lab: Lab) -> gr.Blocks:
    """The whole page over one lab."""
    lab.signed_in = signed_in.user
    gr.set_static_paths([theme.PLOTLY])
    with gr.Blocks(
        title="Low-Bit Lab", analytics_enabled=False, fill_width=True, delete_cache=(FORGET_UPLOADS_S, FORGET_UPLOADS_S)
    ) as page:
        _Page(lab).connect(page)
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = QUEUE_LOOK_S, NO_PROGRESS_S
    return page


class _Page:
    """The tabs, and the ways between them and the address."""

    def __init__(self, lab: Lab) -> None:
        """Lays out masthead and tabs."""
        self.lab, self.boards = lab, Boards(lab.store, lab.votes, lab.sharing)
        theme.html(theme.MASTHEAD, js_on_load=theme.MASTHEAD_JS)
        with gr.Tabs(elem_id="rooms") as self.tabs:
            with gr.Tab("Leaderboard", id="leaderboard"):
                self.leaderboard = LeaderboardTab(self.boards)
            with gr.Tab("Explore", id="explore") as self.explore_tab:
                self.explore = ExploreTab(self.boards)
            with gr.Tab("Findings", id="findings") as self.findings_tab:
                self.findings = FindingsTab(self.boards)
            with gr.Tab("Ask a picture", id="ask") as self.ask_tab:
                self.ask = AskTab(lab)
            with gr.Tab("Run", id="run"):
                self.run = RunTab(lab)
            with gr.Tab("Methods", id="methods"):
                self.method_cards = methods_tab.build(self.boards)

    def connect(self, page: gr.Blocks) -> None:
        """Connects the tabs with each other, with the address, and with programs that ask."""
        history = theme.html("", js_on_load=_BACK_JS)
        search = gr.Textbox("", visible="hidden")
        to_leaderboard = [self.tabs, *self.leaderboard.outputs]
        everything = [*to_leaderboard, *self.explore.outputs, *self.findings.outputs, *self.ask.outputs]
        opening = page.load(self._load, search, everything, js="() => [location.search]", **QUICK)
        self.leaderboard.connect_refresh(opening.then(None, None, None, js="() => lowbit.shown()", **QUICK).then)
        # A step during another waits for it, and then reads the address of the last one.
        latest = {"js": "() => [location.search]", "trigger_mode": "always_last"}
        history.moved(self._restore, search, everything, **latest, **QUICK)
        controls = self.leaderboard.controls
        self.run.see.click(self._show_run, self.run.run_id, to_leaderboard, inputs_kwargs=controls, **QUICK)
        self.leaderboard.card.again(self._fill_run_form, None, [self.tabs, *self.run.form.outputs], **QUICK)
        for card in self.method_cards:
            card.see(self._show_method, None, to_leaderboard, **QUICK)
        self.explore.connect(self.explore_tab)
        self.findings.connect(self.findings_tab)
        for tab in self.tabs.children:
            name = "" if tab.id == "leaderboard" else f"tab={tab.id}"
            tab.select(None, None, None, js=f"() => {{ lowbit.go('tab', '{name}'); }}", **QUICK)
        self.ask_tab.select(self.lab.warm_up, None, None, **QUICK)  # the answering process ends when nobody asks
        answering = api.endpoints(self.boards.current, self.boards.notes, self.lab.answers)
        for function in (*answering, *api_runs.endpoints(self.lab)):
            name = function.__name__
            waits = {"concurrency_limit": PROGRAMS_AT_ONCE} if name in api.SLOW else {"queue": False}
            gr.api(_refusing(function), api_name=name, **waits)
            _describe(page, function)

    def _restore(self, search: str) -> Updates:
        """Every tab as an address says."""
        view = read_address(search)
        explored = dict(zip(self.explore.outputs, self.explore.fill(view), strict=True))
        found = dict(zip(self.findings.outputs, self.findings.fill(view), strict=True))
        asked = dict(zip(self.ask.outputs, self.ask.fill(view.asked), strict=True))
        return {self.tabs: gr.Tabs(selected=view.tab)} | self.leaderboard.fill(view) | explored | found | asked

    def _load(self, search: str) -> Updates:
        """The page as an address says; without a view in it as it is, for the visitor may have begun to use it."""
        return self._restore(search) if read_address(search) != PageView() else gr.skip()

    def _to_leaderboard(self, view: PageView) -> Updates:
        return {self.tabs: gr.Tabs(selected="leaderboard")} | self.leaderboard.fill(view)

    def _show_run(self, run_id: str, **values: Any) -> Updates:
        """To the leaderboard, at the model and track of a run, with no filter in the way."""
        try:
            spec = self.lab.queue.get(run_id).spec
        except UserError:
            return gr.skip()
        view = page_view(values)
        track = MODELS[spec.weights.model].track if spec.weights.model in MODELS else "llm_ptq"
        lasting = view.query.model_dump(include={"mode", "sort", "reverse"})
        query = Query(model=model_name(spec.weights.model), track=track, **lasting)
        return self._to_leaderboard(view.model_copy(update={"query": query}))

    def _show_method(self, event: gr.EventData) -> Updates:
        """To the leaderboard, at a method's rows."""
        return self._to_leaderboard(PageView(query=Query(model=FIRST_MODEL, methods=(pressed(event, "method"),))))

    def _fill_run_form(self, event: gr.EventData) -> Updates:
        """To the Run tab, with its form set to a row's setting."""
        spec = row_run(self.boards.current(), pressed(event, "row"))
        if spec is None:
            return gr.skip()
        return {self.tabs: gr.Tabs(selected="run")} | dict(
            zip(self.run.form.outputs, self.run.form.fill(spec), strict=True)
        )


def _describe(page: gr.Blocks, function: Callable) -> None:
    """Says on the API page what an endpoint's arguments and answer are, in the docstring's words, as a tool's schema
    does: Gradio itself calls them 1st, 2nd, and says no more."""
    endpoint = next(entry for entry in page.fns.values() if entry.api_name == function.__name__)
    _, arguments, answer = get_function_description(function)
    for part, (name, description) in zip(endpoint.inputs, arguments.items(), strict=True):
        part.label = name
        part.api_info().update(description=description, additional_description=description)
    (part,) = endpoint.outputs
    part.label = "answer"
    part.api_info().update(type="object", additionalProperties={}, description=" ".join(answer))


def _refusing(function: Callable) -> Callable:
    """The function with its refusals as errors that Gradio tells the caller in full."""

    @wraps(function)
    def answer(*arguments, **named):
        try:
            return function(*arguments, **named)
        except UserError as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None

    return answer
