"""A dense decoder block together with the calibration inputs that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

from quant_engine.data.pictures import Turn
from quant_engine.generate.decode import prompt_inputs
from quant_engine.models.load import Loaded
from quant_engine.spec import UserError

TOKENS_AT_ONCE = 4096
"""Calibration tokens that go through a block together."""


class _SeenEnough(Exception):
    """Leaves a forward pass in the middle."""


def first_inputs(decoder: nn.Module, windows: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The inputs of the first block for token windows [samples, length]: hidden [samples, length, width], and what
    every block gets beside it.

    The latter is the same for all samples and blocks: every window has positions 0 to length - 1 and a causal mask.
    """
    hidden = decoder.embed_tokens(windows)
    return hidden, beside(decoder, hidden)


def beside(decoder: nn.Module, hidden: torch.Tensor) -> dict[str, Any]:
    """What every block gets beside its inputs, for windows like `hidden` [samples, length, width]."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    return {
        "position_ids": positions,
        "position_embeddings": decoder.rotary_emb(hidden[:1], positions),
        "attention_mask": create_causal_mask(
            config=decoder.config,
            inputs_embeds=hidden[:1],
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        ),
    }


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
        raise _SeenEnough

    handle = loaded.model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with suppress(_SeenEnough):
            loaded.model.model(**inputs)
    finally:
        handle.remove()
    return reached[0]


@dataclass(frozen=True)
class CalibratedBlock:
    """A decoder block, `module`, and its inputs `hidden` [samples, length, width], all calibration windows in order.

    `beside` are the block's other arguments (positions, rotary embeddings, mask), which its self_attn takes as well.
    `check_stop` raises where the user asked to stop.
    """

    module: nn.Module
    hidden: torch.Tensor
    beside: dict[str, Any]
    check_stop: Callable[[], None] = lambda: None

    def chunks(self) -> tuple[torch.Tensor, ...]:
        """Views of `hidden`, a few windows each, as they go through the block together."""
        return self.hidden.split(max(1, TOKENS_AT_ONCE // self.hidden.shape[1]))

    def advance(self, hidden: torch.Tensor) -> None:
        """Writes the block's outputs into `hidden`, which may be the inputs themselves."""
        for chunk, out in zip(self.chunks(), hidden.split(len(self.chunks()[0])), strict=True):
            output = self.module(chunk, **self.beside)
            out.copy_(output[0] if isinstance(output, tuple) else output)

    def watch(self, names: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> None:
        """Sends all windows through the block and shows `see(name, x)` each input x [windows, length, in_features] of
        the named submodules, which must be given in the order in which the block uses them.

        A pass is left as soon as the last of them has its input: what comes behind has no say here.
        """

        def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def seen(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                see(name, inputs[0])
                if name == names[-1]:
                    raise _SeenEnough

            return seen

        handles = [self.module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            for chunk in self.chunks():
                with suppress(_SeenEnough):
                    self.module(chunk, **self.beside)
                self.check_stop()
        finally:
            for handle in handles:
                handle.remove()
