"""The loaded models of the answering process, within its memory."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable

from quant_engine.models.load import Loaded
from quant_engine.progress import Progress
from quant_engine.spec import WeightSpec

OnProgress = Callable[[Progress], None]
ModelKey = tuple[str, str]


class ModelCache:
    """The loaded models, in order of use; the ones unused for longest make room for others.

    `budget` is in bytes of weights; those that several models have in common are counted once. The models of the
    request being answered stay even beyond it.
    """

    def __init__(self, load: Callable[[WeightSpec, Loaded | None, OnProgress], Loaded], budget: int) -> None:
        self._load, self._budget = load, budget
        self._models: OrderedDict[ModelKey, Loaded] = OrderedDict()

    def get(self, spec: WeightSpec, needed: set[ModelKey], on_progress: OnProgress) -> Loaded:
        """The model with these weights, loaded when it isn't at hand.

        `needed` are the models that must not make room for it.
        """
        key = self.key(spec)
        if key not in self._models:
            # Room is made first: the same model in another setting is the best guess of what the new one takes.
            sizes = [loaded.weight_bytes for (name, _), loaded in self._models.items() if name == spec.model]
            self._make_room(max(sizes, default=0), needed)
            siblings = (loaded for (name, _), loaded in self._models.items() if name == spec.model)
            sibling = next((loaded for loaded in siblings if loaded.revision == spec.revision), None)
            self._models[key] = self._load(spec, sibling, on_progress)
            self._make_room(0, needed | {key})
        self._models.move_to_end(key)
        return self._models[key]

    @staticmethod
    def key(spec: WeightSpec) -> ModelKey:
        return spec.model, spec.model_dump_json()

    def _make_room(self, expected: int, needed: set[ModelKey]) -> None:
        for key in [key for key in self._models if key not in needed]:
            storages = dict(storage for loaded in self._models.values() for storage in loaded.storages.items())
            if sum(storages.values()) + expected <= self._budget:
                return
            del self._models[key]
            gc.collect()  # a model refers to itself in circles, and its memory is wanted now
