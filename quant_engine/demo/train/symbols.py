"""The code in which the language model is told what a patch holds: a sum of learned vectors, one for each symbol.

A patch with "4" at its left and "8" at its right on green becomes left["4"] + right["8"] + colour["green"] + common.
The tables start from SmolLM2's own embeddings, so that the code already means something to it; they are trained with
the adapter, and the projector then learns to emit them. They are scaffolding: they don't ship.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from quant_engine.demo.drawing import COLOURS
from quant_engine.demo.train.labels import CHARACTERS, FIELDS, MARKS, SLOTS


class Symbols(nn.Module):
    """One table for each field of a patch's labels, a vector common to all patches, and the end-of-row vector."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, embeddings: Tensor) -> None:
        super().__init__()
        embeddings = embeddings.detach().float()

        def mean_of(text: str) -> Tensor:
            return embeddings[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)

        characters = torch.stack([mean_of(c) for c in CHARACTERS])
        # Mostly the character's own embedding, so that SmolLM2 knows it at once, and for the later characters of a
        # patch some of a fixed rotation of it, so that their order can be told.
        slots = [0.85 * characters + 0.5 * characters.roll(k, 1) if k else characters for k in range(SLOTS)]
        marks = torch.stack([mean_of(f" {mark}") for mark in MARKS])
        colours = torch.stack([mean_of(f" {colour}") for colour in COLOURS])
        zero = torch.zeros(1, embeddings.shape[1])
        self.tables = nn.ParameterList([nn.Parameter(torch.cat([zero, t])) for t in (*slots, marks, colours)])
        self.common = nn.Parameter(0.5 * mean_of(" ."))
        self.newline = nn.Parameter(mean_of("\n"))
        if tuple(len(t) for t in self.tables) != FIELDS:
            raise ValueError("The symbol tables do not fit the fields of the labels.")

    def exact(self, labels: Tensor) -> Tensor:
        """Codes of labels [..., fields]: [..., hidden]. "None" adds nothing."""
        total = self.common.expand(*labels.shape[:-1], -1)
        for field, table in enumerate(self.tables):
            chosen = labels[..., field].long()
            total = total + nn.functional.embedding(chosen, table) * (chosen > 0).unsqueeze(-1)
        return total

    def expected(self, outputs: list[Tensor]) -> Tensor:
        """Codes of what a tower believes: each field's table weighted with the softmax of its logits [..., classes]."""
        total = self.common.expand(*outputs[0].shape[:-1], -1)
        for output, table in zip(outputs, self.tables, strict=True):
            total = total + output.float().softmax(-1)[..., 1:].to(table.dtype) @ table[1:]
        return total
