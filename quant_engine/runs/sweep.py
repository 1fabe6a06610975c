"""A sweep: the runs of all settings that methods, bits and groups make, of one or several models, as one job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from quant_engine.methods import METHODS, resolve_setting
from quant_engine.models.catalog import model_card
from quant_engine.models.device import default_device, default_dtype
from quant_engine.runs.resolve import resolve
from quant_engine.spec import (
    Calibration,
    Dtype,
    Identifier,
    OptionValue,
    QuantSetting,
    RunSpec,
    UserError,
    WeightSpec,
    quoted,
    read_code,
    sentence,
)

MOST_RUNS = 500
_HINT = "write a line such as `methods: [rtn, gptq]` for each field."


class Sweep(BaseModel):
    """What is varied, and what all runs share. `settings` are codes such as gptq-4-g64, besides those that `methods`,
    `bits` and `group_sizes` make (None: a whole row); a method that has no groups is taken once. A method that looks at
    data is calibrated on each `calibration`. Each part in `only` is quantized alone; "all" is the whole. `options` are
    a method's own, by its name. `window` None is each model's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Identifier, ...]
    methods: tuple[Identifier, ...] = ()
    bits: tuple[float, ...] = ()
    group_sizes: tuple[int | None, ...] = (None,)
    settings: tuple[str, ...] = ()
    options: dict[Identifier, dict[str, OptionValue]] = Field(default_factory=dict)
    tasks: tuple[Identifier, ...]
    limit: int | None = Field(default=None, ge=1)
    windows: int | None = Field(default=None, ge=1)
    window: int | None = None
    calibration: tuple[Calibration, ...] = (Calibration(),)
    only: tuple[Identifier, ...] = ()
    seed: int = 0
    dtype: Dtype | None = None
    device: str | None = None

    @field_validator(
        "models", "methods", "bits", "group_sizes", "settings", "tasks", "calibration", "only", mode="before"
    )
    @classmethod
    def _list(cls, value: object, about: ValidationInfo) -> object:
        """A single value for a list of it, and a list in a text with commas."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values and about.field_name in ("models", "tasks", "calibration"):
            raise ValueError(f"Name at least one of {about.field_name}.")
        if about.field_name in ("bits", "group_sizes"):
            for number in values:
                if not (number is None or isinstance(number, int | float) or _is_number(number)):
                    raise ValueError(f"{about.field_name} are numbers such as 4, not {quoted(number)}.")
        return values


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, resolved, each once; and why settings were left out, a sentence each."""

    specs: tuple[RunSpec, ...]
    left_out: tuple[str, ...]


def read_sweep(file: Path) -> Sweep:
    """The sweep that a YAML file describes. Raises UserError."""
    try:
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read ({getattr(error, 'strerror', None) or 'it is no text'}).") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UserError(
            f"{file} is no YAML{line}: write a line such as `methods: [rtn, gptq]` for each field."
        ) from None
    if not isinstance(described, dict):
        raise UserError(f"{file} describes no sweep: {_HINT}")
    try:
        return Sweep.model_validate(described)
    except ValidationError as error:
        raise UserError(f"{file}: {sentence(error)}") from None


def settings_of(sweep: Sweep) -> tuple[list[QuantSetting], list[str]]:
    """The resolved settings in the order of the sweep, each once, and a sentence for each that is not defined. Raises
    UserError for a method that there is not, and for one without bits."""
    settings: list[QuantSetting] = []
    left_out: list[str] = []
    for name in sweep.options:
        _check_method(name)
    for setting in (*_combined(sweep), *map(read_code, sweep.settings)):
        options = sweep.options.get(setting.method, {})
        try:
            resolved = resolve_setting(setting.model_copy(update={"options": options}))
        except UserError as refusal:
            left_out.append(str(refusal))
            continue
        if resolved not in settings:
            settings.append(resolved)
    return settings, left_out


def _check_method(name: str) -> None:
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; the methods are: fp16, {', '.join(METHODS)}.")


def _combined(sweep: Sweep) -> Iterator[QuantSetting]:
    """What methods, bits and groups make."""
    for method in sweep.methods:
        if method == "fp16":
            yield QuantSetting()
            continue
        _check_method(method)
        if not sweep.bits:
            raise UserError(f"The sweep names no bits for {method}: give some, or settings such as {method}-4.")
        card = METHODS[method].card
        a_bits = 16 if 16 in card.a_bits else card.a_bits[-1]
        for bits, group in product(sweep.bits, sweep.group_sizes if card.grouped else (None,)):
            try:
                yield QuantSetting(method=method, w_bits=bits, a_bits=a_bits, group_size=group)
            except ValidationError as error:
                raise UserError(sentence(error)) from None


def _calibrated(
    settings: Sequence[QuantSetting], calibrations: Sequence[Calibration]
) -> Iterator[tuple[QuantSetting, Calibration | None]]:
    """Each setting with what it is calibrated on."""
    for setting in settings:
        looks = setting.method in METHODS and METHODS[setting.method].card.calibrated
        yield from product((setting,), calibrations if looks else (None,))


def plan(sweep: Sweep) -> Plan:
    """All runs of a sweep. Raises UserError where there is none, and for a model or task that can't be had."""
    settings, left_out = settings_of(sweep)
    if not settings:
        raise UserError(left_out[0] if left_out else "The sweep names no setting: give methods and bits, or settings.")
    parts = [() if part == "all" else (part,) for part in sweep.only] or [()]
    wanted = list(product(sweep.models, _calibrated(settings, sweep.calibration), parts))
    if len(wanted) > MOST_RUNS:
        raise UserError(f"A sweep has at most {MOST_RUNS} runs, not {len(wanted)}.")
    device = sweep.device or default_device()
    specs: dict[str, RunSpec] = {}
    for model, (setting, calibration), only in wanted:
        only = () if setting.method == "fp16" else only
        weights = WeightSpec(model=model, setting=setting, calibration=calibration, seed=sweep.seed, only=only)
        asked = RunSpec(
            weights=weights,
            tasks=sweep.tasks,
            limit=sweep.limit,
            windows=sweep.windows,
            window=sweep.window or model_card(model).window,
            dtype=sweep.dtype or default_dtype(device),
            device=device,
        )
        spec = resolve(asked).spec
        specs[spec.run_id] = spec
    return Plan(tuple(specs.values()), tuple(left_out))
