"""How work is watched: where it stands, who is told, and how it is asked to stop. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quant_engine.spec import Text


class Stopped(Exception):
    """The work was asked to stop; what it had finished stays on disk."""


class Interim(BaseModel):
    """A task's number over the items that are finished so far, with its 95% interval where that is known. `value` is
    None where the model gives none that is finite. `counted` is what its items are."""

    model_config = ConfigDict(extra="forbid")

    title: Text
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    done: int
    total: int
    counted: Literal["items", "windows"] = "items"


class Progress(BaseModel):
    """Where a run stands. `fraction` runs from 0 to 1 over the whole run; times are in seconds. `interims` are the
    numbers so far of its tasks, in the order in which they are measured."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal[
        "waiting", "loading", "training", "calibrating", "quantizing", "evaluating", "writing", "finished"
    ] = "waiting"
    fraction: float = 0.0
    block: int | None = None
    blocks: int | None = None
    linear: str | None = None
    output_error: float | None = None
    task: str | None = None
    item: int | None = None
    items: int | None = None
    items_per_s: float | None = None
    eta_s: float | None = None
    message: Text = ""
    interims: tuple[Interim, ...] = ()

    def text(self) -> str:
        """Where the run stands in a line, for somebody who waits."""
        if self.block is not None and self.blocks:
            return f"{self.stage.capitalize()} block {self.block} of {self.blocks}"
        text = self.message or self.stage
        return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Hooks:
    """Who watches work: is given its progress and log lines, and is asked often whether it is to stop."""

    progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda line: None

    def check_stop(self) -> None:
        """Raises Stopped if the work is to stop."""
        if self.should_stop():
            raise Stopped
