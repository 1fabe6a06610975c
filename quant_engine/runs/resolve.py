"""From what was asked to what will be run: check everything that can be checked without loading a model."""

from __future__ import annotations

from dataclasses import dataclass

from quant_engine.data import pictures, texts
from quant_engine.evaluate import Task, parse_task
from quant_engine.methods import METHODS, Method, resolve_setting
from quant_engine.models.catalog import ModelCard, fingerprint, model_card
from quant_engine.quantize.plan import WeightPlan
from quant_engine.spec import Calibration, RunSpec, UserError, WeightSpec


@dataclass(frozen=True)
class RunPlan:
    """A resolved run with everything that it names looked up once: its weights and its tasks, in the spec's order."""

    spec: RunSpec
    weights: WeightPlan
    tasks: tuple[Task, ...]


def resolve(spec: RunSpec) -> RunPlan:
    """The run with every default spelled out, so that equal questions get equal run ids.

    Raises UserError, one sentence, for an unknown model, method or task, for a setting the method is not defined for,
    for a task that the model can't do, and for calibration data that can't be read or are not for the model.
    """
    weights = resolve_weights(spec.weights)
    tasks = {task.name: task for task in map(parse_task, spec.tasks)}
    for task in tasks.values():
        if task.pictures and not weights.card.pictures:
            title = weights.card.title
            raise UserError(f"{task.title} asks about pictures, and {title} is a text model; choose another task.")
    names = tuple(sorted(tasks))
    resolved = spec.model_copy(update={"weights": weights.spec, "tasks": names})
    return RunPlan(resolved, weights, tuple(tasks[name] for name in names))


def resolve_weights(spec: WeightSpec) -> WeightPlan:
    """The weights with every default spelled out. Raises UserError as `resolve` does."""
    card = model_card(spec.model)
    setting = resolve_setting(spec.setting)
    plain = WeightSpec(model=card.id, revision=_revision(card, spec.revision), setting=setting)
    if setting.method == "fp16":  # nothing is calibrated, drawn or computed
        return WeightPlan(plain, card, None, None)
    method = METHODS[setting.method]
    calibration = _calibration(spec.calibration, card, method) if method.card.calibrated else None
    resolved = plain.model_copy(update={"calibration": calibration, "seed": spec.seed, "dtype": spec.dtype})
    return WeightPlan(resolved, card, method, method.options(setting))


def _revision(card: ModelCard, asked: str | None) -> str | None:
    """The commit of a hub model; for one on this machine what identifies its files, which must be as asked for."""
    revision = fingerprint(card, asked)
    if card.origin != "hub" and asked not in (None, revision):
        raise UserError(f"{card.title} on this machine is revision {revision}, not {asked}: its files are others now.")
    return revision


def _calibration(asked: Calibration | None, card: ModelCard, method: Method) -> Calibration:
    """The calibration with a source that names its content."""
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
    return calibration.model_copy(update={"source": source})
