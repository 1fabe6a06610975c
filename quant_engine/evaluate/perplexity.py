"""Perplexity in the common form of the quantization papers.

The text's token ids are cut into K = floor(L / S) windows of S tokens that share nothing; the tail is dropped.

    loss_k = mean cross-entropy of the S - 1 next tokens inside window k        PPL = exp(mean of loss_k)

The tokenizer sees the whole text once, so a beginning-of-text token stands in the first window at most. Logits are
compared in float32. Reference: the evaluation code of GPTQ (arXiv 2210.17323).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant_engine.data import texts
from quant_engine.data.corpora import Corpus
from quant_engine.deferred import deferred
from quant_engine.evaluate.intervals import reach_of_error
from quant_engine.evaluate.task import HEADLINE, Outcome, Task, Units, Watch, mean_and_error
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

torch = deferred("torch")

TOKENS_AT_ONCE = 2048
BEGINNING = 64
"""Tokens of a window that its output has to recognize it by; where it stands in the text says the rest."""


class Perplexity(Task):
    """Perplexity on a text file; without one, on the built-in text."""

    metric = "perplexity"
    unit = "PPL"
    higher_is_better = False

    def __init__(self, pinned: str | None = None) -> None:
        self._path = texts.path_of(pinned) if pinned else texts.BUILTIN_EVALUATION
        self.name = f"perplexity:{pinned}" if pinned else "perplexity"
        self.title = self._path.name if pinned else "Built-in text"
        self.help = (
            f"Perplexity on {self._path}."
            if pinned
            else "Perplexity on English country profiles (public domain), the text that ships with the project."
        )

    @classmethod
    def of_file(cls, name: str) -> Perplexity:
        """The task on PATH, or on PATH@HASH as a resolved run has it. Raises UserError if it can't be read as text."""
        return cls(texts.pin(name))

    def revision(self) -> str:
        return f"sha256:{texts.file_digest(self._path)}"

    def token_ids(self, tokenizer: Any, window: int, limit: int | None) -> tuple[list[int], str]:
        """Token ids of at least the first `limit` windows (all, if None), and what identifies the text."""
        text = texts.read(self._path)
        return tokenizer(text, verbose=False)["input_ids"], f"sha256:{texts.digest(text)}"

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        ids, revision = self.token_ids(loaded.tokenizer, spec.window, spec.text_windows)
        windows = windows_of(ids, spec, self.title)
        finished = watch.finished_items.open(revision)
        remaining = [index for index in range(len(windows)) if str(index) not in finished]
        batch_size = windows_at_once(spec.window)
        for start in range(0, len(remaining), batch_size):
            batch = remaining[start : start + batch_size]
            outputs = [
                ItemOutput(
                    item=str(index),
                    prompt=loaded.tokenizer.decode(windows[index, :BEGINNING]),
                    gold=[],
                    prediction="",
                    score=loss,
                )
                for index, loss in zip(batch, window_losses(loaded, windows[batch]), strict=True)
            ]
            watch.record(outputs, finished, len(windows))
        outcome = self.conclude([finished[str(index)] for index in range(len(windows))], revision)
        # A model no better than guessing among all tokens has collapsed, whatever its number.
        if outcome.value is not None and outcome.value > loaded.vocabulary:
            outcome.status = "collapsed"
        return outcome

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        """The loss of each window."""
        return {HEADLINE: {output.item: output.score for output in outputs}}

    def value(self, mean: float) -> float:
        return math.exp(mean)

    def error(self, units: Units) -> float | None:
        mean, error = mean_and_error(list(units.values()))
        return None if error is None else math.exp(mean) * error

    def interval(self, units: Units, suffix: str = HEADLINE) -> tuple[float, float] | None:
        """The interval of the mean loss, as perplexities."""
        mean, error = mean_and_error(list(units.values()))
        if not error or not math.isfinite(error):
            return None
        reach = reach_of_error(error, len(units))
        try:
            return math.exp(mean - reach), math.exp(mean + reach)
        except OverflowError:
            return None


class PublishedPerplexity(Perplexity):
    """Perplexity on one of the published texts."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.name, self.title = corpus.name, corpus.title
        self.help = f"Perplexity on {corpus.title}, from the hub ({corpus.source.repo}) or a local folder."

    def revision(self) -> str:
        return self._corpus.revision()

    def prepare(self) -> None:
        self._corpus.read()

    def token_ids(self, tokenizer: Any, window: int, limit: int | None) -> tuple[list[int], str]:
        return self._corpus.token_ids(tokenizer, window, limit)


def windows_at_once(window: int) -> int:
    """How many windows of `window` tokens are read at once."""
    return max(1, TOKENS_AT_ONCE // window)


def windows_of(ids: list[int], spec: RunSpec, title: str) -> torch.Tensor:
    """The windows [count, S] of a text's token ids. Raises UserError if there is none."""
    count = len(ids) // spec.window
    if count == 0:
        raise UserError(f"{title} has {len(ids)} tokens, fewer than one window of {spec.window}.")
    count = min(count, spec.text_windows or count)
    return torch.tensor(ids[: count * spec.window]).view(count, spec.window)


def window_losses(loaded: Loaded, windows: torch.Tensor) -> list[float]:
    """Mean next-token cross-entropy of each window; `windows` is [count, S] token ids."""
    with torch.inference_mode():
        windows = windows.to(loaded.device)
        logits = loaded.model(input_ids=windows, use_cache=False).logits
        return [
            torch.nn.functional.cross_entropy(window_logits[:-1].float(), ids[1:]).item()
            for window_logits, ids in zip(logits, windows, strict=True)
        ]
