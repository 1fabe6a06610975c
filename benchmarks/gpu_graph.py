"""A step of several texts through a LLaMA-type decoder whose shapes never change, so that a CUDA graph can hold it.

Keys and values of each text lie in room for `capacity` tokens; a token sees those before its position, which is a
number on the device. Captured once, a step is launched as a whole. On a processor it is the same computation, launched
piece by piece.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention


class GraphStep:
    """The step of `model` for `texts` texts of at most `capacity` tokens."""

    def __init__(self, model: nn.Module, texts: int, capacity: int) -> None:
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        config, weight = self._decoder.config, self._decoder.norm.weight
        self._device, self._graph = weight.device, None
        heads, size = config.num_key_value_heads, self._decoder.layers[0].self_attn.head_dim
        shape = len(self._decoder.layers), 2, texts, heads, capacity, size
        self._cache = torch.zeros(shape, dtype=weight.dtype, device=self._device)
        self._slots = torch.arange(capacity, device=self._device)
        self.tokens = torch.zeros(texts, dtype=torch.long, device=self._device)
        self.position = torch.zeros(1, dtype=torch.long, device=self._device)
        """Of all texts: they are of one length."""

    @torch.inference_mode()
    def step(self) -> None:
        """Reads `tokens` at `position`, puts the most probable next ones in their place, and moves on by one."""
        decoder = self._decoder
        x = decoder.embed_tokens(self.tokens)
        cos, sin = (t[0] for t in decoder.rotary_emb(x, self.position[None]))
        visible = (self._slots <= self.position)[None, None, None]
        for index, block in enumerate(decoder.layers):
            y = _norm(block.input_layernorm, x)
            x = x + self._attended(index, block.self_attn, y, cos, sin, visible)
            x = x + block.mlp(_norm(block.post_attention_layernorm, x))
        self.tokens.copy_(self._head(_norm(decoder.norm, x)).float().argmax(-1))
        self.position.add_(1)

    def _attended(
        self,
        index: int,
        attention: nn.Module,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """What the attention of block `index` adds [texts, hidden]."""
        texts = len(x)
        q, k, v = (
            linear(x).view(texts, -1, 1, attention.head_dim)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys, values = self._cache[index]
        keys.index_copy_(2, self.position, _rotate(k, cos, sin))
        values.index_copy_(2, self.position, v)
        shared = q.shape[1] // k.shape[1]
        # The heads that share a key head are queries of one head, so keys and values are never repeated.
        grouped = _rotate(q, cos, sin).view(texts, -1, shared, attention.head_dim)
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=visible, scale=attention.scaling)
        return attention.o_proj(out.reshape(texts, -1))

    def capture(self) -> None:
        """Holds the step as a graph, on a GPU."""
        if self._device.type != "cuda":
            return
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.step()

    def tokens_per_s(self, start: int, count: int) -> float:
        """Decodes `count` tokens of each text from position `start` on, waiting for each."""
        self.position.fill_(0)
        self.capture()
        self.position.fill_(start)
        self.tokens.fill_(5)
        started = time.perf_counter()
        for _ in range(count):
            self._graph.replay() if self._graph else self.step()
            self.tokens.tolist()
        return len(self.tokens) * count / (time.perf_counter() - started)


def _norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `x` [..., head_dim] at the position of `cos` and `sin` [1, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
