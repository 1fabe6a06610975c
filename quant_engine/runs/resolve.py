"""From what was asked to what will be run: check everything that can be checked without loading a model."""

from __future__ import annotations

from quant_engine.data import pictures, texts
from quant_engine.evaluate import parse_task
from quant_engine.methods import METHODS, Method, resolve_setting
from quant_engine.models.catalog import ModelCard, fingerprint, model_card
from quant_engine.spec import Calibration, RunSpec, UserError


def resolve(spec: RunSpec) -> RunSpec:
    """The spec with every default spelled out, so that equal questions get equal run ids.

    Raises UserError, one sentence, for an unknown model, method or task, for a setting the method is not defined for,
    for a task that the model can't do, and for calibration data that can't be read or are not for the model.
    """
    card = model_card(spec.model)
    setting = resolve_setting(spec.setting)
    tasks = []
    for name in spec.tasks:
        task = parse_task(name)
        if task.pictures and not card.pictures:
            raise UserError(f"{task.title} asks about pictures, and {card.title} is a text model; choose another task.")
        tasks.append(task.name)
    calibration = None
    if setting.method != "fp16" and METHODS[setting.method].card.calibrated:
        calibration = spec.calibration or Calibration()
        source = _calibration_source(calibration.source, card, METHODS[setting.method])
        calibration = calibration.model_copy(update={"source": source})
    return spec.model_copy(
        update={
            "model": card.id,
            "revision": spec.revision or fingerprint(card),
            "setting": setting,
            "calibration": calibration,
            "tasks": tuple(sorted(set(tasks))),
        }
    )


def _calibration_source(source: str, card: ModelCard, method: Method) -> str:
    """The name that says what the data are, whenever and however they were asked for."""
    if source == "builtin":
        return source
    if not pictures.named(source):
        return texts.pin(source)
    if not card.pictures:
        raise UserError(f"{card.title} is a text model and takes no pictures: calibrate it on a text.")
    if method.train:
        raise UserError(f"{method.card.title} trains on texts alone: calibrate it on a text.")
    return pictures.pin(source)
