"""The Run tab: compose a setting, start it, follow it. All state comes from the queue, so reloading loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from leaderboard import requests
from leaderboard.lab import Lab
from leaderboard.ui import run_card, setting_picker
from leaderboard.ui.ask_tab import model_note, notice
from leaderboard.ui.theme import html, offer
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS, available
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import Queue, QueuedRun
from quant_engine.spec import RunSpec, UserError

LOG_LINES = 200
RECENT = 12
_LOADING = '<div class="run empty">Looking at the queue …</div>'
_PICK_JS = """
element.addEventListener('click', (event) => {
  const run = event.target.closest('button[data-run]');
  if (run) trigger('pick', { run: run.dataset.run });
});
"""


def model_choices() -> list[tuple[str, str]]:
    """Models that are on this machine first; the others say what they need."""
    here = [(card.title, card.id) for card in MODELS.values() if card.origin == "demo" or available(card)]
    away = [(f"{card.title} (to be downloaded)", card.id) for card in MODELS.values()]
    return here + [choice for choice in away if choice[1] not in {id_ for _, id_ in here}]


def task_choices(model: str) -> list[tuple[str, str]]:
    """The tasks that a model can do."""
    pictures = model in MODELS and MODELS[model].pictures
    return [(f"{task.title} ({task.metric})", name) for name, task in TASKS.items() if pictures or not task.pictures]


def window_of(model: str) -> str:
    """The perplexity window that a model is measured with unless another is asked for."""
    return str(MODELS[model].window) if model in MODELS else ""


def looked_at(queue: Queue, chosen: str | None, runs: list[QueuedRun]) -> QueuedRun | None:
    """The run to show: the chosen one, else the one that runs, else the newest."""
    for run in runs:
        if run.run_id == chosen:
            return run
    if chosen:
        try:
            return queue.get(chosen)
        except UserError:
            pass  # it was chosen before the queue's file was replaced; show what is there now
    return next((run for run in runs if run.state == "running"), runs[0] if runs else None)


def start(lab: Lab, spec: RunSpec, token: str) -> str:
    """Queues a run and returns its id. One whose results are gone from the disk is computed again."""
    lab.check_may_start(token)
    run_folder.check_writable()
    return lab.queue.submit(spec)


def option_control(name: str, field: FieldInfo) -> gr.components.Component:
    """The control for one option of a method, by the option's type."""
    label = name.replace("_", " ").capitalize()
    info = field.description
    if field.annotation is bool:
        return gr.Checkbox(field.default, label=label, info=info, interactive=True)
    if get_origin(field.annotation) is Literal:
        return gr.Dropdown(list(get_args(field.annotation)), value=field.default, label=label, info=info)
    return gr.Number(field.default, label=label, info=info, precision=0 if field.annotation is int else None)


def options_of(method: str, names: Mapping[str, list[str]], values: tuple[Any, ...]) -> dict[str, Any]:
    """The chosen method's options out of the values of all methods' controls; an emptied one means its default."""
    taken = 0
    for owner, options in names.items():
        if owner == method:
            chosen = dict(zip(options, values[taken : taken + len(options)], strict=True))
            return {name: value for name, value in chosen.items() if value is not None}
        taken += len(options)
    return {}


@dataclass(frozen=True)
class Wired:
    """What the page connects the tab by: the button that leads to the leaderboard, the id of the run shown, and the
    `form` that `fill` sets to a run."""

    see: gr.Button
    chosen: gr.State
    form: list
    fill: Callable[[RunSpec], list]


def build(lab: Lab) -> Wired:
    """Lays out the tab and wires it."""
    first_model = next(iter(MODELS))
    names = {name: list(method.Options.model_fields) for name, method in METHODS.items()}
    with gr.Row(elem_classes="bench"):
        with gr.Column(elem_classes="bench-side form-side"):
            model = gr.Dropdown(model_choices(), value=first_model, label="Model", filterable=False)
            remark = html(model_note(first_model))
            picker = setting_picker.build("rtn", "4", "64", fp16=True)
            tasks = gr.CheckboxGroup(
                task_choices(first_model), value=["perplexity"], label="Measure", elem_classes="pills", elem_id="tasks"
            )
            limit = gr.Textbox("8", label="Items per task (empty for all)", max_lines=1)
            with gr.Accordion("Calibration and method options", open=False, elem_classes="more-options"):
                with gr.Column(visible=False) as calibration_row:
                    source = gr.Textbox(
                        "builtin",
                        label="Calibration text (builtin, the path of a file, or pictures)",
                        max_lines=1,
                        visible=not lab.hosted,
                    )
                    with gr.Row():
                        samples = gr.Textbox("32", label="Samples", max_lines=1)
                        length = gr.Textbox("512", label="Tokens each", max_lines=1)
                panels, controls = {}, []
                for name, method in METHODS.items():
                    with gr.Column(visible=name == "rtn") as panels[name]:
                        controls += [option_control(key, field) for key, field in method.Options.model_fields.items()]
                window = gr.Textbox(
                    label="Perplexity window (tokens; empty for the model's own)", placeholder=window_of(first_model),
                    max_lines=1,
                )  # fmt: skip
            token = gr.Textbox(label="Owner's token", type="password", visible=lab.hosted, max_lines=1)
            problem = html("", elem_id="run-problem")
            begin = gr.Button("Start run", variant="primary", elem_id="start")
        with gr.Column(elem_classes="bench-main"):
            chosen = gr.State(None)
            current = html(_LOADING, elem_id="run")
            with gr.Row(elem_classes="run-buttons"):
                cancel = gr.Button("Cancel", visible=False, elem_id="cancel", size="sm", min_width=88)
                resume = gr.Button("Resume", visible=False, elem_id="resume", size="sm", min_width=88)
                see = gr.Button("See it on the leaderboard", visible=False, elem_id="see", size="sm")
            with gr.Accordion("Log", open=False, elem_classes="more-options"):
                log = html("", elem_id="log")
            html("<h3>Recent runs</h3>")
            recent = html("", js_on_load=_PICK_JS, elem_id="runs")
    shown = [chosen, current, cancel, resume, see, log, recent]
    seen = gr.State(None)

    def look(run_id: str | None) -> list:
        try:
            runs = lab.queue.list(RECENT)
            run = looked_at(lab.queue, run_id, runs)
            tail = lab.queue.log_tail(run.run_id, LOG_LINES) if run else ""
        except UserError as refusal:
            return [run_id, notice(str(refusal)), *[gr.update(visible=False)] * 3, "", ""]
        state = run.state if run else ""
        return [
            run.run_id if run else None,
            run_card.card(run),
            gr.update(visible=state in ("queued", "running") and not run.cancelling),
            gr.update(visible=state in ("failed", "cancelled")),
            gr.update(visible=state == "done"),
            f'<div class="tail"><pre>{escape(tail)}</pre></div>' if tail else '<p class="hint">Nothing yet.</p>',
            run_card.runs_list(runs, run.run_id if run else None),
        ]

    def tick(run_id: str | None, before: object) -> list:
        now = look(run_id)
        return [gr.skip()] * (len(shown) + 1) if now == before else [*now, now]

    def pick(event: gr.EventData) -> list:
        return look(str(event._data["run"]))

    def submit(
        model_id, method, bits, a_bits, group, wanted, most, text, count, tokens, span, secret, *options
    ) -> list:
        try:
            setting = requests.setting(method, bits, group, options_of(method, names, options), a_bits=a_bits)
            calibrated = method in METHODS and METHODS[method].card.calibrated
            calibration = requests.calibration(text, count, tokens) if calibrated else None
            spec = requests.run(
                model_id, setting, wanted, limit=most, window=span, calibration=calibration, hosted=lab.hosted
            )
            return ["", *look(start(lab, spec, secret or ""))]
        except UserError as refusal:
            return [notice(str(refusal)), *[gr.skip()] * len(shown)]

    def act(action: str):
        def do(run_id: str | None, secret: str) -> list:
            try:
                lab.check_may_start(secret or "")
                getattr(lab.queue, action)(run_id)
            except UserError as refusal:
                return [notice(str(refusal)), *[gr.skip()] * len(shown)]
            return ["", *look(run_id)]

        return do

    def fit_model(model_id: str, wanted: list[str]) -> tuple:
        """What the model allows. What is chosen stays if it is allowed: a list that merely loses the focus asks this,
        too."""
        offered = task_choices(model_id)
        kept = [name for name in wanted if name in {id_ for _, id_ in offered}]
        value = kept if kept == wanted else kept or ["perplexity"]
        return model_note(model_id), offer(offered, value, wanted), gr.update(placeholder=window_of(model_id))

    def fit_method(method: str) -> list[dict]:
        calibrated = method in METHODS and METHODS[method].card.calibrated
        return [gr.update(visible=calibrated), *[gr.update(visible=name == method) for name in panels]]

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    model.input(fit_model, [model, tasks], [remark, tasks, window], **quick)
    picker.method.input(fit_method, picker.method, [calibration_row, *panels.values()], **quick)
    form = [model, *picker, tasks, limit, source, samples, length, window, token, *controls]
    begin.click(submit, form, [problem, *shown], **quick)
    cancel.click(act("cancel"), [chosen, token], [problem, *shown], **quick)
    resume.click(act("resume"), [chosen, token], [problem, *shown], **quick)
    recent.pick(pick, None, shown, **quick)
    gr.Timer(1).tick(tick, [chosen, seen], [*shown, seen], **quick)

    def fill(spec: RunSpec) -> list:
        """The form set to a run."""
        setting, text = spec.weights.setting, spec.weights.calibration
        calibration = (text.source, text.samples, text.length) if text else (None, None, None)
        method = METHODS.get(setting.method)
        narrow = [str(width) for width in method.card.a_bits if width < 16] if method else []
        group = gr.update(
            value=str(setting.group_size or requests.PER_ROW), visible=bool(method and method.card.grouped)
        )
        activations = str(setting.a_bits) if str(setting.a_bits) in narrow else None
        return [
            spec.weights.model,
            setting.method,
            gr.update(value=f"{setting.w_bits:g}", visible=method is not None),
            gr.update(choices=narrow, value=activations, visible=bool(narrow)),
            group,
            gr.update(choices=task_choices(spec.weights.model), value=list(spec.tasks)),
            "" if spec.limit is None else str(spec.limit),
            *(gr.skip() if asked is None else str(asked) for asked in calibration),
            gr.update(
                value="" if spec.window == MODELS[spec.weights.model].window else str(spec.window),
                placeholder=window_of(spec.weights.model),
            ),
            model_note(spec.weights.model),
            *fit_method(setting.method),
            *(
                setting.options.get(option, field.default) if name == setting.method else gr.skip()
                for name, method in METHODS.items()
                for option, field in method.Options.model_fields.items()
            ),
        ]

    described = [limit, source, samples, length, window, remark, calibration_row, *panels.values(), *controls]
    return Wired(see, chosen, [model, *picker, tasks, *described], fill)
