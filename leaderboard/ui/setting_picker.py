"""The three controls that name a setting (method, bits, group), used wherever a setting is chosen."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from leaderboard.requests import PER_ROW, method_choices
from quant_engine.methods import METHODS

BITS = ["2", "3", "4", "8"]
GROUPS = [PER_ROW, "32", "64", "128"]


class SettingPicker(NamedTuple):
    method: gr.Dropdown
    bits: gr.Dropdown
    group: gr.Dropdown


def build(method: str, bits: str, group: str, *, fp16: bool) -> SettingPicker:
    """Bits and group can be picked or typed. They are hidden where the method has none."""
    with gr.Row(elem_classes="setting"):
        methods = gr.Dropdown(method_choices(fp16), value=method, label="Method", filterable=False)
        widths = gr.Dropdown(BITS, value=bits, label="Weight bits", allow_custom_value=True)
        groups = gr.Dropdown(GROUPS, value=group, label="Group size", allow_custom_value=True)

    def fit(chosen: str) -> tuple[dict, dict]:
        card = METHODS[chosen].card if chosen in METHODS else None
        return gr.update(visible=card is not None), gr.update(visible=card is not None and card.grouped)

    methods.input(fit, methods, [widths, groups], queue=False, show_progress="hidden", api_visibility="private")
    return SettingPicker(methods, widths, groups)
