"""The controls that name a setting (method, weight and activation bits, group), used wherever one is chosen."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from leaderboard.requests import PER_ROW, method_choices
from leaderboard.ui.theme import offer
from quant_engine.methods import METHODS

BITS = ["2", "3", "4", "8"]
GROUPS = [PER_ROW, "32", "64", "128"]


class SettingPicker(NamedTuple):
    method: gr.Dropdown
    bits: gr.Dropdown
    a_bits: gr.Dropdown
    group: gr.Dropdown


def build(method: str, bits: str, group: str, *, fp16: bool) -> SettingPicker:
    """Bits and group can be picked or typed. They are hidden where the method has none or leaves no choice."""
    with gr.Row(elem_classes="setting"):
        methods = gr.Dropdown(method_choices(fp16), value=method, label="Method", filterable=False)
        widths = gr.Dropdown(BITS, value=bits, label="Weight bits", allow_custom_value=True)
        activations = gr.Dropdown(["8"], value="8", label="Activation bits", visible=False, filterable=False)
        groups = gr.Dropdown(GROUPS, value=group, label="Group size", allow_custom_value=True)

    def allowed(value: str | None, offered: list[str]) -> str | None:
        return value if value in offered else offered[-1] if offered else None

    def fit(chosen: str, bits: str, a_bits: str | None) -> tuple[dict, dict, dict]:
        """What the method allows. What is chosen stays if it is allowed: a list that merely loses the focus asks this,
        too."""
        if chosen not in METHODS:
            return (gr.update(visible=False),) * 3
        card = METHODS[chosen].card
        offered = [f"{width:g}" for width in card.bits]
        narrow = [str(width) for width in card.a_bits if width < 16]
        return (
            offer(offered, allowed(bits, offered), bits, visible=True),
            offer(narrow, allowed(a_bits, narrow), a_bits, visible=bool(narrow)),
            gr.update(visible=card.grouped),
        )

    shown = [widths, activations, groups]
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    methods.input(fit, [methods, widths, activations], shown, **quick)
    return SettingPicker(methods, widths, activations, groups)
