"""The loaded models of the answering process, within its memory."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from quant_engine.models.load import Loaded
from quant_engine.progress import Progress
from quant_engine.spec import WeightSpec

OnProgress = Callable[[Progress], None]
ModelKey = tuple[str, str]


class ModelCache:
    """The loaded models, in order of use; the ones unused for longest make room for others.

    Safe to use from any thread. `budget` is in bytes of weights; those that several models have in common are counted
    once. The models that are in use stay even beyond it.
    """

    def __init__(self, load: Callable[[WeightSpec, Loaded | None, OnProgress], Loaded], budget: int) -> None:
        self._load, self._budget = load, budget
        self._models: OrderedDict[ModelKey, Loaded] = OrderedDict()
        self._lock = threading.RLock()

    def find(self, spec: WeightSpec) -> Loaded | None:
        """The model with these weights, if it is loaded."""
        with self._lock:
            loaded = self._models.get(self.key(spec))
            if loaded:
                self._models.move_to_end(self.key(spec))
            return loaded

    def has_room(self, spec: WeightSpec, needed: set[ModelKey]) -> bool:
        """Whether the model with these weights can be loaded within the budget beside those that are `needed`."""
        with self._lock:
            held = [loaded for key, loaded in self._models.items() if key in needed]
            return not held or _bytes(held) + self._expected(spec) <= self._budget

    def get(self, spec: WeightSpec, needed: set[ModelKey], on_progress: OnProgress) -> Loaded:
        """The model with these weights, loaded when it isn't at hand.

        `needed` are the models that must not make room for it.
        """
        loaded, key = self.find(spec), self.key(spec)
        if loaded:
            return loaded
        with self._lock:
            self._make_room(self._expected(spec), needed)
            siblings = (loaded for (name, _), loaded in self._models.items() if name == spec.model)
            sibling = next((loaded for loaded in siblings if loaded.revision == spec.revision), None)
        loaded = self._load(spec, sibling, on_progress)
        with self._lock:
            self._models[key] = loaded
            self._make_room(0, needed | {key})
        return loaded

    @staticmethod
    def key(spec: WeightSpec) -> ModelKey:
        return spec.model, spec.model_dump_json()

    def _expected(self, spec: WeightSpec) -> int:
        """Bytes that a model will take: the same model in another setting is the best guess."""
        return max((loaded.weight_bytes for (name, _), loaded in self._models.items() if name == spec.model), default=0)

    def _make_room(self, expected: int, needed: set[ModelKey]) -> None:
        for key in [key for key in self._models if key not in needed]:
            if _bytes(self._models.values()) + expected <= self._budget:
                return
            del self._models[key]
            gc.collect()  # a model refers to itself in circles, and its memory is wanted now


def _bytes(models: Iterable[Loaded]) -> int:
    return sum(dict(storage for loaded in models for storage in loaded.storages.items()).values())
