"""Stage 2: the language adapter learns to answer from coded grids; the picture is told, not seen.

Half of the grids are exact; half are what the trained tower believes about the drawn picture, with all its doubts and
errors, so that the language model learns to live with them. Between lessons the adapted model is held to the unadapted
one on plain text and chat (divergence of next-token distributions), so that English survives.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.data import DataLoader
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import eager_mask

from quant_engine import folders
from quant_engine.demo import fetch
from quant_engine.demo_training import tower as tower_stage
from quant_engine.demo_training.adapter import Adapter, switched_off
from quant_engine.demo_training.budget import Average, Stage
from quant_engine.demo_training.labels import TO
from quant_engine.demo_training.lessons import IGNORED, Batch, Lessons, LettersLessons, all_tiles, filled, grid, packed
from quant_engine.demo_training.precision import Master
from quant_engine.demo_training.symbols import Symbols

FIRST_LESSONS = 0.2  # share of the stage in which only what can be read off is asked, in short
PLAIN_PLACES = 0.15  # share of exact grids that do not tell what leads where
TEXT_EVERY = 4  # steps from one window of plain text to the next
LETTERS_EVERY = 4  # steps from one batch without pictures to the next
TEXT_LENGTH = 128  # tokens of plain text held to the unadapted model in a step that has some
CHAT = (
    "What is the capital of France?", "Write one sentence about the sea.", "How do I boil an egg?", "Tell me a joke.",
    "What is photosynthesis?", "Give me three names for a cat.", "Why is the sky blue?", "What is 12 plus 7?",
    "Explain gravity to a child.", "What should I cook tonight?", "Who wrote Hamlet?", "Describe a good teacher.",
    "How far away is the moon?", "What is a computer?", "Write a short greeting.", "What do bees make?",
)  # fmt: skip


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention as plain products, each key head once for all its queries: on a CPU its gradients cost half as much.

    query [batch, heads, length, d], key and value [batch, groups, length, d]; returns [batch, length, heads, d].
    """
    batch, heads, length, d = query.shape
    groups, keys = key.shape[1], key.shape[2]
    scores = (query * scaling).reshape(batch, groups, -1, d) @ key.transpose(2, 3)
    if mask is not None:
        scores = (scores.view(batch, groups, -1, length, keys) + mask[:, :, None, :, :keys]).view_as(scores)
    attended = scores.softmax(-1) @ value
    return attended.view(batch, heads, length, d).transpose(1, 2).contiguous(), None


def load_language_model(device: torch.device) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """SmolLM2 in bfloat16, ready to be adapted."""
    folder = fetch.get_language_model()
    AttentionInterface.register("products", attend)
    AttentionMaskInterface.register("products", eager_mask)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="products")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def compiled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with each block's many small operations fused, if there is a C++ compiler: 1.6 times faster on a CPU.

    The first steps take a minute or two. On a GPU nothing changes.
    """
    if model.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")):
        for block in model.model.layers:
            block.compile(dynamic=True)
    return model


class PlainText:
    """Windows of public-domain prose and of the unadapted model's own chat answers."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> None:
        text = (folders.ASSETS / "text" / "calibration.txt").read_text(encoding="utf-8")
        self.ids = torch.tensor(tokenizer(text)["input_ids"])
        self.rng, self.chats = rng, self._chats(model, tokenizer)

    @staticmethod
    @torch.no_grad()
    def _chats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
        """Greedy answers to all questions at once, cut after the end of each answer."""
        prompts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in CHAT]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        generated = model.generate(**inputs, max_new_tokens=48, do_sample=False).cpu()
        start = inputs["input_ids"].shape[1]
        chats = []
        for prompt, row in zip(prompts, generated, strict=True):
            answer = row[start:]
            ends = (answer == tokenizer.eos_token_id).nonzero().flatten()
            answer = answer[: int(ends[0]) + 1] if len(ends) else answer
            chats.append(torch.cat([torch.tensor(tokenizer(prompt)["input_ids"]), answer]))
        return chats

    def window(self) -> Tensor:
        """Token ids [1, length]."""
        if self.rng.random() < 0.3:
            return self.rng.choice(self.chats)[None]
        start = self.rng.randrange(len(self.ids) - TEXT_LENGTH)
        return self.ids[None, start : start + TEXT_LENGTH]


def base_divergence(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean divergence of the adapted model's next-token distributions from the unadapted model's."""
    with torch.no_grad(), switched_off():
        base = log_softmax(model(input_ids=ids).logits.float(), -1)
    adapted = log_softmax(model(input_ids=ids).logits.float(), -1)
    return kl_div(adapted, base, log_target=True, reduction="none").sum(-1).mean()


def logits_of_answers(model: LlamaForCausalLM, batch: Batch, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [answer tokens, vocabulary], their targets, and where they stand in [batch, length - 1]."""
    device = embedded.device
    hidden = model.model(
        inputs_embeds=embedded,
        attention_mask=batch.mask.to(device),
        position_ids=batch.positions.to(device),
        use_cache=False,
    ).last_hidden_state
    targets = batch.targets[:, 1:].to(device)
    is_answer = targets != IGNORED
    return model.lm_head(hidden[:, :-1][is_answer]).float(), targets[is_answer], is_answer


def answer_loss(model: LlamaForCausalLM, batch: Batch, embedded: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of the answers' tokens, and the share of questions whose first token is predicted rightly.

    A token weighs one over the root of its answer's length: a letter would be lost among captions else.
    """
    logits, targets, is_answer = logits_of_answers(model, batch, embedded)
    turns = torch.full(is_answer.shape, 0)
    for row, lesson in enumerate(batch.lessons):
        turns[row, : len(lesson.segments) - 1] = torch.tensor(lesson.segments[1:]) + 1000 * row
    turns = turns.to(is_answer.device)[is_answer]
    first = torch.cat([turns.new_ones(1), turns[1:] != turns[:-1]]).bool()
    lengths = torch.unique_consecutive(turns, return_counts=True)[1]
    weights = lengths.repeat_interleave(lengths).float().rsqrt()
    loss = (weights * cross_entropy(logits, targets, reduction="none")).sum() / weights.sum()
    return loss, (logits.argmax(-1) == targets)[first].float().mean().item()


@torch.no_grad()
def answers_right(model: LlamaForCausalLM, batch: Batch, embedded: Tensor) -> list[tuple[str, bool]]:
    """Kind of each question, and whether greedy decoding would give its answer word for word."""
    logits, targets, is_answer = logits_of_answers(model, batch, embedded)
    right = torch.ones(is_answer.shape, dtype=torch.bool)
    right[is_answer.cpu()] = (logits.argmax(-1) == targets).cpu()
    outcomes = []
    for row, lesson in enumerate(batch.lessons):
        segments = torch.tensor(lesson.segments)
        for turn, kind in enumerate(lesson.kinds, 1):
            last = (segments == turn).nonzero().flatten() - 1
            outcomes.append((kind, bool(right[row, last].all())))
    return outcomes


def code_pictures(
    batch: Batch,
    symbols: Symbols,
    tower: CLIPVisionModel,
    heads: tower_stage.Heads,
    rng: random.Random,
    believed: float,
) -> list[Tensor]:
    """The coded picture of each lesson [n, hidden]: exact or, with the chance `believed`, what the tower believes.

    Tower and heads are needed only where `believed` is above 0.
    """
    device = symbols.common.device
    if believed:
        with torch.no_grad():
            tiles = tower_stage.normalised(all_tiles(batch).to(device))
            outputs = heads(tower_stage.features(tower, tiles)[0])
    pictures, start = [], 0
    for lesson in batch.lessons:
        rows, columns, _ = lesson.views.parts.shape
        count = len(lesson.views.tiles)
        if rng.random() >= believed:
            labels = [
                torch.from_numpy(view.astype(np.int64)).to(device) for view in (lesson.views.whole, lesson.views.parts)
            ]
            if rng.random() < PLAIN_PLACES:
                for view in labels:
                    view[..., TO.start :] = 0
            whole, parts = (symbols.exact(view) for view in labels)
            whole = whole.flatten(0, 1)
        else:
            codes = symbols.expected([o[start : start + count] for o in outputs])
            whole, parts = codes[0], grid(codes[1:], rows, columns)
        pictures.append(packed(whole, parts, symbols.newline))
        start += count
    return pictures


def validate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    picture_of: Callable[[Batch], list[Tensor]],
    batches: int = 16,
) -> dict[str, float]:
    """Share of held-out questions that are answered word for word, over all ("all") and for each kind."""
    outcomes: dict[str, list[bool]] = {}
    lessons = Lessons(tokenizer, "val", 0, 4)
    for batch in itertools.islice(lessons, batches):
        embedded = filled(model.model.embed_tokens(batch.ids.to(model.device)), batch, picture_of(batch))
        for kind, right in answers_right(model, batch, embedded):
            outcomes.setdefault("all", []).append(right)
            outcomes.setdefault(kind, []).append(right)
    return {kind: sum(rights) / len(rights) for kind, rights in sorted(outcomes.items())}


def load_tower(folder: Path, device: torch.device) -> tuple[CLIPVisionModel, tower_stage.Heads]:
    """The tower and its classifiers as stage 1 left them."""
    saved = torch.load(folder / "tower.pt", map_location="cpu", weights_only=True)
    tower, heads = tower_stage.blank(device)
    tower.load_state_dict(saved["tower"])
    heads.load_state_dict(saved["heads"])
    return tower.eval().requires_grad_(False), heads.eval().requires_grad_(False)


def letters_batches(tokenizer: PreTrainedTokenizerBase, seed: int, step: int) -> Iterator[Batch]:
    """A stage's lessons without pictures, drawn in another process; a restart goes on with new ones."""
    start = 10_000_000 * seed + 3_000_000 + 8 * step
    return iter(DataLoader(LettersLessons(tokenizer, start), None, num_workers=1))


def learn_text_and_letters(
    model: LlamaForCausalLM, plain: PlainText, letters: Iterator[Batch], step: int
) -> dict[str, float]:
    """Gradients of plain text and of multiple choice in the steps that have some; returns the values to log."""
    values = {}
    if step % TEXT_EVERY == 0:
        divergence = base_divergence(model, plain.window().to(model.device))
        divergence.backward()
        values["text"] = divergence.item()
    if step % LETTERS_EVERY == 1:
        batch = next(letters)
        loss, values["letters"] = answer_loss(model, batch, model.model.embed_tokens(batch.ids.to(model.device)))
        loss.backward()
    return values


def train(
    folder: Path, minutes: float, device: torch.device, seed: int, batch_size: int = 6, believed: float = 0.5
) -> None:
    """Run stage 2 for its minutes and leave `language.pt` (keys adapter, symbols) in `folder`.

    The share `believed` of the grids is what the tower believes.
    """
    torch.manual_seed(seed)
    model, tokenizer = load_language_model(device)
    rng = random.Random(seed)
    plain = PlainText(model, tokenizer, rng)
    tower, heads = load_tower(folder, device) if believed else (None, None)
    symbols = Symbols(tokenizer, model.model.embed_tokens.weight).to(model.device, torch.bfloat16)
    adapter = Adapter(model.model)
    compiled(model)
    master = Master((adapter.own_parameters(), 1.0), (symbols.parameters(), 2.0), weight_decay=0.0)
    stage = Stage(folder, "language", minutes, {"adapter": adapter, "symbols": symbols, "master": master})
    if stage.over:
        return

    def validation() -> dict[str, float]:
        shares = {"val_exact": 0.0} | ({"val_believed": 1.0} if believed else {})
        return {
            name: validate(model, tokenizer, lambda b: code_pictures(b, symbols, tower, heads, rng, share))["all"]  # noqa: B023
            for name, share in shares.items()
        }

    letters = letters_batches(tokenizer, seed, stage.step)
    first, loader = None, None
    average = Average(20)
    while not stage.over:
        if first != (stage.fraction < FIRST_LESSONS):
            first = stage.fraction < FIRST_LESSONS
            number = 10_000_000 * seed + 5_000_000 + batch_size * stage.step
            dataset = Lessons(tokenizer, "train", number, batch_size, share=0.05, first_lessons=first)
            loader = iter(DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4))
        batch = next(loader)
        pictures = code_pictures(batch, symbols, tower, heads, rng, believed)
        embedded = filled(model.model.embed_tokens(batch.ids.to(device)), batch, pictures)
        loss, right = answer_loss(model, batch, embedded)
        loss.backward()
        extra = learn_text_and_letters(model, plain, letters, stage.step)
        norm = master.step(stage.learning_rate(1.5e-3, warm_up=20))
        if not torch.isfinite(torch.tensor(norm)):
            raise RuntimeError(f"The gradients of step {stage.step} are not finite.")
        means = average.add(loss=loss.item(), right=right, **extra)
        stage.advance()
        if stage.step % 10 == 0:
            stage.log(pictures=stage.step * batch_size, **means)
        if stage.step % 200 == 0:
            stage.log(**validation())
    stage.log(**validation())
    stage.save()
