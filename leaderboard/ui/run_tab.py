"""The Run tab: compose a setting, start it, follow it. All state comes from the queue, so reloading loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from leaderboard import requests
from leaderboard.cost import cost
from leaderboard.lab import Lab
from leaderboard.ui import run_card, setting_picker, signed_in
from leaderboard.ui.notice import model_note, notice
from leaderboard.ui.pressed import pressed
from leaderboard.ui.run_detail import RunDetail
from leaderboard.ui.theme import QUICK, html, offer
from quant_engine.evaluate import TASKS, Task
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS, available
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import Queue, QueuedRun
from quant_engine.spec import RunSpec, UserError

LOG_LINES = 200
RECENT = 12
FIRST_TASKS = ["perplexity"]
TASK_GROUPS: dict[str, Callable[[Task], bool]] = {
    "Text": lambda task: not task.pictures and task.metric in ("perplexity", "KL divergence"),
    "Multiple choice": lambda task: not task.pictures and task.metric == "accuracy",
    "Pictures drawn by this project": lambda task: task.pictures and task.name.startswith("demo-"),
    "Published sets of pictures": lambda task: task.pictures and not task.name.startswith("demo-"),
}
"""The tasks that are offered together, and what tells them: each task is in one of them."""
_LOADING = '<div class="run empty">Looking at the queue …</div>'
_PICK_JS = """
element.addEventListener('click', (event) => {
  const run = event.target.closest('button[data-run]');
  if (run) trigger('pick', { run: run.dataset.run });
});
"""


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
    """The tasks that are chosen in all groups."""
    return [task for group in groups for task in group or []]


def run_to_show(queue: Queue, run_id: str | None, runs: list[QueuedRun]) -> QueuedRun | None:
    """The chosen run, else of the recent `runs` the one that runs, else the newest."""
    for run in runs:
        if run.run_id == run_id:
            return run
    if run_id:
        try:
            return queue.get(run_id)
        except UserError:
            pass  # it was chosen before the queue's file was replaced; show what is there now
    return next((run for run in runs if run.state == "running"), runs[0] if runs else None)


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
    """The controls that a run is composed with."""

    def __init__(self, lab: Lab) -> None:
        """Lays out the form and connects it."""
        self.hosted, self._store = lab.hosted, lab.store
        model = requests.run_models()[0]
        self.model = gr.Dropdown(model_choices(), value=model, label="Model", filterable=False)
        self.remark = html(model_note(model))
        self.picker = setting_picker.build(fp16=True)
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
        self.cost = html("", elem_id="run-cost", elem_classes="remark")
        if lab.hosted and signed_in.offered():
            gr.LoginButton(elem_id="sign-in", size="sm")
        self.token = gr.Textbox(label="Owner's token", type="password", visible=lab.hosted, max_lines=1)
        self.controls = [
            self.model, *self.picker, *self.tasks, self.limit, *self.calibration, self.window, *self.options
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
        for name, method in METHODS.items():
            with gr.Column(visible=name == setting_picker.FIRST_SETTING.method) as self.columns[name]:
                self.options += [option_control(*option) for option in method.Options.model_fields.items()]

    def _connect(self) -> None:
        """Lets the form follow the chosen model and method."""
        self.model.input(self._fit_model, [self.model, *self.tasks], [self.remark, *self.tasks, self.window], **QUICK)
        method = self.picker.method
        method.input(self._fit_method, method, [self.calibration_column, *self.columns.values()], **QUICK)
        counted = [self.model, *self.picker, self.limit, *self.calibration, *self.tasks]
        self.cost.value = self._cost(*(control.value for control in counted))
        gr.on([control.change for control in counted], self._cost, counted, self.cost, **QUICK)

    def _cost(self, model, method, bits, a_bits, group, limit, source, samples, length, *tasks) -> str:
        """What the run will take, in a sentence or two; nothing for what is no run yet."""
        try:
            setting = requests.setting(method, bits, group, a_bits=a_bits)
            calibrated = method in METHODS and METHODS[method].card.calibrated
            looked_at = requests.calibration(source, samples, length) if calibrated else None
            items = requests.items(limit)
        except UserError:
            return ""
        expected = cost(self._store.snapshot().frame, MODELS[model], setting, joined(tasks), items, looked_at)
        return f"<p>{escape(expected.words())}</p>"

    def _fit_model(self, model: str, *tasks: list[str]) -> tuple:
        """What a model allows. Choices that it allows stay: a list that merely loses the focus asks this, too."""
        choices = [task_choices(model, group) for group in TASK_GROUPS]
        values = [among(of_group, offered) for of_group, offered in zip(tasks, choices, strict=True)]
        if joined(tasks) and not joined(values):
            values = [among(FIRST_TASKS, offered) for offered in choices]
        groups = [
            offer(offered, value, before, visible=bool(offered))
            for offered, value, before in zip(choices, values, tasks, strict=True)
        ]
        return model_note(model), *groups, gr.update(placeholder=str(MODELS[model].window))

    def _fit_method(self, method: str) -> list[dict]:
        """Shows what a method has a use for."""
        calibrated = method in METHODS and METHODS[method].card.calibrated
        return [gr.update(visible=calibrated), *[gr.update(visible=name == method) for name in self.columns]]

    def read(self, model, method, bits, a_bits, group, *values) -> RunSpec:
        """The run that the controls describe. Raises UserError for one that the engine would refuse."""
        tasks, (limit, source, samples, length, window, *options) = values[: len(self.tasks)], values[len(self.tasks) :]
        names = {name: list(method.Options.model_fields) for name, method in METHODS.items()}
        setting = requests.setting(
            method, bits, group, options_of(method, names, options), a_bits=a_bits, hosted=self.hosted
        )
        calibrated = method in METHODS and METHODS[method].card.calibrated
        calibration = requests.calibration(source, samples, length) if calibrated else None
        return requests.run(
            model, setting, joined(tasks), limit=limit, window=window, calibration=calibration, hosted=self.hosted
        )

    @staticmethod
    def _filled(model: str, group: str, tasks: Sequence[str]) -> dict:
        choices = task_choices(model, group)
        return gr.update(choices=choices, value=among(tasks, choices), visible=bool(choices))

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `fill` writes."""
        return [*self.controls, self.remark, self.calibration_column, *self.columns.values()]

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
            *(
                setting.options.get(option, field.default) if name == setting.method else gr.skip()
                for name, method in METHODS.items()
                for option, field in method.Options.model_fields.items()
            ),
            model_note(weights.model),
            *self._fit_method(setting.method),
        ]


class RunTab:
    """The form, and the shown run: `run_id` holds its id, and `see` leads to its row on the leaderboard.

    All state comes from the queue: the page asks it once a second, and draws what has changed.
    """

    def __init__(self, lab: Lab) -> None:
        """Lays out the tab and connects it."""
        self.lab, self.detail = lab, RunDetail(lab.store)
        with gr.Row(elem_classes="bench"):
            with gr.Column(elem_classes="bench-side form-side"):
                self.form = RunForm(lab)
                self.problem = html("", elem_id="run-problem")
                self.start = gr.Button("Start run", variant="primary", elem_id="start")
            with gr.Column(elem_classes="bench-main"):
                self.run_id = gr.State(None)
                card = html(_LOADING, elem_id="run")
                with gr.Row(elem_classes="run-buttons"):
                    self.cancel = gr.Button("Cancel", visible=False, elem_id="cancel", size="sm", min_width=88)
                    self.resume = gr.Button("Resume", visible=False, elem_id="resume", size="sm", min_width=88)
                    self.see = gr.Button("See it on the leaderboard", visible=False, elem_id="see", size="sm")
                detail = html("", elem_id="run-detail")
                with gr.Accordion("Log", open=False, elem_classes="more-options"):
                    log = html("", elem_id="log")
                html("<h3>Recent runs</h3>")
                self.recent = html("", js_on_load=_PICK_JS, elem_id="runs")
        self.outputs = [self.run_id, card, self.cancel, self.resume, self.see, detail, log, self.recent]
        self._connect()

    def _connect(self) -> None:
        answers, stopping = [self.problem, *self.outputs], [self.run_id, self.form.token]
        self.start.click(self._start, [self.form.token, *self.form.controls], answers, **QUICK)
        self.cancel.click(partial(self._act, self.lab.queue.cancel), stopping, answers, **QUICK)
        self.resume.click(partial(self._act, self.lab.queue.resume), stopping, answers, **QUICK)
        self.recent.pick(self._pick, None, self.outputs, **QUICK)
        last = gr.State(None)
        gr.Timer(1).tick(self._tick, [self.run_id, last], [*self.outputs, last], **QUICK)

    def _show(self, run_id: str | None) -> list:
        """The values of `outputs` for a run, else for the one that runs, else for the newest."""
        try:
            runs = self.lab.queue.list(RECENT)
            run = run_to_show(self.lab.queue, run_id, runs)
            log = self.lab.queue.log_tail(run.run_id, LOG_LINES) if run else ""
        except UserError as refusal:
            return [run_id, notice(str(refusal)), *[gr.update(visible=False)] * 3, "", "", ""]
        state = run.state if run else ""
        return [
            run.run_id if run else None,
            run_card.card(run),
            gr.update(visible=state in ("queued", "running") and not run.cancelling),
            gr.update(visible=state in ("failed", "cancelled")),
            gr.update(visible=state == "done"),
            self.detail.html(run),
            f'<div class="tail"><pre>{escape(log)}</pre></div>' if log else '<p class="hint">Nothing yet.</p>',
            run_card.runs_list(runs, run.run_id if run else None),
        ]

    def _tick(self, run_id: str | None, last: list | None) -> list:
        """The values that have changed since the last tick, and all of them for the next."""
        values = self._show(run_id)
        if values == last:
            return [gr.skip()] * (len(values) + 1)
        before = last or [None] * len(values)
        return [*(gr.skip() if value == old else value for value, old in zip(values, before, strict=True)), values]

    def _pick(self, event: gr.EventData) -> list:
        return self._show(pressed(event, "run"))

    def _start(self, token: str | None, *controls) -> list:
        """Queues the run of the form. One whose results are gone from the disk is computed again."""
        try:
            submitter = self.lab.check_may_start(token or "")  # first: reading the form may ask the hub
            spec = self.form.read(*controls)
            run_folder.check_writable()
            return ["", *self._show(self.lab.queue.submit(spec, submitter))]
        except UserError as refusal:
            return self._refuse(refusal)

    def _act(self, action: Callable[[str], object], run_id: str | None, token: str | None) -> list:
        """Cancels or resumes the shown run."""
        try:
            self.lab.check_may_start(token or "")
            action(run_id)
        except UserError as refusal:
            return self._refuse(refusal)
        return ["", *self._show(run_id)]

    def _refuse(self, refusal: UserError) -> list:
        return [notice(str(refusal)), *[gr.skip()] * len(self.outputs)]
