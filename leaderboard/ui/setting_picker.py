"""The controls that name a setting (method, weight and activation bits, group), used wherever one is chosen."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from leaderboard.requests import PER_ROW, method_choices
from leaderboard.ui.theme import QUICK, offer
from quant_engine.methods import METHODS, MethodCard
from quant_engine.spec import QuantSetting

BITS = ["2", "3", "4", "8"]
GROUPS = [PER_ROW, "32", "64", "128"]
FIRST_SETTING = QuantSetting(method="rtn", w_bits=4, group_size=64)


class SettingPicker(NamedTuple):
    """The controls, those that the method has no use for hidden. Bits and group can be picked or typed."""

    method: gr.Dropdown
    bits: gr.Dropdown
    a_bits: gr.Dropdown
    group: gr.Dropdown


def build(*, fp16: bool, first: QuantSetting = FIRST_SETTING) -> SettingPicker:
    """Lays out the controls, set to a `first` setting; `fp16` also offers the unquantized model."""
    with gr.Row(elem_classes="setting"):
        picker = SettingPicker(
            gr.Dropdown(method_choices(fp16), value=first.method, label="Method", filterable=False),
            gr.Dropdown(BITS, value=f"{first.w_bits:g}", label="Weight bits", allow_custom_value=True),
            gr.Dropdown(["8"], value="8", label="Activation bits", visible=False, filterable=False),
            gr.Dropdown(GROUPS, value=_group_text(first), label="Group size", allow_custom_value=True),
        )
    picker.method.input(fit_method, picker[:3], picker[1:], **QUICK)
    return picker


def fit_method(method: str, bits: str, a_bits: str | None) -> list[dict]:
    """What a method allows, as updates of bits, activation bits and group.

    A choice that it allows stays: a list that merely loses the focus asks this, too.
    """
    card = _card(method)
    if card is None:
        return [gr.update(visible=False)] * 3
    widths = [f"{width:g}" for width in card.bits]
    return [
        offer(widths, bits if bits in widths else widths[-1], bits, visible=True),
        _offer_a_bits(card, a_bits, a_bits),
        gr.update(visible=card.grouped),
    ]


def fill(setting: QuantSetting) -> list:
    """Updates that set the controls to a setting."""
    card, bits = _card(setting.method), f"{setting.w_bits:g}"
    return [
        setting.method,
        gr.update(value=bits, visible=card is not None),
        _offer_a_bits(card, str(setting.a_bits), None),
        gr.update(value=_group_text(setting), visible=card is not None and card.grouped),
    ]


def _offer_a_bits(card: MethodCard | None, a_bits: str | None, before: str | None) -> dict:
    """The activation bits to choose from. A list without choices keeps those that it had: it is hidden, and the page
    may be sending the value that it still holds."""
    widths = [str(width) for width in card.low_a_bits] if card else []
    if not widths:
        return gr.update(visible=False)
    return offer(widths, a_bits if a_bits in widths else widths[-1], before, visible=True)


def _card(method: str) -> MethodCard | None:
    """The method's card; None for the unquantized model."""
    return METHODS[method].card if method in METHODS else None


def _group_text(setting: QuantSetting) -> str:
    return str(setting.group_size or PER_ROW)
