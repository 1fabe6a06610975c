"""From what a visitor typed to what the engine is asked: settings, runs, questions, or one sentence that says why not.

A hosted page takes only what it offers itself: no paths, no foreign models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from leaderboard import room
from quant_engine.answers.messages import AskRequest, Turn
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS, resolve_setting
from quant_engine.models.catalog import MODELS, ModelCard, available, model_card
from quant_engine.models.device import answering_device, default_device, default_dtype
from quant_engine.runs import executors
from quant_engine.runs.needs import check_room
from quant_engine.runs.resolve import resolve
from quant_engine.runs.sweep import Plan, Sweep, plan
from quant_engine.spec import Calibration, OptionValue, QuantSetting, RunSpec, UserError, WeightSpec, quoted, sentence

MOST = 2**31 - 1
"""The largest number of anything that can be asked for."""
PER_ROW = "per row"
OWN_DATA = ("builtin", "demo")
"""What comes with the project, and names neither a file nor anything on the hub."""
FP16 = QuantSetting()


def picture_models() -> list[ModelCard]:
    """The models that can be asked about a picture, the one to offer first at the head: with a GPU the large ones, else
    the demo model. Those that can't be asked here come last."""
    gpu = answering_device() == "cuda"
    cards = [card for card in MODELS.values() if card.pictures]
    return sorted(cards, key=lambda card: (bool(room.lack(card)), gpu and card.origin == "demo"))


def run_models() -> list[str]:
    """The ids of the models that can be chosen for runs: those of LOWBIT_RUN_MODELS (with commas between), else all."""
    named = [name.strip() for name in os.environ.get("LOWBIT_RUN_MODELS", "").split(",")]
    return [model for model in MODELS if model in named] or list(MODELS)


def model_choices() -> list[tuple[str, str]]:
    """(label, id) of the models that take pictures; a label says which of them this machine can't answer with."""
    return [(f"{card.title} {room.mark(card)}".strip(), card.id) for card in picture_models()]


def setting(
    method: str,
    bits: str | float,
    group: str | float | None,
    options: Mapping[str, OptionValue] | None = None,
    *,
    a_bits: str | float | None = None,
    hosted: bool = False,
) -> QuantSetting:
    """The resolved setting that the controls show. Those that the method has no use for are hidden, and ignored.

    Raises UserError for a setting that the method is not defined for, and on a hosted page for options in free words,
    which name files.
    """
    if method == "fp16":
        return FP16
    card = METHODS[method].card if isinstance(method, str) and method in METHODS else None
    fields = METHODS[method].Options.model_fields if hosted and card else {}
    for name, value in (options or {}).items():
        if name in fields and fields[name].annotation is str and value not in OWN_DATA:
            data = " or ".join(OWN_DATA)
            raise UserError(f"On this page option {name} is {data}; your own works where you run the lab.")
    try:
        return resolve_setting(
            QuantSetting(
                method=method,
                w_bits=_bits(bits),
                a_bits=_count(a_bits, "Activation bits") or 16 if card and card.low_a_bits else 16,
                group_size=_group(group) if card is None or card.grouped else None,
                options=dict(options or {}),
            )
        )
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def run(
    model: str,
    setting: QuantSetting,
    tasks: Sequence[str],
    *,
    limit: str | float | None = None,
    window: str | float | None = None,
    windows: str | float | None = None,
    calibration: Calibration | None = None,
    hosted: bool = False,
) -> RunSpec:
    """The resolved run. Raises UserError for anything that the engine would refuse later.

    Args:
        limit: The most items of each task; empty for all.
        window: The perplexity window in tokens; empty for the model's own.
        windows: The most windows of a text; empty for as many as `limit`.
        calibration: What a method that is calibrated looks at.
        hosted: Whether the page is public, and takes only what it offers itself.
    """
    _check_some("task to measure", tasks)
    if hosted:
        _check_offered([model], tasks, calibration)
    device = default_device()
    try:
        spec = RunSpec(
            weights=WeightSpec(model=model, setting=setting, calibration=calibration),
            device=device,
            dtype=default_dtype(device),
            tasks=tasks,
            limit=items(limit),
            windows=most_windows(windows),
            window=window_tokens(window) or model_card(model).window,
        )
    except ValidationError as error:
        raise UserError(sentence(error)) from None
    resolved = resolve(spec).spec
    _check_here(resolved.weights.model)
    if executors.is_local():
        check_room(resolved)
    return resolved


def sweep(
    models: Sequence[str],
    methods: Sequence[str],
    bits: Sequence[str | float],
    groups: Sequence[str | float],
    tasks: Sequence[str],
    *,
    limit: str | float | None = None,
    window: str | float | None = None,
    windows: str | float | None = None,
    calibration: Calibration | None = None,
    hosted: bool = False,
) -> Sweep:
    """The sweep that the controls show, each method with its default options. Asks nothing of the hub or the disk.

    Raises UserError where a list is empty that the methods have a use for, and for what is no number or not offered.
    The other arguments are as `run` takes them; `window` empty is each model's own.
    """
    _check_some("model", models)
    _check_some("method", methods)
    cards = [METHODS[name].card for name in methods if isinstance(name, str) and name in METHODS]
    if cards:
        _check_some("number of weight bits", bits)
    if any(card.grouped for card in cards):
        _check_some("group size", groups)
    _check_some("task to measure", tasks)
    if hosted:
        _check_offered(models, tasks, calibration)
    try:
        return Sweep(
            models=models,
            methods=methods,
            bits=[_bits(width) for width in bits or ()],
            group_sizes=[_group(size) for size in groups or ()] or [None],
            tasks=tasks,
            limit=items(limit),
            windows=most_windows(windows),
            window=window_tokens(window),
            calibration=calibration or Calibration(),
        )
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def sweep_runs(asked: Sweep) -> Plan:
    """The resolved runs of a sweep. Raises UserError for anything that the engine would refuse later."""
    try:
        planned = plan(asked)
    except ValidationError as error:
        raise UserError(sentence(error)) from None
    for model in {spec.weights.model for spec in planned.specs}:
        _check_here(model)
    if executors.is_local():
        for spec in planned.specs:
            check_room(spec)
    return planned


def most_windows(windows: str | float | None) -> int | None:
    """The most windows of a text that the control shows; None for as many as items. Raises UserError."""
    return _count(windows, "Windows of a text")


def window_tokens(window: str | float | None) -> int | None:
    """The tokens of a perplexity window that the control shows; None for the model's own. Raises UserError."""
    return _count(window, "Window")


def items(limit: str | float | None) -> int | None:
    """The most items of a task that the control shows; None for all. Raises UserError."""
    return _count(limit, "Items per task")


def calibration(source: str, samples: str | float | None, length: str | float | None) -> Calibration:
    """The calibration that the controls show; empty numbers mean the engine's defaults."""
    numbers = {"samples": _count(samples, "Calibration samples"), "length": _count(length, "Calibration length")}
    if source is None or (isinstance(source, str) and not source.strip()):
        source = "builtin"
    try:
        return Calibration(source=source, **{name: value for name, value in numbers.items() if value})
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def question(
    model: str,
    picture: str | None,
    text: str,
    settings: Sequence[QuantSetting],
    most_tokens: int,
    earlier: Sequence[Turn] = (),
) -> AskRequest:
    """A question about a picture, for FP16 and other settings; `earlier` are those that it follows."""
    if model not in [card.id for card in MODELS.values() if card.pictures]:
        raise UserError("Choose a model from the list.")
    if not picture:
        raise UserError("Give a picture first: drop one, or choose an example.")
    try:
        request = AskRequest(
            model=model,
            image=Path(picture),
            question="" if text is None else text,
            sides=(FP16, *settings),
            earlier=tuple(earlier),
            max_new_tokens=most_tokens,
        )
    except ValidationError as error:
        raise UserError(sentence(error)) from None
    _check_here(model)
    settled = room.settled(request)
    if len(settled) == len(request.sides) and all(event.kind == "error" for event in settled.values()):
        raise UserError(settled[0].message)
    return request


def _check_some(what: str, chosen: Sequence[str | float] | None) -> None:
    """Raises UserError for a list in which nothing is chosen."""
    if not chosen or not isinstance(chosen, list | tuple):
        raise UserError(f"Choose at least one {what}.")


def _check_offered(models: Sequence[str], tasks: Sequence[str], calibration: Calibration | None) -> None:
    """Raises UserError for what a hosted page does not offer itself."""
    if not (all(model in run_models() for model in models) and all(task in list(TASKS) for task in tasks)):
        raise UserError("On this page choose a model and tasks from the lists.")
    if calibration and calibration.source != "builtin":
        raise UserError("On this page the calibration text is builtin; your own text works where you run the lab.")


def _check_here(model: str) -> None:
    """A demo model has to be fetched by its own command; others are downloaded when they are used."""
    card = MODELS.get(model)
    if card and card.origin == "demo" and not available(card):
        raise UserError(f"{card.title} is not on this machine yet: run `python -m quant_engine get demo`.")


def method_choices(fp16: bool) -> list[tuple[str, str]]:
    """(title, id) of the methods, with the unquantized model first where it makes sense."""
    methods = [(method.card.title, name) for name, method in METHODS.items()]
    return [("FP16, unquantized", "fp16"), *methods] if fp16 else methods


def _number(value: object) -> float:
    """A typed number, or NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _bits(value: str | float) -> float:
    bits = _number(value)
    if not math.isfinite(bits):
        raise UserError(f"Weight bits must be a number such as 4, not {quoted(value)}.")
    return bits


def _group(value: str | float | None) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", PER_ROW)):
        return None
    return _count(value, "Group size")


def _count(value: str | float | None, name: str) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = _number(value)
    if not number.is_integer():
        raise UserError(f"{name} must be a whole number, not {quoted(value)}.")
    if number < 0 or (number == 0 and name != "Group size"):
        raise UserError(f"{name} must be 1 or more, not {number:g}.")
    if number > MOST:
        raise UserError(f"{name} must be {MOST:,} or less, not {number:g}.")
    return int(number)
