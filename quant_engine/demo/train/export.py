"""Write the parts that ship, measure the composed model, and write its model card: every figure comes from here."""

from __future__ import annotations

import json
import math
import platform
import tempfile
import textwrap
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from quant_engine.demo import fetch, model
from quant_engine.demo.train import joint
from quant_engine.demo.train.score import Answerer, Score, perplexity, score, speed

CARD = """# The demo LLaVA-NeXT: model card

{note}

Made by `python -m quant_engine.demo.train`; this card is written by its last stage.

## What it is for
It stands for LLaVA-Next-8B where there is no GPU and no model hub: real weights that really answer, so that the loss
through quantization can be seen and measured. It was trained on the kind that this project draws: bar, line and pie
charts with labels and values, forms, receipts and small tables, a few coloured shapes, boxes joined by arrows; text of
about 15 to 22 pixels in a picture of 288 x 288, 432 x 288 or 288 x 432 pixels (others are scaled to fit). It does
not know photographs, faces, places, handwriting or long documents, and answers about them are of no use.

## Scores
Greedy answers in float32. Test pictures come from seeds that training never uses; "shifted" ones have fonts and
palettes that training never uses; "blank" asks the same questions about white pictures: what can be guessed.
Standard errors are over items; multiple choice and yes/no are scored question by question here.

| task | split | pictures | items | score | standard error |
| --- | --- | --- | --- | --- | --- |
{scores}

{verdict}

By kind of question, on the drawn test pictures (score, items):

{kinds}

Perplexity on the built-in prose (`assets/text/evaluation.txt`, {windows} windows of 512 tokens):
SmolLM2-135M-Instruct {base_perplexity:.2f}, this model {perplexity:.2f}.
Time to first token {first:.2f} s, then {rate:.1f} tokens/s, for one picture of 288 x 288, {hardware}.

## How it was trained
{stages}

Training pictures are drawn as they are needed, from seed {seed}; none is stored. Everything runs in bfloat16 with
float32 master weights (AdamW). {device}

1. *tower*: each patch's characters, mark and colour are named; cross-entropy.
2. *language*: a rank-{rank} adapter on all linears learns to answer from coded grids of symbols; the adapted model is
   held to the unadapted one on plain text and chat.
3. *projector*: regresses that code from the tower's features.
4. *joint*: all of it, through the language model, on pictures.

transformers {transformers}, torch {torch}.
"""


def export(folder: Path, parts: Path, device: torch.device, seed: int, items: int) -> list[Score]:
    """Write parts and card into `parts` from the checkpoints in `folder`; returns the scores of the card."""
    write_parts(folder, parts)
    language = fetch.get_language_model()
    with tempfile.TemporaryDirectory() as aside:
        model.compose(language, parts, Path(aside))
        answerer = Answerer(Path(aside), device)
        scores = measure(answerer, items)
        held = perplexity(answerer.model, answerer.processor.tokenizer)
        first, rate = speed(answerer)
    base = perplexity(
        LlamaForCausalLM.from_pretrained(language, dtype=torch.float32).to(device).eval(),
        AutoTokenizer.from_pretrained(language),
    )
    card = CARD.format(
        note=textwrap.fill(model.NOTE, 118),
        scores="\n".join(_row(s) for s in scores),
        verdict=textwrap.fill(_verdict(scores), 118),
        kinds="\n".join(_kinds(s) for s in scores if (s.split, s.pictures) == ("test", "drawn")),
        windows=16,
        base_perplexity=base,
        perplexity=held,
        first=first,
        rate=rate,
        hardware=f"{torch.get_num_threads()} threads of {platform.machine()}" if device.type == "cpu" else "on a GPU",
        stages=_stages(folder),
        seed=seed,
        device="Trained on a CPU." if device.type == "cpu" else "Trained on a GPU.",
        rank=model.RANK,
        transformers=version("transformers"),
        torch=version("torch"),
    )
    (parts / "README.md").write_text(card, encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps([asdict(s) for s in scores], indent=1), encoding="utf-8")
    return scores


def write_parts(folder: Path, parts: Path) -> None:
    """The parts that ship, from the latest checkpoints."""
    latest = joint.load_parts(folder)
    projector = {**latest["projector"], "image_newline": latest["newline"]["newline"]}
    model.write_parts(parts, latest["tower"], projector, latest["adapter"])


def measure(answerer: Answerer, items: int) -> list[Score]:
    """All tasks on the test split; the two reading tasks also on blank and on shifted pictures."""
    reading = ("demo-docvqa", "demo-chartqa")
    scores = []
    for task in reading:
        scores += [score(answerer, task, items), score(answerer, task, items // 2, blank=True)]
        scores.append(score(answerer, task, items // 2, "shifted"))
    for task in ("demo-ai2d", "demo-mmbench", "demo-mme"):
        scores += [score(answerer, task, items // 2), score(answerer, task, items // 2, blank=True)]
    return scores


def _row(s: Score) -> str:
    return f"| {s.task} | {s.split} | {s.pictures} | {s.items} | {s.value:.1f} | {s.error:.1f} |"


def _verdict(scores: list[Score]) -> str:
    """Which tasks it answers from the picture: drawn above blank by more than two standard errors of the difference."""
    by_view = {(s.task, s.pictures): s for s in scores if s.split == "test"}
    seen, guessed = [], []
    for task in dict.fromkeys(s.task for s in scores):
        drawn, blank = by_view[task, "drawn"], by_view[task, "blank"]
        clear = drawn.value - blank.value > 2 * math.hypot(drawn.error, blank.error)
        (seen if clear else guessed).append(task)
    return (
        f"Clearly better than on blank pictures (by more than two standard errors): {', '.join(seen) or 'none'}. "
        f"Not clearly better, so to be taken as guesses: {', '.join(guessed) or 'none'}."
    )


def _kinds(s: Score) -> str:
    return f"- {s.task}: " + ", ".join(f"{kind} {mean:.0f} ({items})" for kind, (mean, items) in s.kinds.items())


def _stages(folder: Path) -> str:
    """A table of the stages' minutes and last logged values."""
    lines = ["| stage | minutes | steps | last logged |", "| --- | --- | --- | --- |"]
    for name in ("tower", "language", "projector", "joint"):
        path = folder / f"{name}.log.jsonl"
        if not path.exists():
            continue
        last: dict[str, object] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            last |= json.loads(line)
        rest = ", ".join(f"{k} {v}" for k, v in last.items() if k not in ("stage", "minutes", "step"))
        lines.append(f"| {name} | {last['minutes']} | {last['step']} | {rest} |")
    return "\n".join(lines)
