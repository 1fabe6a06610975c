"""The controls of a sweep: several models, methods, bits and groups; and in words what they make."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from leaderboard import requests
from leaderboard.cost import sweep_cost
from leaderboard.lab import Lab
from leaderboard.ui import setting_picker
from leaderboard.ui.theme import QUICK, offer
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS
from quant_engine.runs.sweep import Sweep, settings_of
from quant_engine.spec import Calibration

FIRST_METHODS = ["rtn", "gptq"]
FIRST_BITS = ["2", "3", "4"]
FIRST_GROUPS = ["64"]
FEW = 2
"""So many reasons stand open; more are folded."""


class SweepForm:
    """What a sweep varies. Tasks, items, calibration and window are those of the form for one setting."""

    def __init__(self, lab: Lab, models: list[tuple[str, str]]) -> None:
        """Lays out the controls; `models` are (title, id) of those to choose from."""
        self._store, self._hosted = lab.store, lab.hosted
        self.models = gr.CheckboxGroup(models, value=[models[0][1]], label="Models", elem_classes="pills")
        self.methods = gr.CheckboxGroup(
            requests.method_choices(fp16=True), value=FIRST_METHODS, label="Methods", elem_classes="pills"
        )
        self.bits = gr.CheckboxGroup(
            widths_of(FIRST_METHODS), value=FIRST_BITS, label="Weight bits", elem_classes="pills"
        )
        self.groups = gr.CheckboxGroup(
            setting_picker.GROUPS, value=FIRST_GROUPS, label="Group sizes", elem_classes="pills"
        )
        self.controls = [self.models, self.methods, self.bits, self.groups]
        self.methods.input(fit_methods, [self.methods, self.bits], [self.bits, self.groups], **QUICK)

    def read(self, models, methods, bits, groups, tasks, calibration: Calibration, **lengths) -> Sweep:
        """The sweep that the controls and the shared ones describe, in the order of the lists and the widest weights
        first, whatever was pressed first. Raises UserError."""
        listed = [name for _, name in self.methods.choices]
        methods = sorted(methods or [], key=lambda name: listed.index(name) if name in listed else len(listed))
        return requests.sweep(
            *(models, methods, sorted(bits or [], key=str, reverse=True), groups, tasks),
            **lengths,
            calibration=calibration,
            hosted=self._hosted,
        )

    def describe(self, sweep: Sweep) -> tuple[int, str]:
        """How many runs a sweep makes; and as HTML how many, what they take, and which settings are left out."""
        settings, left_out = settings_of(sweep)
        runs = len(settings) * len(sweep.models)
        if not runs:
            return 0, left_out_html(left_out)
        cards = [MODELS[model] for model in sweep.models if model in MODELS]
        frame = self._store.snapshot().frame
        expected = sweep_cost(
            frame, cards, settings, sweep.tasks, sweep.limit, sweep.calibration[0], sweep.windows, sweep.window
        )
        words = (
            f"{escape(count(runs, 'run'))}. {escape(expected.words(runs))} What is measured already is not repeated."
        )
        return runs, f"<p>{words}</p>{left_out_html(left_out)}"


def count(number: int, noun: str) -> str:
    """12 runs, 1 run."""
    return f"{number} {noun}{'s' * (number != 1)}"


def widths_of(methods: Sequence[str]) -> list[str]:
    """The weight bits that any of the methods is defined for."""
    widths = {width for name in methods if name in METHODS for width in METHODS[name].card.bits}
    return [f"{width:g}" for width in sorted(widths)]


def fit_methods(methods: list[str], bits: list[str]) -> list[dict]:
    """What the methods have a use for, as updates of bits and groups. Bits that are still offered stay chosen."""
    widths = widths_of(methods)
    chosen = [width for width in bits if width in widths]
    grouped = any(METHODS[name].card.grouped for name in methods if name in METHODS)
    if not widths:
        return [gr.update(visible=False), gr.update(visible=False)]
    return [offer(widths, chosen, bits, visible=True), gr.update(visible=grouped)]


def calibrated(methods: Sequence[str]) -> bool:
    """Whether any of the methods looks at calibration data."""
    return any(METHODS[name].card.calibrated for name in methods if name in METHODS)


def narrowest(models: Sequence[str]) -> str:
    """The model that can do the fewest tasks: what it can do, all can."""
    return min(models, key=lambda model: MODELS[model].pictures, default=next(iter(MODELS)))


def merged(reasons: Sequence[str]) -> list[str]:
    """The reasons, each once, and those that differ in what something is not as one: "… 2 weight bits, not 3, 4"."""
    merged: dict[str, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        head, separator, value = reason.rpartition(", not ")
        merged.setdefault(head if separator else reason, []).extend([value.rstrip(".")] if separator else [])
    return [f"{head}, not {either(values)}." if values else head for head, values in merged.items()]


def either(words: Sequence[str]) -> str:
    """2, 3 or 4."""
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def left_out_html(left_out: Sequence[str]) -> str:
    """Which settings are left out and why; many are folded."""
    if not left_out:
        return ""
    reasons = merged(left_out)
    title = f"{count(len(left_out), 'setting')} left out"
    listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    opened = " open" if len(reasons) <= FEW else ""
    return f'<details class="left-out"{opened}><summary>{title}</summary><ul>{listed}</ul></details>'
