"""Loading models while answers go on: in a thread of its own, one model at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import torch

from quant_engine.answers.model_cache import ModelCache, ModelKey
from quant_engine.models.load import Loaded
from quant_engine.progress import Progress
from quant_engine.spec import WeightSpec

LOOK_S = 0.1
"""Seconds between two looks whether there is room for a model."""

OnProgress = Callable[[WeightSpec, str], None]
OnEnd = Callable[[WeightSpec, Loaded | None, Exception | None], None]
InUse = Callable[[], set[ModelKey]]


class _Unwanted(Exception):
    """Nobody waits for the model any more."""


class Loading:
    """Loads models in the order in which they are asked for; one for which there is no room waits for open answers.

    Args:
        models: keeps them.
        in_use: the models that must stay.
        on_progress: gets a spec and a line of text whenever its loading has come further.
        on_end: gets a spec with its model, or with why it can't be loaded.
    The functions are called from the thread that loads.
    """

    def __init__(self, models: ModelCache, in_use: InUse, on_progress: OnProgress, on_end: OnEnd) -> None:
        self._models, self._in_use, self._on_progress, self._on_end = models, in_use, on_progress, on_end
        self._specs: list[WeightSpec] = []  # the first is being loaded
        self._changed = threading.Condition()
        self.waits_for_room: WeightSpec | None = None
        threading.Thread(target=self._work, name="loading", daemon=True).start()

    def add(self, spec: WeightSpec) -> None:
        """Load a model, unless that is asked for already."""
        with self._changed:
            if spec not in self._specs:
                self._specs.append(spec)
                self._changed.notify()

    def remove(self, spec: WeightSpec) -> None:
        """Nobody waits for a model any more."""
        with self._changed:
            if spec in self._specs:
                self._specs.remove(spec)

    def is_busy(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._specs) and self.waits_for_room is None

    def _work(self) -> None:
        torch.set_num_threads(min(2, torch.get_num_threads()))  # two: kernels that threads share are compiled here
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._specs)
                spec = self._specs[0]
            loaded = problem = None
            try:
                self._wait_for_room(spec)
                loaded = self._models.get(spec, self._in_use(), partial(self._on_block, spec))
            except _Unwanted:
                continue
            except Exception as error:
                problem = error
            self.remove(spec)
            self._on_end(spec, loaded, problem)

    def _on_block(self, spec: WeightSpec, progress: Progress) -> None:
        if spec not in self._specs:
            raise _Unwanted
        self._on_progress(spec, progress.text())

    def _wait_for_room(self, spec: WeightSpec) -> None:
        while not self._models.has_room(spec, self._in_use()):
            if self.waits_for_room is None:
                self.waits_for_room = spec
                self._on_progress(spec, "Waiting until other models' answers leave memory for this one")
            with self._changed:
                self._changed.wait(LOOK_S)
            if spec not in self._specs:
                self.waits_for_room = None
                raise _Unwanted
        self.waits_for_room = None
