"""A dense decoder block together with the calibration inputs that reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

TOKENS_AT_ONCE = 4096
"""Calibration tokens that go through a block together."""
HELD_AT_MOST = 2**27
"""Activations that are held between two passes through half a block: 512 MiB in float32."""


class SeenEnough(Exception):
    """Leaves a forward pass in the middle."""


def first_inputs(decoder: nn.Module, windows: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The inputs of the first block for token windows [samples, length]: hidden [samples, length, width], and the
    blocks' other arguments."""
    hidden = decoder.embed_tokens(windows)
    return hidden, block_kwargs(decoder, hidden)


def block_kwargs(decoder: nn.Module, hidden: torch.Tensor) -> dict[str, Any]:
    """The arguments of every block besides its inputs, for windows like `hidden` [samples, length, width].

    They are the same for all windows and blocks: positions 0 to length - 1 and a causal mask.
    """
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


class Half(nn.Module):
    """The attention or the MLP of a decoder block with the norm before it: x + branch(norm(x)).

    Its submodules are the block's own, under the names that they have there.
    """

    def __init__(self, block: nn.Module, norm: str, branch: str) -> None:
        super().__init__()
        self.names = norm, branch
        for name in self.names:
            self.add_module(name, block.get_submodule(name))

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        norm, branch = map(self.get_submodule, self.names)
        out = branch(norm(x), **kwargs)
        return x + (out[0] if isinstance(out, tuple) else out)


@dataclass(frozen=True)
class CalibratedBlock:
    """A decoder block, `module`, and its inputs `hidden` [samples, length, width], all calibration windows in order.

    `kwargs` are the block's other arguments (positions, rotary embeddings, mask), which its self_attn takes as well.
    `check_stop` raises where the user asked to stop. `at_once` windows go through it together; None is as many as make
    TOKENS_AT_ONCE.
    """

    module: nn.Module
    hidden: torch.Tensor
    kwargs: dict[str, Any]
    check_stop: Callable[[], None] = lambda: None
    at_once: int | None = None

    def chunks(self) -> tuple[torch.Tensor, ...]:
        """Views of `hidden`, a few windows each, as they go through the block together."""
        return self.hidden.split(self.at_once or max(1, TOKENS_AT_ONCE // self.hidden.shape[1]))

    def halves(self) -> tuple[CalibratedHalf, CalibratedHalf]:
        """The block's attention and its MLP. The second has its inputs when the first has advanced in place."""
        attention = Half(self.module, "input_layernorm", "self_attn")
        mlp = Half(self.module, "post_attention_layernorm", "mlp")
        return (
            CalibratedHalf(attention, self.hidden, self.kwargs, self.check_stop, self.at_once, last="self_attn.o_proj"),
            CalibratedHalf(mlp, self.hidden, {}, self.check_stop, self.at_once, last="mlp.down_proj"),
        )

    def advance(self, hidden: torch.Tensor) -> None:
        """Writes the block's outputs into `hidden`, which may be the inputs themselves."""
        for chunk, out in zip(self.chunks(), hidden.split(len(self.chunks()[0])), strict=True):
            output = self.module(chunk, **self.kwargs)
            out.copy_(output[0] if isinstance(output, tuple) else output)

    def watch(self, names: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> None:
        """Sends all windows through the block and shows `see(name, x)` each input x [windows, length, in_features] of
        the named submodules, which must be given in the order in which the block uses them.

        A pass is left as soon as the last of them has its input: what comes behind has no say here.
        """

        def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def watch_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                see(name, inputs[0])
                if name == names[-1]:
                    raise SeenEnough

            return watch_input

        handles = [self.module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
        try:
            for chunk in self.chunks():
                with suppress(SeenEnough):
                    self.module(chunk, **self.kwargs)
                self.check_stop()
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class CalibratedHalf(CalibratedBlock):
    """The attention or the MLP of a decoder block, whose output is that of its `last` linear, added to its inputs.

    The inputs of that linear are held when they have been watched, unless they are many: the half then advances from
    there, through nothing but that linear, which must come next.
    """

    last: str = ""
    last_inputs: list[torch.Tensor] = field(default_factory=list)

    def watch(self, names: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> None:
        tokens = self.hidden.shape[:-1].numel()
        hold = self.last in names and tokens * self._last_linear.in_features <= HELD_AT_MOST

        def see_and_hold(name: str, x: torch.Tensor) -> None:
            if hold and name == self.last:
                self.last_inputs.append(x)
            see(name, x)

        self.last_inputs.clear()
        super().watch(names, see_and_hold)

    def advance(self, hidden: torch.Tensor) -> None:
        if not self.last_inputs:
            super().advance(hidden)
            return
        for chunk, out in zip(self.chunks(), hidden.split(len(self.chunks()[0])), strict=True):
            torch.add(chunk, self._last_linear(self.last_inputs.pop(0)), out=out)

    @property
    def _last_linear(self) -> nn.Module:
        return self.module.get_submodule(self.last)
