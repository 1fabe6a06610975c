"""Log-probabilities of given tokens, many texts at a time, with what texts share computed once.

Texts that begin alike (the choices of a question, the questions behind the same examples) become one row: the shared
beginning, then what is left of each text, one after the other. A mask lets every token see the shared beginning and its
own text alone, and positions go on from the beginning for each text, so each gets what it would get by itself. Rows of
about equal length make a batch. The head is applied to the positions that are asked about, and to no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a batch, padding included. Results do not depend on it, up to rounding."""

HEAD_ROWS = 512
"""Positions that get the whole vocabulary's logits at once: they are the largest tensor by far."""


@dataclass(frozen=True)
class Text:
    """Token ids, and the (position, token) pairs whose log-probability at that position is asked for."""

    ids: Sequence[int]
    asked: Sequence[tuple[int, int]]


@dataclass
class _Row:
    """Texts packed behind their shared beginning. `segments` number the texts from 1; 0 is what they share."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    asked: list[list[tuple[int, int]]]


def continuation(context: Sequence[int], following: Sequence[int], longest: int) -> Text:
    """A context and what follows it, of which every token is asked for.

    At most `longest` tokens are read, the last ones: a longer context is cut at its start. The last token of all is
    only predicted. `context` must not be empty.
    """
    whole = [*context, *following][-(longest + 1) :]
    first = len(whole) - min(len(following), len(whole) - 1)
    return Text(whole[:-1], [(place - 1, whole[place]) for place in range(first, len(whole))])


def log_probabilities(loaded: Loaded, groups: Sequence[Sequence[Text]]) -> Iterator[dict[int, list[list[float]]]]:
    """For each batch, the results of its groups by their number: for each text, one value for each pair asked.

    Texts of a group share their beginning, as far as it goes. Batches come in a shuffled order, so that the time for
    the first half of them is the time for the other half.
    """
    rows = {number: _pack(texts) for number, texts in enumerate(groups)}
    budget = BATCH_TOKENS[loaded.model.device.type]
    for batch in _batches({number: len(row.ids) for number, row in rows.items()}, budget):
        values = _forward(loaded.model, [rows[number] for number in batch])
        yield dict(zip(batch, values, strict=True))


def _pack(texts: Sequence[Text]) -> _Row:
    shared = 0
    for column in zip(*(text.ids for text in texts), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    row = _Row(list(texts[0].ids[:shared]), list(range(shared)), [0] * shared, [])
    for number, text in enumerate(texts, 1):
        offset = len(row.ids) - shared
        row.ids += text.ids[shared:]
        row.positions += range(shared, len(text.ids))
        row.segments += [number] * (len(text.ids) - shared)
        row.asked.append([(place if place < shared else offset + place, token) for place, token in text.asked])
    return row


def _batches(lengths: dict[int, int], budget: int) -> list[list[int]]:
    """Numbers of rows of about equal length, so that a batch with its padding stays within `budget` tokens."""
    batches: list[list[int]] = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(number)
        else:
            batches.append([number])
    random.Random(0).shuffle(batches)
    return batches


@torch.inference_mode()
def _forward(model: Any, rows: list[_Row]) -> list[list[list[float]]]:
    longest = max(len(row.ids) for row in rows)
    ids, positions, segments = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    segments -= 1  # padding, which is seen by itself alone
    for number, row in enumerate(rows):
        size = len(row.ids)
        ids[number, :size] = torch.tensor(row.ids)
        positions[number, :size] = torch.tensor(row.positions)
        segments[number, :size] = torch.tensor(row.segments)
    hidden = model.get_decoder()(
        input_ids=ids.to(model.device),
        position_ids=positions.to(model.device),
        attention_mask=_mask(segments, model.dtype).to(model.device),
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    wanted = [number * longest + place for number, row in enumerate(rows) for text in row.asked for place, _ in text]
    places, back = torch.tensor(wanted).unique(return_inverse=True)
    tokens = torch.tensor([token for row in rows for text in row.asked for _, token in text])
    values = torch.empty(len(wanted))
    head = model.get_output_embeddings()
    for start in range(0, len(places), HEAD_ROWS):
        some = places[start : start + HEAD_ROWS]
        of_some = ((back >= start) & (back < start + len(some))).nonzero().flatten()
        logs = head(hidden[some.to(hidden.device)]).float().log_softmax(-1).cpu()
        values[of_some] = logs[back[of_some] - start, tokens[of_some]]
    left = iter(values.tolist())
    return [[[next(left) for _ in text] for text in row.asked] for row in rows]


def _mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask [rows, 1, tokens, tokens]: each token sees what is before it in its own text, the shared
    beginning (segment 0), and itself."""
    count = segments.shape[1]
    before = torch.ones(count, count, dtype=torch.bool).tril()
    own = segments[:, :, None] == segments[:, None, :]
    shared = (segments == 0)[:, None, :] & (segments >= 0)[:, :, None]
    seen = before & (own | shared)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
