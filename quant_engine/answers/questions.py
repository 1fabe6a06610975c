"""The questions of visitors while they are open, and their sides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from PIL.Image import Image
from torch import nn

from quant_engine.answers.messages import AskRequest
from quant_engine.data.open_picture import open_picture
from quant_engine.evaluate.divergence import token_shifts
from quant_engine.models.decode import PictureCache, answer_states
from quant_engine.models.load import Loaded
from quant_engine.models.open_answers import OpenAnswer
from quant_engine.results import TokenShift
from quant_engine.spec import QuantSetting, WeightSpec


@dataclass(eq=False)
class Side:
    """One setting that is asked: its weights, its model once that is loaded, and its answer once it began."""

    setting: QuantSetting
    spec: WeightSpec | None = None
    loaded: Loaded | None = None
    answer: OpenAnswer | None = None

    @property
    def text(self) -> str:
        """What was answered so far."""
        return self.answer.last.text if self.answer else ""


@dataclass(frozen=True)
class Reference:
    """FP16's output head, and what it gets at each token of its answer [tokens, hidden]."""

    head: nn.Module
    states: torch.Tensor


@dataclass(eq=False)
class Question:
    """A request in line with its open sides, by their numbers."""

    request: AskRequest
    sides: dict[int, Side] = field(default_factory=dict)
    picture: Image | None = None
    picture_digest: str = ""
    prepared: bool = False
    cancelled: bool = False
    position: tuple[int, list[int]] | None = None
    reference: Reference | None = None

    def open_picture(self) -> None:
        """Open the picture, if there is one. Raises UserError for a file that is none."""
        if self.request.image:
            self.picture = open_picture(self.request.image)
            content = repr((self.picture.mode, self.picture.size)).encode() + self.picture.tobytes()
            self.picture_digest = hashlib.sha256(content).hexdigest()

    def waiting(self) -> list[int]:
        """The sides that can begin; of a question along FP16's answer, the others only after FP16."""
        ready = [number for number, side in self.sides.items() if side.loaded and not side.answer]
        return ready if self.reference or not self.request.along else [number for number in ready if number == 0]

    def read_along(self, number: int, pictures: PictureCache) -> list[TokenShift]:
        """What a side that was loaded finds of the tokens of FP16's answer, in one pass."""
        request, loaded = self.request, self.sides[number].loaded
        earlier = request.conversation(number)
        states = answer_states(loaded, self.picture, request.question, request.along, earlier, pictures)
        if number == 0:
            self.reference = Reference(loaded.model.get_output_embeddings(), states)
        return token_shifts(self.reference.head, loaded, self.reference.states, states, request.along)
