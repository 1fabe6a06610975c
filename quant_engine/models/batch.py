"""Many greedy answers at once, each of them token for token what it is alone.

Several questions are decoded together: a step reads the last token of each, and the whole question of one that joins,
in a single pass (see forward.py). What questions about the same picture have in common is read once.

Sums of a batch are added up in another order than those of one row, so logits differ in their last digits, in float32
by about a millionth of the largest. Only where two tokens are as close as that could another one win. So a token counts
only if it leads by `LEAD` of the largest logit, which is a hundred times as much; where one leads by less, that answer
is decoded anew by itself, as `decode.answer` does it. Which questions share a batch, and what an interrupted run had
finished, then changes nothing. In 16 bits, and where activations are rounded to integers, differences are larger than
any such lead: there every question is a batch of its own, and its picture is always read apart from its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch

from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.decode import PromptCache, answer, answer_limit, answer_so_far, end_tokens, prompt_inputs
from quant_engine.models.forward import Piece, embed, is_supported, last_states
from quant_engine.models.key_values import SPARE_TOKENS, KeyValues
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.rounded_inputs import RoundedInputs

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.models.load import Loaded

ROWS = 16
"""Answers that are decoded together at most: as many activation rows as the low-bit kernels take."""
CACHE_BYTES = {"cpu": 2 * 2**30, "cuda": 16 * 2**30}
"""Memory for keys and values, about: where texts are long, fewer answers are decoded together."""
PICTURE_TOKENS = 1280
"""Tokens of pictures that are read in one pass at most, so that low-bit weights are unpacked once for several."""
LEAD = 1e-4
"""By how much of the largest logit a token of a batch must lead the next."""


@dataclass(frozen=True)
class Asked:
    """Questions about one picture, which is drawn or opened when it is needed. Answers are known by `indices`, and each
    ends after its `most_tokens`."""

    picture: Callable[[], Image | None]
    questions: Sequence[str]
    indices: Sequence[int]
    most_tokens: Sequence[int]

    @property
    def each(self) -> Iterator[tuple[int, str, int]]:
        """The index of each question, the question, and the most tokens of its answer."""
        return zip(self.indices, self.questions, self.most_tokens, strict=True)


@dataclass(frozen=True)
class Answered:
    """An answer: its tokens, its text without the space around it, and what the head got for each token [tokens,
    hidden], None where that is not known."""

    index: int
    tokens: list[int]
    text: str
    states: torch.Tensor | None


@dataclass
class _Row:
    """An answer in progress: the embeddings [tokens, hidden] of its prompt's beginning, which it has in common with
    others, of the rest, and of what is read next; and the answer so far. `alone` where it must not share a batch."""

    index: int
    beginning: torch.Tensor
    rest: torch.Tensor
    cache: KeyValues
    pending: torch.Tensor
    limit: int
    alone: bool
    finished: bool = False
    tokens: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


def is_reproducible(loaded: Loaded) -> bool:
    """Whether the tokens of a batch can be held against rounding: float32, and no activations rounded to a few bits."""
    linears = (module for module in loaded.model.modules() if isinstance(module, QuantLinear))
    in_float32 = loaded.model.get_decoder().norm.weight.dtype == torch.float32
    return in_float32 and not any(isinstance(linear.weight, IntActivations | RoundedInputs) for linear in linears)


def answers(
    loaded: Loaded, asked: Sequence[Asked], check_stop: Callable[[], None] = lambda: None
) -> Iterator[Answered]:
    """Answer questions by always taking the most probable token; each answer comes when it is finished.

    The answers are those of `decode.answer`. `check_stop` is called before each picture and token, and may raise.
    Raises UserError as `decode.answer` does.
    """
    if not is_supported(loaded.model.get_decoder()):
        yield from _one_by_one(loaded, asked, check_stop)
        return
    batched, ends = is_reproducible(loaded), end_tokens(loaded)
    waiting = _rows(loaded, asked, alone=not batched, check_stop=check_stop)
    active = list(islice(waiting, 1))
    most_rows = _most_rows(loaded, active[0]) if active and batched else 1
    while True:
        if len(active) <= most_rows // 2:  # several join at once: their texts are then read in one pass
            active += islice(waiting, most_rows - len(active))
        if not active:
            return
        check_stop()
        for row in _step(loaded, active, ends):
            _answer_alone(loaded, row, ends, check_stop)
        for row in [row for row in active if row.finished]:
            active.remove(row)
            text = answer_so_far(loaded.tokenizer, row.tokens).strip()
            yield Answered(row.index, row.tokens, text, torch.stack(row.states))


def _one_by_one(loaded: Loaded, asked: Sequence[Asked], check_stop: Callable[[], None]) -> Iterator[Answered]:
    for group in asked:
        picture, prompt_cache = group.picture(), PromptCache()
        for index, question, most_tokens in group.each:
            check_stop()
            steps = list(answer(loaded, picture, question, most_tokens, prompt_cache))
            yield Answered(index, [step.token for step in steps], steps[-1].text.strip(), None)


def _most_rows(loaded: Loaded, row: _Row) -> int:
    row_bytes = row.cache.token_bytes * (len(row.beginning) + len(row.rest) + min(row.limit, SPARE_TOKENS))
    return max(1, min(ROWS, CACHE_BYTES[loaded.model.device.type] // row_bytes))


def _rows(loaded: Loaded, asked: Sequence[Asked], *, alone: bool, check_stop: Callable[[], None]) -> Iterator[_Row]:
    """The rows of all questions, in order; a picture is read shortly before the first question about it comes."""
    model, decoder = loaded.model, loaded.model.get_decoder()
    unread: list[tuple[Piece, list[_Row]]] = []
    for group in asked:
        check_stop()
        picture, cache, rows = group.picture(), KeyValues(decoder), []
        for index, question, most_tokens in group.each:
            inputs = prompt_inputs(loaded, picture, question)
            ids = inputs["input_ids"][0]
            limit, prefix = answer_limit(model, len(ids), most_tokens), _picture_end(model, ids)
            if not rows:
                beginning = embed(model, inputs)[:prefix]
            rest = embed(model, {"input_ids": ids[None, prefix:]})
            rows.append(_Row(index, beginning, rest, cache, rest, limit, alone))
        if unread and (alone or _tokens(unread) + len(beginning) > PICTURE_TOKENS):
            yield from _read(decoder, unread)
            unread = []
        unread.append((Piece(beginning, cache), rows))
    yield from _read(decoder, unread)


def _tokens(unread: Sequence[tuple[Piece, list[_Row]]]) -> int:
    return sum(len(piece.embeddings) for piece, _ in unread)


def _read(decoder: torch.nn.Module, unread: Sequence[tuple[Piece, list[_Row]]]) -> Iterator[_Row]:
    """Reads the beginnings of prompts in one pass, and gives the rows that go on from each."""
    pieces = [piece for piece, _ in unread if len(piece.embeddings)]
    if pieces:
        last_states(decoder, pieces)
    for piece, rows in unread:
        for row in rows:
            if row is not rows[-1]:
                row.cache = piece.cache.branch(len(row.pending))
            yield row


def _picture_end(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Where the text behind the picture begins."""
    in_picture = (ids == getattr(model.config, "image_token_id", -1)).nonzero()
    return int(in_picture[-1]) + 1 if len(in_picture) else 0


@torch.inference_mode()
def _step(loaded: Loaded, rows: Sequence[_Row], ends: set[int]) -> list[_Row]:
    """Reads what is pending of each row and adds a token to it; the rows whose token does not lead clearly."""
    model = loaded.model
    states = last_states(model.get_decoder(), [Piece(row.pending, row.cache) for row in rows])
    logits = model.get_output_embeddings()(states).float()
    tokens = logits.argmax(-1)
    embeddings = model.get_input_embeddings()(tokens)
    first, second = logits.topk(2).values.T
    clear = (first - second > LEAD * logits.abs().amax(-1)).tolist()
    for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        row.tokens.append(token)
        row.states.append(states[index])
        row.pending = embeddings[index : index + 1]
        row.finished = token in ends or len(row.tokens) >= row.limit
    return [row for row, is_clear in zip(rows, clear, strict=True) if not (is_clear or row.alone)]


def _answer_alone(loaded: Loaded, row: _Row, ends: set[int], check_stop: Callable[[], None]) -> None:
    """Decodes an answer anew by itself, from the start of its prompt to its end."""
    row.cache, row.pending = KeyValues(loaded.model.get_decoder()), torch.cat([row.beginning, row.rest])
    row.tokens, row.states, row.alone, row.finished = [], [], True, False
    while not row.finished:
        check_stop()
        _step(loaded, [row], ends)
