"""Write the parts that ship, measure the composed model, and write its model card: every figure comes from here."""

from __future__ import annotations

import json
import math
import platform
import tempfile
import textwrap
from importlib.metadata import version
from pathlib import Path

import torch

from quant_engine import disk
from quant_engine.data.drawn import suite
from quant_engine.demo import fetch, model
from quant_engine.demo_training import joint
from quant_engine.demo_training.score import WINDOWS, Score, load, perplexity, score, speed
from quant_engine.models.load import Loaded

ABOUT = "about.json"
NOTES = "notes.md"  # what the logs don't tell, written by hand: becomes a part of the card
CARD = """# The demo LLaVA-NeXT: model card

{note}

Made by `python -m quant_engine.demo_training`; this card is written by its last stage.

## What it is for
It stands for LLaVA-Next-8B where there is no GPU and no model hub: real weights that really answer, so that the loss
through quantization can be seen and measured. It was trained on the kind that this project draws: bar, line and pie
charts with labels and values, forms, receipts and small tables, a few coloured shapes, boxes joined by arrows; text of
about 15 to 22 pixels in a picture of 288 x 288, 576 x 288 or 288 x 576 pixels (others are scaled to fit). It does
not know photographs, faces, places, handwriting or long documents, and answers about them are of no use.

## Scores
Greedy answers in float32, with the prompts and scores of the demo tasks (`python -m quant_engine evaluate`). Test
pictures come from seeds that training never uses; "shifted" ones have fonts and palettes that training never uses;
"blank" asks the same questions about white pictures: what can be guessed. A score is over items: pictures with one
question, with a question in all rotations of its options (demo-mmbench) or with a pair of questions (demo-mme, of 200
points a category). The last columns count single questions. Standard errors are behind the ±.

| task | metric | split | pictures | score | items | questions right | questions |
| --- | --- | --- | --- | --- | --- | --- | --- |
{scores}

{verdict}

By kind of question, on the drawn test pictures (percentage right, questions):

{kinds}

Perplexity on the built-in prose (`assets/text/evaluation.txt`, {windows} windows of 512 tokens):
SmolLM2-135M-Instruct {base_perplexity:.2f}, this model {perplexity:.2f}.
Time to first token {first:.2f} s, then {rate:.1f} tokens/s, for one picture of 288 x 288, {hardware}.

## What quantization costs it
[assets/runs](../runs/README.md) has its table of methods and bit widths, with the runs behind it.

## How it was trained
{stages}

{notes}
Training pictures are drawn as they are needed, from seed {seed}; none is stored. Everything runs in bfloat16 with
float32 master weights (AdamW). {device}

1. *tower*: each patch's characters, mark, colour and word are named; the patch behind a text names what belongs to it
   (a label's value, the box that an arrow leads to, "largest") and where that stands; the first patch names how many
   things there are to count; cross-entropy.
2. *language*: a rank-{rank} adapter on all linears learns to answer from pictures told as grids of the language model's
   own embeddings, a known word in the patch where it starts, else characters; every fourth step also has multiple
   choice without pictures. The adapted model is held to the unadapted one on plain text and chat.
3. *projector*: learns to turn the tower's features into that code, and so that what a patch tells can be read from it
   as the nearest code; the tower's last layers learn along, at the end all of it.
4. *joint*: adapter, projector and the tower's last layers learn from answers about pictures as the vision side shows
   them, held to the code all the while; at the end all learn together.

transformers {transformers}, torch {torch}.
"""


def export(folder: Path, parts: Path, device: torch.device, seed: int, items: int) -> list[Score]:
    """Write the parts into `parts` from the checkpoints in `folder`, and measure the model; returns the scores."""
    write_parts(folder, parts)
    language = fetch.get_language_model()
    with tempfile.TemporaryDirectory() as aside:
        model.compose(language, parts, Path(aside))
        loaded = load(Path(aside), device)
        first, rate = speed(loaded)
        scores = measure(loaded, items)
        own = perplexity(loaded)
    base = perplexity(load(language, device))
    about = {
        "note": textwrap.fill(model.NOTE, 118),
        "scores": "\n".join(_row(s) for s in scores),
        "verdict": textwrap.fill(_verdict(scores), 118, break_on_hyphens=False),
        "kinds": "\n".join(_kinds(s) for s in scores if (s.split, s.pictures) == ("test", "drawn")),
        "windows": WINDOWS,
        "base_perplexity": base,
        "perplexity": own,
        "first": first,
        "rate": rate,
        "hardware": f"{torch.get_num_threads()} threads of {platform.machine()}"
        if device.type == "cpu"
        else "on a GPU",
        "stages": _stages(folder),
        "seed": seed,
        "device": "Trained on a CPU." if device.type == "cpu" else "Trained on a GPU.",
        "rank": model.RANK,
        "transformers": version("transformers"),
        "torch": version("torch"),
    }
    disk.write_json(folder / ABOUT, about)
    return scores


def write_card(folder: Path, parts: Path) -> None:
    """The model card, from what the stage `export` has measured."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    notes = folder / NOTES
    about["notes"] = notes.read_text(encoding="utf-8") if notes.exists() else ""
    disk.write_text(parts / "README.md", CARD.format(**about))


def write_parts(folder: Path, parts: Path) -> None:
    """The parts that ship, from the latest checkpoints."""
    latest = joint.load_parts(folder)
    projector = {**latest["projector"], "image_newline": latest["newline"]["newline"]}
    model.write_parts(parts, latest["tower"], projector, latest["adapter"])


def measure(loaded: Loaded, items: int) -> list[Score]:
    """All tasks on test pictures, and on half as many shifted and blank ones."""
    scores = []
    for task in suite.TASKS:
        for count, split, blank in ((items, "test", False), (items // 2, "shifted", False), (items // 2, "test", True)):
            task_scores = score(loaded, task, count, split, blank=blank)
            print(*task_scores, sep="\n", flush=True)
            scores += task_scores
    return scores


def _row(s: Score) -> str:
    right = f"{s.right:.1f} ± {s.right_error:.1f}"
    number = f"{s.value:.1f}" + ("" if s.error is None else f" ± {s.error:.1f}")
    return f"| {s.task} | {s.metric} | {s.split} | {s.pictures} | {number} | {s.items} | {right} | {s.questions} |"


def _verdict(scores: list[Score]) -> str:
    """Which tasks it answers from the picture: drawn above blank by more than two standard errors of the difference."""
    by_view = {(s.task, s.pictures): s for s in scores if s.split == "test"}
    answered, guessed = [], []
    for task in dict.fromkeys(s.task for s in scores):
        drawn, blank = by_view[task, "drawn"], by_view[task, "blank"]
        clear = drawn.right - blank.right > 2 * math.hypot(drawn.right_error, blank.right_error)
        (answered if clear else guessed).append(task)
    return (
        f"Clearly better than on blank pictures (by more than two standard errors): {', '.join(answered) or 'none'}. "
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
