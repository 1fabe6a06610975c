"""Log-probabilities of given tokens, many texts at a time, with what texts share computed once.

Texts that begin alike (the choices of a question, the questions behind the same examples) become one row: the shared
beginning, then what is left of each text, one after the other. A mask lets every token see the shared beginning and its
own text alone, and positions go on from the beginning for each text, so each gets what it would get by itself. Rows of
about equal length make a batch. The head is applied to the positions of the targets, and to no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a batch, padding included. Results do not depend on it, up to rounding."""

HEAD_ROWS = 512
"""Positions that get the whole vocabulary's logits at once: they are the largest tensor by far."""


@dataclass(frozen=True)
class Text:
    """Token ids, and the targets: (position, token) pairs whose log-probability at that position is computed."""

    ids: Sequence[int]
    targets: Sequence[tuple[int, int]]


@dataclass
class _Row:
    """Texts packed behind their shared beginning. `segments` number the texts from 1; 0 is what they share. `targets`
    are those of each text, with positions in the row."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[list[tuple[int, int]]]


def continuation(context: Sequence[int], following: Sequence[int], most_tokens: int) -> Text:
    """A context and what follows it, of which every token is a target.

    At most `most_tokens` tokens are read, the last ones: a longer context is cut at its start. The last token of all is
    only predicted. `context` must not be empty.
    """
    ids = [*context, *following][-(most_tokens + 1) :]
    first = len(ids) - min(len(following), len(ids) - 1)
    return Text(ids[:-1], [(index - 1, ids[index]) for index in range(first, len(ids))])


def log_probabilities(loaded: Loaded, groups: Sequence[Sequence[Text]]) -> Iterator[dict[int, list[list[float]]]]:
    """For each batch, the results of its groups by their index: for each text, a value for each target.

    Texts of a group share their beginning, as far as it goes. Batches come in a shuffled order, so that the time for
    the first half of them is the time for the other half.
    """
    rows = [_pack(texts) for texts in groups]
    for batch in _batches([len(row.ids) for row in rows], BATCH_TOKENS[loaded.model.device.type]):
        values = _forward(loaded.model, [rows[index] for index in batch])
        yield dict(zip(batch, values, strict=True))


def _pack(texts: Sequence[Text]) -> _Row:
    shared = 0
    for column in zip(*(text.ids for text in texts), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    row = _Row(list(texts[0].ids[:shared]), list(range(shared)), [0] * shared, [])
    for segment, text in enumerate(texts, 1):
        offset = len(row.ids) - shared
        row.ids += text.ids[shared:]
        row.positions += range(shared, len(text.ids))
        row.segments += [segment] * (len(text.ids) - shared)
        row.targets.append([(index if index < shared else offset + index, token) for index, token in text.targets])
    return row


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of rows of about equal length, so that a batch with its padding stays within `budget` tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    random.Random(0).shuffle(batches)
    return batches


@torch.inference_mode()
def _forward(model: Any, rows: list[_Row]) -> list[list[list[float]]]:
    """For each row, for each of its texts, a value for each target."""
    hidden = _hidden_states(model, rows)
    targets = [
        (index * hidden.shape[1] + position, token)
        for index, row in enumerate(rows)
        for text_targets in row.targets
        for position, token in text_targets
    ]
    positions, tokens = torch.tensor(targets, dtype=torch.long).view(-1, 2).T
    values = iter(_target_values(model.get_output_embeddings(), hidden.flatten(0, 1), positions, tokens).tolist())
    return [[[next(values) for _ in text_targets] for text_targets in row.targets] for row in rows]


def _hidden_states(model: Any, rows: list[_Row]) -> torch.Tensor:
    """What the head gets at each position [rows, tokens, hidden]; shorter rows are padded on the right."""
    ids = _padded([row.ids for row in rows], 0)
    positions = _padded([row.positions for row in rows], 0)
    segments = _padded([row.segments for row in rows], -1)  # padding is seen by itself alone
    decoder = model.get_decoder()
    return decoder(
        input_ids=ids.to(model.device),
        position_ids=positions.to(model.device),
        attention_mask=_mask(segments, model.dtype).to(model.device),
        use_cache=False,
    ).last_hidden_state


def _padded(lists: list[list[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(values) for values in lists], batch_first=True, padding_value=padding)


def _target_values(
    head: torch.nn.Module, hidden: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """The log-probability of each of `tokens` [targets] at its position in `hidden` [tokens of the batch, hidden]."""
    distinct, distinct_index = positions.unique(return_inverse=True)
    values = torch.empty(len(positions))
    for start in range(0, len(distinct), HEAD_ROWS):
        chunk = distinct[start : start + HEAD_ROWS]
        in_chunk = ((distinct_index >= start) & (distinct_index < start + len(chunk))).nonzero().flatten()
        logs = head(hidden[chunk.to(hidden.device)]).float().log_softmax(-1).cpu()
        values[in_chunk] = logs[distinct_index[in_chunk] - start, tokens[in_chunk]]
    return values


def _mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask [rows, 1, tokens, tokens]: each token sees what is before it in its own text, the shared
    beginning (segment 0), and itself."""
    count = segments.shape[1]
    before = torch.ones(count, count, dtype=torch.bool).tril()
    own = segments[:, :, None] == segments[:, None, :]
    shared = (segments == 0)[:, None, :] & (segments >= 0)[:, :, None]
    visible = before & (own | shared)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
