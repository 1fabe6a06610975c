"""The code in which the language model is told what a patch holds: as near to plain text as a patch allows.

A patch where a known word starts becomes that word's own embedding, so that SmolLM2 reads it as it reads text. Else its
characters' embeddings are added up, the second and third turned by a fixed rotation each, so that their order can be
told; and a mark and a colour are added where nothing is written. What a text leads to, or what leads to it, is coded
alike in the patch behind, with a vector that says which of both. Row and column within the tile are added too, for text
the column of its centre. The tables start from SmolLM2's embeddings and are trained with the adapter; the projector
then learns to emit them. They are scaffolding: they don't ship.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from quant_engine.data.drawn.drawing import COLOURS, ROLES
from quant_engine.demo_training.labels import (
    CENTRE,
    CHARACTERS,
    COLOUR,
    CONTINUED,
    COUNT,
    FIELDS,
    FROM,
    LINKED,
    LINKED_SLOTS,
    LINKED_WORD,
    MARK,
    MARKS,
    MOST,
    SIDE,
    SLOTS,
    TO,
    WORD,
    WORDS,
)

PLACE_NORM = 0.25  # length of a row's or column's vector at the start, in mean lengths of embeddings


class Symbols(nn.Module):
    """One table for each field of a patch's labels, a vector common to all patches, and the end-of-row vector."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, embeddings: Tensor) -> None:
        super().__init__()
        embeddings = embeddings.detach().float()

        def mean_of(text: str) -> Tensor:
            return embeddings[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)

        characters = torch.stack([mean_of(c) for c in CHARACTERS])
        slots = [characters.roll(17 * k, 1) for k in range(SLOTS)]
        marks = torch.stack([mean_of(f" {mark}") for mark in MARKS])
        colours = torch.stack([mean_of(f" {colour}") for colour in COLOURS])
        zero = torch.zeros(1, embeddings.shape[1])
        words = torch.cat([torch.stack([mean_of(f" {word}") for word in WORDS]), zero])  # the last: continuation
        self.tables = nn.ParameterList([nn.Parameter(torch.cat([zero, t])) for t in (*slots, marks, colours, words)])
        linked = [characters.roll(17 * k, 1) for k in range(LINKED_SLOTS)]
        linked.append(torch.cat([words[:-1], *(mean_of(f" {role}")[None] for role in ROLES)]))
        linked.append(torch.stack([mean_of(str(n)) + 0.5 * mean_of(" many") for n in range(1, 1 + MOST)]))
        self.linked = nn.ParameterList([nn.Parameter(torch.cat([zero, t])) for t in linked])
        self.common = nn.Parameter(0.3 * mean_of(" ."))
        self.newline = nn.Parameter(mean_of("\n"))
        length = PLACE_NORM * embeddings.norm(dim=1).mean()
        draw = torch.Generator().manual_seed(0)
        vectors = nn.functional.normalize(torch.randn(2, SIDE, embeddings.shape[1], generator=draw), dim=-1)
        self.rows, self.columns = (nn.Parameter(length * axis) for axis in vectors)
        self.ways = nn.Parameter(length * nn.functional.normalize(torch.randn(2, embeddings.shape[1], generator=draw)))
        if tuple(len(t) for t in (*self.tables, *self.linked)) != FIELDS[:CENTRE] + FIELDS[LINKED.start :]:
            raise ValueError("The symbol tables do not fit the fields of the labels.")

    def exact(self, labels: Tensor) -> Tensor:
        """Codes [rows, columns, hidden] of labels [rows, columns, fields] of whole tiles. "None" adds nothing."""
        chances = [nn.functional.one_hot(labels[..., f].long(), n) for f, n in enumerate(FIELDS)]
        down, across = (torch.arange(n, device=labels.device) % SIDE for n in labels.shape[:2])
        return self._code(chances, self.columns[across]) + self.rows[down][:, None]

    def coded(self, labels: Tensor) -> Tensor:
        """The labels [..., fields] of what a code tells: 0 where it is replaced by something else, and for places."""
        coded = labels.clone()
        coded[..., CENTRE : LINKED.start] = 0
        linked = labels[..., [LINKED.start, LINKED_WORD, COUNT]].any(-1)
        coded[..., :CENTRE][linked] = 0
        word = labels[..., WORD] > 0
        coded[..., :SLOTS][word] = 0
        coded[..., COLOUR][word | (labels[..., 0] > 0)] = 0
        coded[..., WORD][labels[..., WORD] == CONTINUED] = 0
        return coded

    def read(self, codes: Tensor) -> dict[int, Tensor]:
        """What codes [tiles, SIDE * SIDE, hidden] tell: for each field a logit of each class, by distance to its code.

        A class's logit is half the difference of the squared distances to "none" and to the class.
        """
        rows, columns = (v.flatten(0, 1) for v in torch.broadcast_tensors(self.rows[:, None], self.columns[None]))
        offsets = codes - (self.common + rows + columns).to(codes.dtype)
        fields = [*range(CENTRE), *range(LINKED.start, len(FIELDS))]
        tables = {f: table.to(codes.dtype) for f, table in zip(fields, (*self.tables, *self.linked), strict=True)}
        return {f: offsets @ table.T - table.square().sum(-1) / 2 for f, table in tables.items()}

    def expected(self, outputs: list[Tensor]) -> Tensor:
        """Codes of what a tower believes: logits [tiles, SIDE * SIDE, classes] of each field, weighted by softmax."""
        rows, columns = (v.flatten(0, 1) for v in torch.broadcast_tensors(self.rows[:, None], self.columns[None]))
        return self._code([output.float().softmax(-1) for output in outputs], columns) + rows

    def _code(self, chances: list[Tensor], columns: Tensor) -> Tensor:
        """Codes from the chance of each class of each field, without rows; `columns` are those of the patches.

        What a word says replaces its characters, text a colour, what is linked all that is drawn here, and the column
        of a text's centre that of its patch.
        "None" (class 0) and "continued" (the last word) add nothing.
        """
        chances = [chance.to(self.common.dtype) for chance in chances]
        centre, to, back = chances[CENTRE], chances[TO.start], chances[FROM.start]
        fields = [*range(CENTRE), *range(LINKED.start, len(FIELDS))]
        tables = [table[1:] for table in (*self.tables, *self.linked)]
        parts = {f: chances[f][..., 1:] @ table for f, table in zip(fields, tables, strict=True)}
        no_word, no_character = chances[WORD][..., :1], chances[0][..., :1]
        no_link = chances[LINKED.start][..., :1] * chances[LINKED_WORD][..., :1] * chances[COUNT][..., :1]
        drawn = no_word * (sum(parts[slot] for slot in range(SLOTS)) + no_character * parts[COLOUR])
        ways = (1 - to[..., :1]) * self.ways[0] + (1 - back[..., :1]) * self.ways[1]
        linked = sum(parts[f] for f in range(LINKED.start, len(FIELDS))) + (1 - no_link) * ways
        total = self.common + no_link * (drawn + parts[MARK] + parts[WORD]) + linked + centre[..., 1:] @ self.columns
        return total + centre[..., :1] * columns
