"""From what was asked to what will be run: check everything that can be checked without loading a model."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.data import pictures, texts
from quant_engine.evaluate import Task, parse_task
from quant_engine.formats import published
from quant_engine.methods import METHODS, Method, resolve_setting
from quant_engine.methods.qlora import QloraOptions
from quant_engine.models.catalog import ModelCard, available, fingerprint, model_card
from quant_engine.models.context import context_length, model_config
from quant_engine.models.shapes import shape_of
from quant_engine.quantize.plan import WeightPlan, check_only
from quant_engine.spec import Calibration, PublishedCheckpoint, RunSpec, UserError, WeightSpec


@dataclass(frozen=True)
class RunPlan:
    """A resolved run with everything that it names looked up once: its weights and its tasks, in the spec's order."""

    spec: RunSpec
    weights: WeightPlan
    tasks: tuple[Task, ...]


def resolve(spec: RunSpec) -> RunPlan:
    """The run with every default spelled out, so that equal questions get equal run ids.

    Texts are no longer than the model reads. Raises UserError, one sentence, for an unknown model, method or task, for
    a setting the method is not defined for, for a task that the model can't do, for data that can't be had or are
    others than those that the spec names, and for calibration data that can't be read or are not for the model.
    """
    weights = resolve_weights(spec.weights)
    tasks = {task.name: task for task in map(parse_task, spec.tasks)}
    for task in tasks.values():
        if task.pictures and not weights.card.pictures:
            title = weights.card.title
            raise UserError(f"{task.title} asks about pictures, and {title} is a text model; choose another task.")
    names = tuple(sorted(tasks))
    changes = {
        "weights": weights.spec,
        "tasks": names,
        "window": _at_most(spec.window, weights.context_length()),
        "data": {name: checked_revision(tasks[name], spec) for name in names},
    }
    resolved = spec.model_copy(update=changes)
    return RunPlan(resolved, weights, tuple(tasks[name] for name in names))


def checked_revision(task: Task, spec: RunSpec) -> str:
    """The revision of a task's data on this machine. Raises UserError if the spec was made for another one."""
    revision = task.revision()
    asked = spec.data.get(task.name, revision)
    if asked != revision:
        raise UserError(
            f"The data of {task.title} have changed since this run was asked for ({revision} now, {asked} then): "
            "start a new run."
        )
    return revision


def resolve_weights(spec: WeightSpec) -> WeightPlan:
    """The weights with every default spelled out. Raises UserError as `resolve` does."""
    card = model_card(spec.model)
    if spec.checkpoint:
        return _published_weights(card, spec.checkpoint)
    revision = _revision(card, spec.revision)
    context = context_length(card, revision)
    method = METHODS.get(spec.setting.method)
    if method is None:  # nothing is calibrated, drawn or computed
        check_only(spec.only, None, None)
        setting = resolve_setting(spec.setting)
        return WeightPlan(WeightSpec(model=card.id, revision=revision, setting=setting), card, None, None)
    shape = shape_of(card)
    check_only(spec.only, method, shape.layers if shape else None)
    options = method.options(spec.setting)  # once: those of fine-tuning hash their data
    if method.fine_tunes:
        _check_lengths(options, card, context)
    changes = {
        "model": card.id,
        "revision": revision,
        "setting": method.resolve(spec.setting, options),
        "calibration": _calibration(spec.calibration, card, context, method) if method.card.calibrated else None,
    }
    return WeightPlan(spec.model_copy(update=changes), card, method, options)


def _published_weights(card: ModelCard, checkpoint: PublishedCheckpoint) -> WeightPlan:
    """Weights that another program made of the model `card`, which need not be on this machine itself."""
    found = published.find(checkpoint)
    at_hand = available(card)
    found.check_base(card, model_config(card, None) if at_hand else None)
    revision = fingerprint(card) if at_hand else None
    spec = WeightSpec(model=card.id, revision=revision, setting=found.setting, checkpoint=found.source)
    return WeightPlan(spec, card, None, None, found)


def _revision(card: ModelCard, asked: str | None) -> str | None:
    """The commit of a hub model; for one on this machine what identifies its files, which must be as asked for."""
    revision = fingerprint(card, asked)
    if card.origin != "hub" and asked not in (None, revision):
        raise UserError(f"{card.title} on this machine is revision {revision}, not {asked}: its files are others now.")
    return revision


def _calibration(asked: Calibration | None, card: ModelCard, context: int | None, method: Method) -> Calibration:
    """The calibration with a source that names its content, and windows that the model reads."""
    calibration = asked or Calibration()
    source = calibration.source
    if pictures.named(source):
        if not card.pictures:
            raise UserError(f"{card.title} is a text model and takes no pictures: calibrate it on a text.")
        if method.train:
            raise UserError(f"{method.card.title} trains on texts alone: calibrate it on a text.")
        source = pictures.pin(source)
    elif source != "builtin":
        source = texts.pin(source)
    length = _at_most(calibration.length, context)
    return calibration.model_copy(update={"source": source, "length": length})


def _at_most(length: int, context: int | None) -> int:
    return length if context is None else min(length, context)


def _check_lengths(options: QloraOptions, card: ModelCard, context: int | None) -> None:
    """Raises UserError if an example to train on could be longer than what the model reads. The tokens of drawn
    pictures are counted when they are drawn."""
    longest = options.target_length + (0 if options.data == "demo" else options.source_length)
    if context is not None and longest > context:
        raise UserError(
            f"Options source_length={options.source_length} and target_length={options.target_length} allow examples "
            f"of {longest:,} tokens, and {card.title} reads {context:,}: make them shorter."
        )
