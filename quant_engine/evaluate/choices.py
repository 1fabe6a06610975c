"""Multiple choice by likelihood: the choice with the most probable continuation of its context is the answer.

The score of a choice is the sum of the log-probabilities of its tokens given the context. acc compares these sums;
acc_norm divides each by the number of characters of the choice, without the space before it. Context and continuation
are tokenized apart and without special tokens; NAME:bos puts a beginning-of-text token first. Ties go to the first
choice. This is the protocol of the study, whose numbers are acc: lm-evaluation-harness of its time (v0.3).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quant_engine.data import sources
from quant_engine.deferred import deferred
from quant_engine.evaluate.task import Outcome, Part, Task, Units, Watch
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

likelihood = deferred("quant_engine.evaluate.likelihood")

MOST_CONTEXT = 2048
"""Tokens that a model is given to read at most, or its own limit where that is smaller."""


@dataclass(frozen=True)
class ChoiceItem:
    """One question. `contexts` has one text for each choice, often the same; `gold` is the number of the right one."""

    id: str
    prompt: str
    contexts: list[str]
    continuations: list[str]
    choices: list[str]
    gold: int


class MultipleChoice(Task):
    metric = "accuracy"
    unit = "%"
    higher_is_better = True
    parts: ClassVar = {"norm": Part("by length", "acc_norm")}
    source: ClassVar[sources.Source]
    bos = False

    @abstractmethod
    def item(self, row: dict[str, Any], index: int) -> ChoiceItem:
        """The question of a row, in the set's native fields or those of a local file.

        Raises ValueError (pydantic's, if a data.row.Row checks the fields) for a row that can't be asked or scored.
        """

    def with_bos(self) -> MultipleChoice:
        """This task with a beginning-of-text token before every context: another protocol, and another name."""
        task = copy.copy(self)
        task.bos = True
        task.name, task.title = f"{self.name}:bos", f"{self.title}, BOS"
        task.help = f"{self.help} With a beginning-of-text token first."
        return task

    def revision(self) -> str:
        return sources.revision(self.source, self.title)

    def prepare(self) -> None:
        self.items(sources.load(self.source, self.title))

    def items(self, rows: sources.Rows) -> list[ChoiceItem]:
        """The questions of all rows. Raises UserError where a row can't be asked or scored, or comes twice."""
        items = rows.read(self.item)
        rows.check_unique("id", [item.id for item in items])
        return items

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        rows = sources.load(self.source, self.title)
        items = self.items(rows)[: spec.limit]
        finished = watch.finished_items.open(rows.revision)
        remaining = [item for item in items if item.id not in finished]
        for batch in likelihood.log_probabilities(loaded, tokenize(remaining, loaded, self.bos)):
            outputs = [
                _output(remaining[index], [math.fsum(values) for values in choice_values])
                for index, choice_values in batch.items()
            ]
            watch.record(outputs, finished, len(items))
        return self.conclude([finished[item.id] for item in items], rows.revision)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        units = super().units(outputs)
        return units | {"norm": {o.item: 100 * _norm_score(o) for o in outputs}} if "norm" in self.parts else units


def tokenize(items: Sequence[ChoiceItem], loaded: Loaded, bos: bool) -> list[list[Any]]:
    """The tokens of each item's choices behind their contexts, as `evaluate.likelihood.Text`."""
    tokenizer = loaded.tokenizer
    if bos and tokenizer.bos_token_id is None:
        raise UserError(f"{loaded.card.title} has no beginning-of-text token; measure the task without :bos.")
    most_tokens = context_length(loaded)

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    contexts = iter(ids([context for item in items for context in item.contexts]))
    continuations = iter(ids([continuation for item in items for continuation in item.continuations]))
    start = [tokenizer.bos_token_id] if bos else []
    # Something must stand before the first token that is predicted: the token that ends the text before.
    separator = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    return [
        [
            likelihood.continuation(start + next(contexts) or separator, next(continuations), most_tokens)
            for _ in item.choices
        ]
        for item in items
    ]


def context_length(loaded: Loaded) -> int:
    """Tokens that a model is given to read at most."""
    return min(MOST_CONTEXT, loaded.model.config.get_text_config().max_position_embeddings)


def _output(item: ChoiceItem, sums: list[float]) -> ItemOutput:
    output = ItemOutput(
        item=item.id,
        prompt=item.prompt,
        gold=[item.choices[item.gold]],
        prediction="",
        score=math.nan,  # of a model without numbers
        log_probabilities=sums,
        choices=item.choices,
    )
    if any(math.isnan(value) for value in sums):
        return output
    best = max(range(len(sums)), key=sums.__getitem__)
    return output.model_copy(update={"prediction": item.choices[best], "score": float(best == item.gold)})


def _norm_score(output: ItemOutput) -> float:
    """Whether the choice with the largest log-probability per character is right."""
    rates = [value / max(len(text), 1) for value, text in zip(output.log_probabilities, output.choices, strict=True)]
    if any(math.isnan(rate) for rate in rates):
        return math.nan
    return float(output.choices[max(range(len(rates)), key=rates.__getitem__)] == output.gold[0])
