"""Log-probabilities of given tokens, many texts at a time, with what texts share computed once.

Texts that begin alike (the choices of a question, the questions behind the same examples) become one row: the shared
beginning, then what is left of each text, one after the other. A mask lets every token see the shared beginning and its
own text alone, and positions go on from the beginning for each text, so each gets what it would get by itself. Rows of
about equal length make a batch: on a CPU without padding (models/forward.py), else padded to the longest. The head is
applied to the positions of the targets, and to no others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from quant_engine.models.forward import PackedText, is_supported, states_at

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
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
    padded = _is_padded(loaded.model)
    for batch in _batches([len(row.ids) for row in rows], BATCH_TOKENS[loaded.model.device.type], padded=padded):
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


def _is_padded(model: Any) -> bool:
    """Whether rows of a batch are padded to one length: many short rows would keep a GPU waiting, each by itself."""
    return model.device.type != "cpu" or not is_supported(model.get_decoder())


def _batches(lengths: list[int], budget: int, *, padded: bool) -> list[list[int]]:
    """Indices of rows of about equal length, so that a batch, with its padding if any, stays within `budget` tokens."""
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        added = lengths[batches[-1][0]] if batches and padded else lengths[index]
        if batches and tokens + added <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            tokens = 0
        tokens += added
    random.Random(0).shuffle(batches)
    return batches


@torch.inference_mode()
def _forward(model: Any, rows: list[_Row]) -> list[list[list[float]]]:
    """For each row, for each of its texts, a value for each target."""
    length, starts = max(len(row.ids) for row in rows), [0]
    padded = _is_padded(model)
    for row in rows:
        starts.append(starts[-1] + (length if padded else len(row.ids)))
    targets = [
        (start + position, token)
        for start, row in zip(starts, rows, strict=False)
        for text_targets in row.targets
        for position, token in text_targets
    ]
    positions, tokens = torch.tensor(targets, dtype=torch.long).view(-1, 2).T
    wanted, wanted_index = positions.unique(return_inverse=True)
    if padded:
        states = _padded_states(model, rows)[wanted.to(model.device)]
    else:
        states = states_at(model.get_decoder(), [_packed_text(row) for row in rows], wanted)
    values = iter(_target_values(model.get_output_embeddings(), states, wanted_index, tokens).tolist())
    return [[[next(values) for _ in text_targets] for text_targets in row.targets] for row in rows]


def _packed_text(row: _Row) -> PackedText:
    plain = len(set(row.segments)) == 1
    return PackedText(row.ids, row.positions, None if plain else _visible(torch.tensor(row.segments)))


def _padded_states(model: Any, rows: list[_Row]) -> torch.Tensor:
    """What the head gets at each position of rows that are padded on the right [rows * tokens, hidden]."""
    ids = _padded([row.ids for row in rows], 0)
    positions = _padded([row.positions for row in rows], 0)
    segments = _padded([row.segments for row in rows], -1)  # padding is seen by itself alone
    visible = torch.stack([_visible(row) for row in segments])
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    decoder = model.get_decoder()
    states = decoder(
        input_ids=ids.to(model.device),
        position_ids=positions.to(model.device),
        attention_mask=mask[:, None].to(model.device),
        use_cache=False,
    ).last_hidden_state
    return states.flatten(0, 1)


def _padded(lists: list[list[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(values) for values in lists], batch_first=True, padding_value=padding)


def _target_values(
    head: torch.nn.Module, states: torch.Tensor, indices: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """The log-probability of each of `tokens` [targets], by its index in `states` [positions, hidden]."""
    values = torch.empty(len(tokens))
    for start in range(0, len(states), HEAD_ROWS):
        chunk = states[start : start + HEAD_ROWS]
        in_chunk = ((indices >= start) & (indices < start + len(chunk))).nonzero().flatten()
        logs = head(chunk).float().log_softmax(-1).cpu()
        values[in_chunk] = logs[indices[in_chunk] - start, tokens[in_chunk]]
    return values


def _visible(segments: torch.Tensor) -> torch.Tensor:
    """Which tokens each token of a row sees [tokens, tokens]: what is before it in its own text and in the shared
    beginning (segment 0), and itself."""
    before = torch.ones(len(segments), len(segments), dtype=torch.bool).tril()
    own = segments[:, None] == segments
    shared = (segments == 0) & (segments >= 0)[:, None]
    return before & (own | shared)
