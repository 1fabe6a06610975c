"""The page: masthead, tabs, and what they share."""

from __future__ import annotations

import gradio as gr

from leaderboard.lab import Lab
from leaderboard.store import model_name
from leaderboard.ui import ask_tab, leaderboard_tab, run_tab, theme
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError

FORGET_UPLOADS_S = 1800


def build(lab: Lab) -> gr.Blocks:
    """The whole page over one lab."""
    boards = leaderboard_tab.Boards(lab.store)
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(
        title="Low-Bit Lab",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(FORGET_UPLOADS_S, FORGET_UPLOADS_S),
    ) as page:
        theme.html(theme.MASTHEAD, js_on_load=theme.MASTHEAD_JS)
        with gr.Tabs(elem_id="rooms") as rooms:
            with gr.Tab("Leaderboard", id="leaderboard"):
                controls, outputs, fill = leaderboard_tab.build(boards, page)
            with gr.Tab("Ask a picture", id="ask"):
                ask_tab.build(lab)
            with gr.Tab("Run", id="run"):
                see, chosen = run_tab.build(lab)

        def lead(run_id: str, *values) -> list:
            """To the leaderboard, at the model and track of a run, with no filter in the way."""
            try:
                spec = lab.queue.get(run_id).spec
            except UserError:
                return [gr.skip()] * (len(outputs) + 1)
            track = MODELS[spec.model].track if spec.model in MODELS else "llm_ptq"
            return [gr.Tabs(selected="leaderboard"), *fill(model_name(spec.model), track, *_unfiltered(values))]

        see.click(lead, [chosen, *controls.all()], [rooms, *outputs], **quick)
    return page


def _unfiltered(values: tuple) -> list:
    """The leaderboard's control values after model and track, filters and search emptied, mode and sort kept."""
    mode, sort = values[2], values[8]
    return [mode, [], [], [], [], "", sort]
