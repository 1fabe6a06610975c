"""The form of the Run tab: what one run, or a sweep of them, is composed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from leaderboard import requests
from leaderboard.cost import cost
from leaderboard.lab import Lab
from leaderboard.ui import setting_picker, signed_in
from leaderboard.ui.notice import model_note
from leaderboard.ui.sweep_form import SweepForm, calibrated, count, narrowest
from leaderboard.ui.theme import QUICK, html, offer
from quant_engine.evaluate import TASKS, Task
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS, available
from quant_engine.runs.sweep import Plan, Sweep
from quant_engine.spec import RunSpec, UserError

SINGLE, SWEEP = "One setting", "Sweep"
FIRST_TASKS = ["perplexity"]
TASK_GROUPS: dict[str, Callable[[Task], bool]] = {
    "Text": lambda task: not task.pictures and task.metric in ("perplexity", "KL divergence"),
    "Multiple choice": lambda task: not task.pictures and task.metric == "accuracy",
    "Pictures drawn by this project": lambda task: task.pictures and task.name.startswith("demo-"),
    "Published sets of pictures": lambda task: task.pictures and not task.name.startswith("demo-"),
}
"""The tasks that are offered together, and what tells them: each task is in one of them."""


def model_choices() -> list[tuple[str, str]]:
    """Models that are on this machine first; the others say what they need."""
    cards = [MODELS[model] for model in requests.run_models()]
    here = [card for card in cards if card.origin == "demo" or available(card)]
    away = [card for card in cards if card not in here]
    titles = [(card.title, card.id) for card in here]
    return titles + [(f"{card.title} (to be downloaded)", card.id) for card in away]


def task_choices(model: str, group: str) -> list[tuple[str, str]]:
    """The tasks of a group that a model can do."""
    tasks = [task for task in TASKS.values() if MODELS[model].pictures or not task.pictures]
    return [(f"{task.title} ({task.metric})", task.name) for task in tasks if TASK_GROUPS[group](task)]


def among(tasks: Sequence[str], choices: list[tuple[str, str]]) -> list[str]:
    """Those of `tasks` that are offered."""
    return [name for _, name in choices if name in tasks]


def joined(groups: Sequence[list[str] | None]) -> list[str]:
    """The tasks that are chosen in all groups; what is no list, in a forged request, holds none."""
    return [task for group in groups if isinstance(group, list) for task in group]


def option_control(name: str, field: FieldInfo) -> gr.components.Component:
    """The control for one option of a method, by the option's type. Raises TypeError for a type that has none."""
    label, info, default = name.replace("_", " ").capitalize(), field.description, field.default
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(list(get_args(field.annotation)), value=default, label=label, info=info)
    if field.annotation is bool:
        return gr.Checkbox(default, label=label, info=info, interactive=True)
    if field.annotation is int:
        return gr.Number(default, label=label, info=info, precision=0)
    if field.annotation is float:
        return gr.Number(default, label=label, info=info)
    if field.annotation is str:
        return gr.Textbox(default, label=label, info=info, max_lines=1)
    raise TypeError(f"The page has no control for option {name} of type {field.annotation}.")


def options_of(method: str, names: Mapping[str, list[str]], values: tuple[Any, ...]) -> dict[str, Any]:
    """The chosen method's options out of the values of all methods' controls; an emptied one means its default.

    Args:
        method: The chosen method; "fp16" has no options.
        names: The names of each method's options, by method.
        values: The controls' values in the same order.
    """
    start = 0
    for owner, options in names.items():
        if owner == method:
            own = dict(zip(options, values[start : start + len(options)], strict=True))
            return {name: value for name, value in own.items() if value not in (None, "")}
        start += len(options)
    return {}


class RunForm:
    """The controls that a run or a sweep is composed with, by `mode`. What both share is there once."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the form and connects it."""
        self.hosted, self._store = lab.hosted, lab.store
        model = requests.run_models()[0]
        self.mode = gr.Radio(
            [SINGLE, SWEEP], value=SINGLE, label="What to run", elem_id="run-mode", elem_classes="segments"
        )
        with gr.Column() as self.single:
            self.model = gr.Dropdown(model_choices(), value=model, label="Model", filterable=False)
            self.remark = html(model_note(model))
            self.picker = setting_picker.build(fp16=True)
        with gr.Column(visible=False, elem_id="sweep-form") as self.several:
            self.sweep = SweepForm(lab, model_choices())
        with gr.Column(elem_id="tasks"):
            self.tasks = [self._task_group(model, group) for group in TASK_GROUPS]
        self.limit = gr.Textbox("8", label="Items per task (empty for all)", max_lines=1)
        with gr.Accordion("Calibration and method options", open=False, elem_classes="more-options"):
            self._lay_out_calibration()
            self._lay_out_options()
            self.window = gr.Textbox(
                label="Perplexity window (tokens; empty for the model's own)",
                placeholder=str(MODELS[model].window),
                max_lines=1,
            )
            self.windows = gr.Textbox(label="Windows of a text (empty: as many as items)", max_lines=1)
        self.cost = html("", elem_id="run-cost", elem_classes="remark")
        if lab.hosted and signed_in.offered():
            gr.LoginButton(elem_id="sign-in", size="sm")
        self.token = gr.Textbox(label="Owner's token", type="password", visible=lab.hosted, max_lines=1)
        self.problem = html("", elem_id="run-problem")
        self.start = gr.Button("Start run", variant="primary", elem_id="start")
        self.controls = [
            self.model, *self.picker, *self.tasks, self.limit, *self.calibration, self.window, self.windows,
            *self.options,
        ]  # fmt: skip
        self._connect()

    @staticmethod
    def _task_group(model: str, group: str) -> gr.CheckboxGroup:
        choices = task_choices(model, group)
        return gr.CheckboxGroup(
            choices, value=among(FIRST_TASKS, choices), label=group, visible=bool(choices), elem_classes="pills"
        )

    def _lay_out_calibration(self) -> None:
        with gr.Column(visible=False) as self.calibration_column:
            source = gr.Textbox(
                "builtin",
                label="Calibration text (builtin, the path of a file, or pictures)",
                max_lines=1,
                visible=not self.hosted,
            )
            with gr.Row():
                samples = gr.Textbox("32", label="Samples", max_lines=1)
                length = gr.Textbox("512", label="Tokens each", max_lines=1)
        self.calibration = [source, samples, length]

    def _lay_out_options(self) -> None:
        """A column of controls for each method, that of the chosen one visible."""
        self.columns, self.options = {}, []
        with gr.Column() as self.single_options:
            for name, method in METHODS.items():
                with gr.Column(visible=name == setting_picker.FIRST_SETTING.method) as self.columns[name]:
                    self.options += [option_control(*option) for option in method.Options.model_fields.items()]

    def _connect(self) -> None:
        """Lets the form follow the chosen mode, models and methods."""
        self.model.input(self._fit_model, [self.model, *self.tasks], [self.remark, *self.tasks, self.window], **QUICK)
        method, sweep = self.picker.method, self.sweep
        method.input(self._fit_method, method, [self.calibration_column, *self.columns.values()], **QUICK)
        sweep.models.input(self._fit_models, [sweep.models, *self.tasks], [*self.tasks, self.window], **QUICK)
        sweep.methods.input(
            lambda methods: gr.update(visible=calibrated(methods)), sweep.methods, self.calibration_column, **QUICK
        )
        self.mode.input(
            self._fit_mode,
            [self.mode, self.model, method, sweep.models, sweep.methods, *self.tasks],
            [*self.parts, self.calibration_column, *self.tasks, self.window],
            **QUICK,
        )
        counted = [self.mode, *self.controls[: -len(self.options)], *sweep.controls]
        self.cost.value = self._preview(*(control.value for control in counted))[0]
        gr.on([control.change for control in counted], self._preview, counted, [self.cost, self.start], **QUICK)

    @property
    def parts(self) -> list[gr.Column]:
        """What is there in one mode alone: of one setting, its options, of a sweep."""
        return [self.single, self.single_options, self.several]

    def _preview(self, mode: str, *values) -> tuple:
        """What a run or a sweep will take, in a sentence or two, and what the button says. Nothing is said of what is
        no run yet; a sweep names what is missing, for it has lists that may be empty."""
        if mode != SWEEP:
            return self._cost(*values[: -len(self.sweep.controls)]), gr.update(value="Start run")
        try:
            runs, words = self.sweep.describe(self._read_sweep(values))
        except UserError as refusal:
            return f"<p>{escape(str(refusal))}</p>", gr.update(value="Start sweep")
        return words, gr.update(value=f"Start {count(runs, 'run')}" if runs else "Start sweep")

    def _cost(self, model, method, bits, a_bits, group, *values) -> str:
        """What the run will take, in a sentence or two; nothing for what is no run yet."""
        tasks, (limit, source, samples, length, window, windows) = self._shared(values)
        try:
            setting = requests.setting(method, bits, group, a_bits=a_bits)
            looked_at = requests.calibration(source, samples, length) if calibrated([method]) else None
            items, lengths = requests.items(limit), (requests.most_windows(windows), requests.window_tokens(window))
        except UserError:
            return ""
        expected = cost(self._store.snapshot().frame, MODELS[model], setting, tasks, items, looked_at, *lengths)
        return f"<p>{escape(expected.words())}</p>"

    def _shared(self, values: Sequence[Any]) -> tuple[list[str], Sequence[Any]]:
        """Of the values of `controls` behind the setting: the tasks; and limit, calibration (three), window,
        windows."""
        groups = len(self.tasks)
        return joined(values[:groups]), values[groups : groups + 3 + len(self.calibration)]

    def _fit_model(self, model: str, *tasks: list[str]) -> tuple:
        """What a model allows. Choices that it allows stay: a list that merely loses the focus asks this, too."""
        return model_note(model), *self._fit_tasks(model, tasks), gr.update(placeholder=str(MODELS[model].window))

    def _fit_models(self, models: list[str], *tasks: list[str]) -> tuple:
        """What all models of a sweep allow."""
        return *self._fit_tasks(narrowest(models), tasks), gr.update(placeholder="")

    @staticmethod
    def _fit_tasks(model: str, tasks: Sequence[list[str]]) -> list[dict]:
        choices = [task_choices(model, group) for group in TASK_GROUPS]
        values = [among(of_group, offered) for of_group, offered in zip(tasks, choices, strict=True)]
        if joined(tasks) and not joined(values):
            values = [among(FIRST_TASKS, offered) for offered in choices]
        return [
            offer(offered, value, before, visible=bool(offered))
            for offered, value, before in zip(choices, values, tasks, strict=True)
        ]

    def _fit_mode(self, mode: str, model: str, method: str, models: list[str], methods: list[str], *tasks) -> list:
        """Shows the controls of one setting or of a sweep, and what these allow."""
        sweeping = mode == SWEEP
        tasks_and_window = self._fit_models(models, *tasks) if sweeping else self._fit_model(model, *tasks)[1:]
        looks_at_data = calibrated(methods if sweeping else [method])
        return [*self._show_parts(sweeping), gr.update(visible=looks_at_data), *tasks_and_window]

    @staticmethod
    def _show_parts(sweeping: bool) -> list[dict]:
        """Updates of `parts`."""
        return [gr.update(visible=not sweeping), gr.update(visible=not sweeping), gr.update(visible=sweeping)]

    def _fit_method(self, method: str) -> list[dict]:
        """Shows what a method has a use for."""
        return [gr.update(visible=calibrated([method])), *[gr.update(visible=name == method) for name in self.columns]]

    def read(self, model, method, bits, a_bits, group, *values) -> RunSpec:
        """The run that `controls` describe. Raises UserError for one that the engine would refuse."""
        tasks, (limit, source, samples, length, window, windows) = self._shared(values)
        names = {name: list(method.Options.model_fields) for name, method in METHODS.items()}
        options = options_of(method, names, values[-len(self.options) :])
        setting = requests.setting(method, bits, group, options, a_bits=a_bits, hosted=self.hosted)
        calibration = requests.calibration(source, samples, length) if calibrated([method]) else None
        lengths = {"limit": limit, "window": window, "windows": windows}
        return requests.run(model, setting, tasks, **lengths, calibration=calibration, hosted=self.hosted)

    def read_sweep(self, *values) -> Plan:
        """The runs of the sweep that `controls` and those of the sweep describe. Raises UserError as `read` does."""
        return requests.sweep_runs(self._read_sweep(values))

    def _read_sweep(self, values: Sequence[Any]) -> Sweep:
        """The sweep that the values of `controls`, with or without options, and of the sweep's controls describe."""
        tasks, (limit, source, samples, length, window, windows) = self._shared(values[1 + len(self.picker) :])
        calibration = requests.calibration(source, samples, length)
        lengths = {"limit": limit, "window": window, "windows": windows}
        return self.sweep.read(*values[-len(self.sweep.controls) :], tasks, calibration, **lengths)

    @staticmethod
    def _filled(model: str, group: str, tasks: Sequence[str]) -> dict:
        choices = task_choices(model, group)
        return gr.update(choices=choices, value=among(tasks, choices), visible=bool(choices))

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `fill` writes."""
        return [
            *self.controls,
            self.remark,
            self.calibration_column,
            *self.columns.values(),
            self.mode,
            *self.parts,
        ]

    def fill(self, spec: RunSpec) -> list:
        """Updates of `outputs` that set the form to a run of a known model."""
        weights, setting, calibration = spec.weights, spec.weights.setting, spec.weights.calibration
        window = MODELS[weights.model].window
        return [
            weights.model,
            *setting_picker.fill(setting),
            *(self._filled(weights.model, group, spec.tasks) for group in TASK_GROUPS),
            "" if spec.limit is None else str(spec.limit),
            *(
                [calibration.source, str(calibration.samples), str(calibration.length)]
                if calibration
                else [gr.skip()] * 3
            ),
            gr.update(value="" if spec.window == window else str(spec.window), placeholder=str(window)),
            "" if spec.windows is None else str(spec.windows),
            *(
                setting.options.get(option, field.default) if name == setting.method else gr.skip()
                for name, method in METHODS.items()
                for option, field in method.Options.model_fields.items()
            ),
            model_note(weights.model),
            *self._fit_method(setting.method),
            SINGLE,
            *self._show_parts(False),
        ]
