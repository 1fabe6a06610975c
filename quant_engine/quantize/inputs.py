"""What goes into the first block: calibration windows of text, or of questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from quant_engine.data.pictures import Turn
from quant_engine.methods.block import SeenEnough
from quant_engine.models.decode import prompt_inputs
from quant_engine.models.load import Loaded
from quant_engine.spec import UserError


def picture_inputs(loaded: Loaded, turns: Iterator[Turn], samples: int, length: int) -> torch.Tensor:
    """The inputs of the first block for windows of questions about pictures: [samples, length, width].

    A window begins with a whole turn, picture, question and answer in the model's own chat format; others follow until
    it is full, and the last one is cut. Its positions and mask are therefore those of a text window. The model's blocks
    may be empty. Raises UserError if a turn alone is longer than a window.
    """
    windows = []
    for _ in range(samples):
        parts = [_embedded(loaded, next(turns))]
        if len(parts[0]) > length:
            raise UserError(
                f"A picture with its question takes {len(parts[0])} tokens of {loaded.card.title}, more than the "
                f"{length} of a calibration window; give a longer length."
            )
        while sum(map(len, parts)) < length:
            parts.append(_embedded(loaded, next(turns)))
        windows.append(torch.cat(parts)[:length])
    return torch.stack(windows)


def _embedded(loaded: Loaded, turn: Turn) -> torch.Tensor:
    """A turn as the decoder gets it from the model itself, picture features in their places: [tokens, width]."""
    inputs = prompt_inputs(loaded, turn.image, turn.question)
    if turn.answer:
        said = loaded.tokenizer(turn.answer + loaded.tokenizer.eos_token, add_special_tokens=False, return_tensors="pt")
        answer = said["input_ids"].to(inputs["input_ids"].device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    reached: list[torch.Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(kwargs["inputs_embeds"][0])
        raise SeenEnough

    handle = loaded.model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with suppress(SeenEnough):
            loaded.model.model(**inputs)
    finally:
        handle.remove()
    return reached[0]
