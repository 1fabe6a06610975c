"""Keys and values of a text, in memory that is allocated ahead."""

from __future__ import annotations

import copy

import torch
from torch import nn

from quant_engine.memory import prefer_huge_pages

SPARE_TOKENS = 256
"""Room for an answer that is allocated with its prompt."""


class KeyValues:
    """The keys and values of one text in all blocks, as far as it has been read: `length` tokens."""

    def __init__(self, decoder: nn.Module) -> None:
        config = decoder.config
        head_dim = decoder.layers[0].self_attn.head_dim
        self.length = 0
        self._data = torch.empty(
            (len(decoder.layers), 2, config.num_key_value_heads, 0, head_dim),
            dtype=decoder.norm.weight.dtype,
            device=decoder.norm.weight.device,
        )  # [blocks, keys and values, heads, capacity in tokens, head_dim]

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more tokens."""
        if self.length + tokens > self._data.shape[3]:
            self._data = self._grown(tokens)

    def _grown(self, tokens: int) -> torch.Tensor:
        blocks, both, heads, _, head_dim = self._data.shape
        data = self._data.new_empty((blocks, both, heads, self.length + tokens + SPARE_TOKENS, head_dim))
        if data.device.type == "cpu":
            prefer_huge_pages(data.data_ptr(), data.nbytes)
        data[:, :, :, : self.length] = self._data[:, :, :, : self.length]
        return data

    def branch(self, tokens: int) -> KeyValues:
        """Keys and values of another text that begins as this one, with room for so many more tokens."""
        other = copy.copy(self)
        other._data = self._grown(tokens)
        return other

    def append(self, block: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a block [heads, tokens, head_dim] with those of the new tokens, which are given as
        [new tokens, heads, head_dim]. `length` grows when all blocks have theirs."""
        data, end = self._data[block], self.length + len(keys)
        data[0, :, self.length : end] = keys.transpose(0, 1)
        data[1, :, self.length : end] = values.transpose(0, 1)
        return data[0, :, :end], data[1, :, :end]

    @property
    def location(self) -> tuple[int, int, int]:
        """The address of the keys and values, the tokens that they have room for, and their length."""
        return self._data.data_ptr(), self._data.shape[3], self.length

    @property
    def token_bytes(self) -> int:
        """Memory that a token takes."""
        return self._data[:, :, :, :0].element_size() * self._data.shape[:3].numel() * self._data.shape[4]

    # As a transformers cache is asked:
    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens: int) -> None:
        """Forgets the last tokens; `tokens` is negative."""
        self.length += tokens
