"""The columns of the Ask tab: FP16 and one to three quantized settings, each with its controls and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from leaderboard import requests, room
from leaderboard.ui import setting_picker
from leaderboard.ui.answer_pane import Side, pane
from leaderboard.ui.notice import model_note, notice
from leaderboard.ui.setting_picker import SettingPicker
from leaderboard.ui.theme import QUICK, html
from leaderboard.view import Asked
from quant_engine.methods import resolve_setting
from quant_engine.models.catalog import MODELS
from quant_engine.spec import QuantSetting, UserError, read_code

LENGTHS = [16, 32, 64, 128, 256]
FIRST_SETTINGS = tuple(QuantSetting(method="rtn", w_bits=bits, group_size=64) for bits in (4, 3, 2))
"""What the columns of quantized settings begin with."""
FIRST_SHOWN = (True, False, False)

_FORK_JS = """
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-fork]')) trigger('fork');
});
"""

Shown = tuple[bool, ...]


def read_settings(codes: str) -> list[QuantSetting]:
    """The quantized settings of a link, as many as there are columns; what can't be understood is left out."""
    settings = []
    for code in codes.split(","):
        try:
            setting = resolve_setting(read_code(code))
        except UserError:
            continue
        if setting.method != "fp16":
            settings.append(setting)
    return settings[: len(FIRST_SETTINGS)]


def about_model(model: str) -> str:
    """Why a model can't be asked here, where that is so, and what it can be expected to know."""
    return (notice(room.lack(MODELS[model])) if model in MODELS else "") + model_note(model)


class Columns:
    """The columns. `controls` say what is asked, and `read` reads them; `outputs` are what `fill` sets to a link.

    `shown` holds which of the quantized settings' columns are there: the first always is.
    """

    def __init__(self) -> None:
        """Lays out the columns."""
        models = requests.model_choices()
        self.shown = gr.State(FIRST_SHOWN)
        self._pickers: list[SettingPicker] = []
        self._columns: list[gr.Column] = []
        self._removers: list[gr.Button] = []
        with gr.Row(elem_classes="answers"):
            with gr.Column(elem_classes="answer-column", min_width=0):
                with gr.Row(elem_classes="setting"):
                    self.model = gr.Dropdown(models, value=models[0][1], label="Model", filterable=False)
                    self.length = gr.Dropdown(LENGTHS, value=64, label="Most tokens", filterable=False)
                self.panes = [html(pane(Side(requests.FP16)), elem_id="answer-0")]
            for number, (setting, visible) in enumerate(zip(FIRST_SETTINGS, FIRST_SHOWN, strict=True), 1):
                with gr.Column(visible=visible, elem_classes="answer-column", min_width=0) as column:
                    self._pickers.append(setting_picker.build(fp16=False, first=setting))
                    if not visible:
                        self._removers.append(gr.Button("Remove", size="sm", elem_classes="remove", min_width=0))
                    self.panes.append(html(pane(Side(setting)), elem_id=f"answer-{number}", js_on_load=_FORK_JS))
                self._columns.append(column)
        self.controls = [self.model, self.length, self.shown, *(part for picker in self._pickers for part in picker)]

    def connect(self, add: gr.Button) -> None:
        """`add` shows the next column; each but the first has a button that takes it away."""
        outputs = [self.shown, *self._columns, add]
        add.click(self._add, self.shown, outputs, **QUICK)
        for number, remove in enumerate(self._removers, 1):
            pane_of_it = self.panes[number + 1]
            remove.click(partial(self._remove, number), self.shown, [*outputs, pane_of_it], **QUICK)

    def read(self, model: str, length: int, shown: Shown, *values: Any) -> tuple[list[QuantSetting], tuple[int, ...]]:
        """The quantized settings that the controls show, and the columns of all sides, FP16's first. Raises UserError
        for a setting that its method is not defined for."""
        width, settings, columns = len(SettingPicker._fields), [], [0]
        for number, visible in enumerate(shown):
            if visible:
                method, bits, a_bits, group = values[width * number : width * (number + 1)]
                settings.append(requests.setting(method, bits, group, a_bits=a_bits))
                columns.append(number + 1)
        return settings, tuple(columns)

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `fill` sets, but for the button that adds a column."""
        return [*self.controls, *self._columns]

    def fill(self, asked: Asked) -> list[Any]:
        """Updates of `outputs` that set the columns to a link."""
        settings = read_settings(asked.settings) or [FIRST_SETTINGS[0]]
        shown = tuple(number < len(settings) for number in range(len(FIRST_SETTINGS)))
        models = [card.id for card in requests.picture_models()]
        pickers = [setting_picker.fill(setting) for setting in settings]
        rest = len(FIRST_SETTINGS) - len(settings)
        return [
            asked.model if asked.model in models else gr.skip(),
            asked.tokens if asked.tokens in LENGTHS else gr.skip(),
            shown,
            *(update for picker in pickers for update in picker),
            *[gr.skip()] * (rest * len(SettingPicker._fields)),
            *(gr.update(visible=visible) for visible in shown),
        ]

    def _add(self, shown: Shown) -> list[Any]:
        added = [*shown, False].index(False)
        return self._show([visible or number == added for number, visible in enumerate(shown)])

    def _remove(self, removed: int, shown: Shown) -> list[Any]:
        visible = [visible and number != removed for number, visible in enumerate(shown)]
        return [*self._show(visible), pane(Side(FIRST_SETTINGS[removed]))]

    def _show(self, shown: Sequence[bool]) -> list[Any]:
        columns = [gr.update(visible=visible) for visible in shown]
        return [tuple(shown), *columns, gr.update(interactive=not all(shown))]
