"""Training examples as tokens: prompts, the answers to be learned, and batches of both.

Loss is on answers alone. Prompt and answer are tokenized apart, the prompt behind the token that begins a
text, the answer before the one that ends it, as in the QLoRA reference.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from quant_engine.data import instructions
from quant_engine.data.drawn import suite
from quant_engine.data.drawn.pictures import FAMILIES, Split, picture, seed
from quant_engine.data.drawn.questions import training_turn
from quant_engine.methods.qlora import QloraOptions
from quant_engine.models.catalog import ModelCard
from quant_engine.spec import UserError, digest

SPLIT_SEED = 42
"""Always the same held-out examples, whatever a run's seed: the reference's."""
SORTED_TOGETHER = 50
"""Batches whose examples are sorted by length together, as transformers' length-grouped sampler does."""
IGNORED = -100
DEMO_HELD_OUT = 64


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt (`source`) and of its answer (`target`); `picture` has the model's inputs for a picture."""

    source: list[int]
    target: list[int]
    picture: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.source) + len(self.target)


class Examples:
    """Examples to train on and examples held out. `revision` identifies them."""

    def __init__(self, train: Sequence[Example], held_out: Sequence[Example], revision: str) -> None:
        self.train, self.held_out, self.revision = train, held_out, revision
        self._orders: dict[tuple[int, int, int], list[int]] = {}

    def step(self, step: int, batch: int, run_seed: int) -> list[Example]:
        """The examples of a step, counted from 0: each is taken once before any is taken again.

        Within an epoch they are in random order, with examples of similar length together.
        """
        count = len(self.train)
        positions = range(step * batch, (step + 1) * batch)
        return [self.train[self._order(position // count, batch, run_seed)[position % count]] for position in positions]

    def _order(self, epoch: int, batch: int, run_seed: int) -> list[int]:
        key = (epoch, batch, run_seed)
        if key not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old[0] == epoch - 1}
            self._orders[key] = self._shuffled(*key)
        return self._orders[key]

    def _shuffled(self, epoch: int, batch: int, run_seed: int) -> list[int]:
        rng = random.Random(f"{run_seed}/{epoch}")
        order = list(range(len(self.train)))
        rng.shuffle(order)
        if isinstance(self.train, Drawn):
            return order
        span = SORTED_TOGETHER * batch
        spans = [sorted(order[i : i + span], key=lambda j: -len(self.train[j])) for i in range(0, len(order), span)]
        batches = [indices[i : i + batch] for indices in spans for i in range(0, len(indices), batch)]
        rng.shuffle(batches)
        return [index for indices in batches for index in indices]


class Drawn(Sequence[Example]):
    """Examples that are drawn when they are needed."""

    def __init__(self, count: int, draw: Callable[[int], Example]) -> None:
        self._count, self._draw = count, draw

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        # Going through a sequence ends with this error.
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._draw(index)


def load(
    options: QloraOptions,
    card: ModelCard,
    tokenizer: Any,
    processor: Any | None,
    dtype: torch.dtype,
    context: int,
) -> Examples:
    """The examples of the options' data for a model that reads `context` tokens.

    Raises UserError if they can't be had, or are not for it.
    """
    if options.data == "demo":
        if processor is None:
            raise UserError(f"The demo items have pictures, and {card.title} is a text model; choose other data.")
        return _demo(options, processor, dtype, context)
    if options.data == "builtin":
        ids = tokenizer(instructions.builtin_text(), add_special_tokens=False, verbose=False)["input_ids"]
        length = options.source_length + options.target_length
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        examples = [Example(start, ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    else:
        examples = _tokenize(instructions.pairs(options.data), tokenizer, options)
    return _split(examples, options)


def _split(examples: list[Example], options: QloraOptions) -> Examples:
    if len(examples) < 2:
        raise UserError(
            f"The training data make {len(examples)} example(s); give more, or shorter lengths for source and target."
        )
    random.Random(SPLIT_SEED).shuffle(examples)
    revision = digest([[example.source, example.target] for example in examples])
    count = min(options.held_out, len(examples) // 10)
    return Examples(examples[count:], examples[:count], revision)


def _tokenize(pairs: list[instructions.Pair], tokenizer: Any, options: QloraOptions) -> list[Example]:
    start, end = tokenizer.bos_token or "", tokenizer.eos_token or ""

    def ids(texts: list[str], most: int) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, truncation=True, max_length=most)["input_ids"]

    sources = ids([start + pair.prompt for pair in pairs], options.source_length)
    targets = ids([pair.answer + end for pair in pairs], options.target_length)
    return [Example(source, target) for source, target in zip(sources, targets, strict=True) if target]


def _demo(options: QloraOptions, processor: Any, dtype: torch.dtype, context: int) -> Examples:
    """Drawn pictures, each with one of its questions, asked as the suite asks them."""
    draw = partial(_draw, options=options, processor=processor, dtype=dtype, context=context)
    draw("train", 0)  # pictures too large for the model are said before any work
    train = Drawn(options.steps * options.batch, partial(draw, "train"))
    held_out = Drawn(min(options.held_out, DEMO_HELD_OUT), partial(draw, "val"))
    return Examples(train, held_out, f"drawn-v{suite.VERSION}")


def _draw(
    split: Split, number: int, *, options: QloraOptions, processor: Any, dtype: torch.dtype, context: int
) -> Example:
    families = list(FAMILIES)
    drawn = picture(families[number % len(families)], split, number)
    rng = random.Random(seed(split, "fine-tuning", number))
    question, answer = training_turn(rng, rng.choice(drawn.questions))
    content = [{"type": "image", "image": drawn.drawing.image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokenizer = processor.tokenizer
    target = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"][: options.target_length]
    tokens = inputs["input_ids"].shape[1] + len(target)
    if tokens > context:
        raise UserError(
            f"A drawn picture takes {tokens:,} tokens with its question and answer, and the model reads {context:,}: "
            "choose other data."
        )
    picture_inputs = {"pixel_values": inputs["pixel_values"].to(dtype), "image_sizes": inputs["image_sizes"]}
    return Example(inputs["input_ids"][0].tolist(), target, picture_inputs)


def batches(examples: Sequence[Example], most_tokens: int, device: str) -> list[dict[str, Any]]:
    """Model inputs and `labels` [count, length] for examples, padded on the right to at most `most_tokens` at once.

    Causal attention never looks at what comes behind, so padding needs no mask. An example with a picture is alone.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len):
        alone = not groups or example.picture is not None or groups[-1][0].picture is not None
        if alone or len(example) * (len(groups[-1]) + 1) > most_tokens:
            groups.append([])
        groups[-1].append(example)
    return [_batch(group, device) for group in groups]


def _batch(examples: list[Example], device: str) -> dict[str, Any]:
    length = max(map(len, examples))
    ids = torch.zeros((len(examples), length), dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.source + example.target)
        labels[row, len(example.source) : len(example)] = torch.tensor(example.target)
    inputs = {"input_ids": ids, "labels": labels, **(examples[0].picture or {})}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
