"""Answers of one model that are decoded together; one joins or leaves between any two tokens.

Each is token for token what it is alone. A prompt is read by itself, as `decode.answer` reads it; then the answers
share steps, and a token counts only if it leads as batch.py asks for. Where it does not, what this answer read in
company is read again by itself, a token a step, and from there it stays alone. Models whose batches can't be held
against rounding have each answer decoded by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quant_engine.models.batch import LEAD, is_reproducible
from quant_engine.models.decode import Beginning, Exchange, PictureCache, Step, answer, end_tokens, read_prompt, step
from quant_engine.models.forward import Piece, is_supported, last_states
from quant_engine.models.key_values import SPARE_TOKENS, KeyValues

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.models.load import Loaded


@dataclass(eq=False)
class OpenAnswer:
    """An answer in progress: its last step, and its tokens. Keys and values of the first `exact` tokens of prompt and
    answer are those of an answer decoded alone. Where the model's forward pass is its own, `steps` computes it."""

    last: Step
    alone: bool
    beginning: Beginning | None = None
    tokens: tuple[int, ...] = ()
    exact: int = 0
    decoding: float = 0.0
    steps: Iterator[Step] | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory of its keys and values, about; 0 where that is not known."""
        if self.beginning is None:
            return 0
        spare = min(self.beginning.limit, SPARE_TOKENS)
        return self.beginning.cache.token_bytes * (self.beginning.prompt_tokens + spare)


class OpenAnswers:
    """The open answers of one model."""

    def __init__(self, loaded: Loaded, pictures: PictureCache) -> None:
        self._loaded, self._pictures = loaded, pictures
        self._supported = is_supported(loaded.model.get_decoder())
        self._batched = self._supported and is_reproducible(loaded)
        self._ends, self._weight_bytes = end_tokens(loaded), loaded.weight_bytes
        self.answers: list[OpenAnswer] = []

    def join(
        self,
        image: Image | None,
        question: str,
        max_new_tokens: int,
        earlier: Sequence[Exchange] = (),
        prefix: Sequence[int] = (),
    ) -> OpenAnswer:
        """Read a question as `decode.answer` does; its answer has the first token. Raises UserError as that does."""
        loaded = self._loaded
        if self._supported:
            beginning = read_prompt(loaded, image, question, max_new_tokens, None, self._pictures, earlier, prefix)
            tokens = (beginning.token,)
            finished = beginning.token in self._ends or beginning.limit == 1
            first = step(loaded, beginning, [*tokens], 0.0, self._weight_bytes, finished)
            joined = OpenAnswer(first, not self._batched, beginning, tokens, exact=beginning.prompt_tokens)
        else:
            steps = answer(loaded, image, question, max_new_tokens, None, self._pictures, earlier, prefix)
            joined = OpenAnswer(next(steps), alone=True, steps=steps)
        if not joined.last.finished:
            self.answers.append(joined)
        return joined

    def leave(self, left: OpenAnswer) -> None:
        """Take an answer out, finished or not."""
        if left in self.answers:
            self.answers.remove(left)

    def groups(self) -> list[list[OpenAnswer]]:
        """The answers that are advanced together: a round is one `advance` of each group."""
        together = [answer for answer in self.answers if not answer.alone]
        return [*([together] if together else []), *([answer] for answer in self.answers if answer.alone)]

    def advance(self, group: Sequence[OpenAnswer]) -> list[OpenAnswer]:
        """Compute a step of the answers of one group. Returns those that have one more token; finished ones leave."""
        if group[0].steps:
            group[0].last = next(group[0].steps)
            advanced = [group[0]]
        else:
            advanced = self._advance(group)
        for row in advanced:
            if row.last.finished:
                self.leave(row)
        return advanced

    @torch.inference_mode()
    def _advance(self, group: Sequence[OpenAnswer]) -> list[OpenAnswer]:
        started = time.perf_counter()
        model = self._loaded.model
        unread = [row.tokens[_read(row)] for row in group]
        embeddings = model.get_input_embeddings()(torch.tensor(unread, device=model.device))
        pieces = [Piece(embeddings[i : i + 1], row.beginning.cache) for i, row in enumerate(group)]
        logits = model.get_output_embeddings()(last_states(model.get_decoder(), pieces)).float()
        tokens = logits.argmax(-1).tolist()
        clear = [True]
        if len(group) > 1:
            first, second = logits.topk(2).values.T
            clear = (first - second > LEAD * logits.abs().amax(-1)).tolist()
        seconds = time.perf_counter() - started
        advanced = []
        for row, token, leads in zip(group, tokens, clear, strict=True):
            row.decoding += seconds
            cache = row.beginning.cache
            if len(group) == 1 and row.exact == cache.length - 1:
                row.exact = cache.length
            if not leads:
                row.alone = True
                cache.crop(row.exact - cache.length)
            elif _read(row) == len(row.tokens):
                self._add(row, token)
                advanced.append(row)
        return advanced

    def _add(self, answer: OpenAnswer, token: int) -> None:
        answer.tokens = (*answer.tokens, token)
        finished = token in self._ends or len(answer.tokens) >= answer.beginning.limit
        answer.last = step(
            self._loaded, answer.beginning, [*answer.tokens], answer.decoding, self._weight_bytes, finished
        )


def _read(answer: OpenAnswer) -> int:
    """How many of an answer's tokens have been read again to predict what follows."""
    cache: KeyValues = answer.beginning.cache
    return cache.length - answer.beginning.prompt_tokens
