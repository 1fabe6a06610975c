"""What goes into the first block: calibration windows of text, or of questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from quant_engine.data import pictures
from quant_engine.data.texts import calibration_windows
from quant_engine.methods.block import SeenEnough, block_kwargs, first_inputs
from quant_engine.models.decode import prompt_inputs
from quant_engine.models.load import Loaded, Skeleton
from quant_engine.spec import Calibration, UserError


def calibration_inputs(skeleton: Skeleton, calibration: Calibration) -> tuple[torch.Tensor, dict[str, Any]]:
    """The inputs of the first block for all calibration windows [samples, length, width], and the blocks' other
    arguments. Fills the skeleton's weights outside of blocks. Raises UserError where the data are too short."""
    tokenizer = skeleton.tokenizer
    if not pictures.named(calibration.source):
        windows = calibration_windows(calibration, tokenizer)
        skeleton.fill_outside_blocks()
        return first_inputs(skeleton.decoder, windows.to(skeleton.device))
    processor = skeleton.load_processor()
    skeleton.fill_outside_blocks()
    loaded = Loaded(skeleton.card, skeleton.model, tokenizer, processor, 16.0, skeleton.folder)
    turns = pictures.turns(calibration.source, calibration.seed)
    hidden = picture_inputs(loaded, turns, calibration.samples, calibration.length)
    return hidden, block_kwargs(skeleton.decoder, hidden)


def picture_inputs(loaded: Loaded, turns: Iterator[pictures.Turn], samples: int, length: int) -> torch.Tensor:
    """The inputs of the first block for windows of questions about pictures: [samples, length, width].

    A window begins with a whole turn, picture, question and answer in the model's own chat format; others follow until
    it is full, and the last one is cut. Its positions and mask are therefore those of a text window. The model's blocks
    may be empty. Raises UserError if a turn alone is longer than a window.
    """
    windows = []
    for _ in range(samples):
        embeddings = [_turn_embeddings(loaded, next(turns))]
        if len(embeddings[0]) > length:
            raise UserError(
                f"A picture with its question takes {len(embeddings[0])} tokens of {loaded.card.title}, more than the "
                f"{length} of a calibration window; give a longer length."
            )
        while sum(map(len, embeddings)) < length:
            embeddings.append(_turn_embeddings(loaded, next(turns)))
        windows.append(torch.cat(embeddings)[:length])
    return torch.stack(windows)


def _turn_embeddings(loaded: Loaded, turn: pictures.Turn) -> torch.Tensor:
    """A turn as the decoder gets it from the model itself, picture features among the tokens: [tokens, width]."""
    inputs = prompt_inputs(loaded, turn.image, turn.question)
    if turn.answer:
        text = turn.answer + loaded.tokenizer.eos_token
        answer = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer.to(inputs["input_ids"].device)], 1)
    embeddings: list[torch.Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings.append(kwargs["inputs_embeds"][0])
        raise SeenEnough

    handle = loaded.model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with suppress(SeenEnough):
            loaded.model.model(**inputs)
    finally:
        handle.remove()
    return embeddings[0]
