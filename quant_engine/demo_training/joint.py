"""Stage 4: adapter, projector and the tower's last layers learn together from answers; at the end the whole tower does.

For most of the stage the layers that read stand still: they have learnt from labels of every patch, and the few answers
of a batch would only shake them. Lessons can be brief then, and as many as in stage 2. What comes out of the projector
goes on being held to the code of every patch's labels, which tells it far more than the answers do.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPVisionModel

from quant_engine.demo.model import READING_LAYERS
from quant_engine.demo_training import start
from quant_engine.demo_training import tower as tower_stage
from quant_engine.demo_training.adapter import Adapter
from quant_engine.demo_training.budget import Average, Stage
from quant_engine.demo_training.language import (
    LETTERS_EVERY,
    PlainText,
    answer_loss,
    compiled,
    held_to_base,
    learn_letters,
    letters_start,
    load_language_model,
    validate,
)
from quant_engine.demo_training.lessons import Batch, Lessons, LettersLessons, all_tiles, filled, grid, packed
from quant_engine.demo_training.precision import Master
from quant_engine.demo_training.projector import Projector, code_losses, load_symbols

BRIEF_LESSONS = 0.8  # share of the stage in which the layers that read stand still and most empty patches are left out
BRIEF_SHARE = 0.05
CODE_LOSS = 0.2  # weight of what stage 3 learns, beside the answers


def shown(
    batch: Batch, tower: CLIPVisionModel, projector: Projector, newline: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Pictures as the model sees them [n, hidden]; of all their tiles, what the heads read and what is projected."""
    reading, features = tower_stage.features(tower, tower_stage.normalised(all_tiles(batch).to(newline.device)))
    projected = projector(features)
    pictures, start = [], 0
    for one in batch.lessons:
        rows, columns, _ = one.seen.parts.shape
        tiles = projected[start : start + len(one.seen.tiles)]
        pictures.append(packed(tiles[0], grid(tiles[1:], rows, columns), newline))
        start += len(one.seen.tiles)
    return pictures, reading, projected


def load_parts(folder: Path) -> dict[str, Any]:
    """What the stages have left so far: tower, heads, projector, newline and adapter, by name."""
    read = {name: torch.load(path, map_location="cpu", weights_only=True) for name in ("language", "projector", "joint")
            if (path := folder / f"{name}.pt").exists()}  # fmt: skip
    if "joint" in read:
        return {key: read["joint"][key] for key in ("tower", "heads", "projector", "newline", "adapter")}
    newline = {"newline": read["language"]["symbols"]["newline"]}
    latest = {key: read["projector"][key] for key in ("tower", "heads", "projector")}
    return {**latest, "newline": newline, "adapter": read["language"]["adapter"]}


class Newline(nn.Module):
    """The end-of-row vector, as a module so that it is saved like the others."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.newline = nn.Parameter(vector)


def train(folder: Path, minutes: float, device: torch.device, seed: int, batch_size: int = 6) -> None:
    """Run stage 4 for its minutes and leave `joint.pt` (keys tower, heads, projector, newline, adapter) in `folder`."""
    torch.manual_seed(seed)
    model, tokenizer = load_language_model(device)
    rng = random.Random(seed + 1)
    plain = PlainText(model, tokenizer, rng)
    tower, heads = tower_stage.blank(device)
    projector = Projector(tower.config.hidden_size, model.config.hidden_size).to(device, torch.bfloat16)
    symbols = load_symbols(folder, device)
    newline = Newline(symbols.newline.detach().clone())
    adapter = Adapter(model.model)
    compiled(model)
    modules = {"tower": tower, "heads": heads, "projector": projector, "newline": newline, "adapter": adapter}
    for name, saved in load_parts(folder).items():
        modules[name].load_state_dict(saved)
    layers = start.vision(tower).encoder.layers[READING_LAYERS:]
    reading = nn.ModuleList([tower, heads]).requires_grad_(False)
    layers.requires_grad_()
    last = [*projector.parameters(), *newline.parameters(), *layers.parameters()]
    first = [p for p in reading.parameters() if not p.requires_grad]
    master = Master((adapter.own_parameters(), 1.0), (last, 0.5), (first, 0.1), weight_decay=0.0)
    stage = Stage(folder, "joint", minutes, {**modules, "master": master})
    if stage.over:
        return

    @torch.no_grad()
    def validation() -> dict[str, float]:
        def picture_of(one: Batch) -> list[Tensor]:
            return shown(one, tower, projector, newline.newline)[0]

        return {f"val_{kind}": share for kind, share in validate(model, tokenizer, picture_of).items()}

    letters = iter(DataLoader(LettersLessons(tokenizer, letters_start(seed + 1, stage.step)), None, num_workers=1))
    # In shared memory for the one worker to read: a second one, forked later, would copy all that has grown meanwhile.
    share = torch.tensor(BRIEF_SHARE if stage.fraction < BRIEF_LESSONS else 1.0).share_memory_()
    number = 10_000_000 * seed + 7_000_000 + batch_size * stage.step
    loader = iter(DataLoader(Lessons(tokenizer, "train", number, batch_size, share=share), None, num_workers=1))
    average = Average(20)
    while not stage.over:
        brief = stage.fraction < BRIEF_LESSONS
        if not brief:
            share.fill_(1.0)
        reading.requires_grad_(not brief)
        layers.requires_grad_()
        batch = next(loader)
        pictures, seen, projected = shown(batch, tower, projector, newline.newline)
        embedded = filled(model.model.embed_tokens(batch.ids.to(device)), batch, pictures)
        loss, right = answer_loss(model, batch, embedded)
        labels = np.concatenate([one.seen.tile_labels() for one in batch.lessons]).astype(np.int64)
        labels = torch.from_numpy(labels).to(device)
        regression, told = code_losses(symbols, projected, labels)
        values = {"loss": loss.item(), "right": right, "unexplained": regression.item(), "told": told.item()}
        loss = loss + CODE_LOSS * (5 * regression + 0.25 * told)
        if not brief:
            naming = tower_stage.loss_of(heads(seen), labels)
            loss, values["naming"] = loss + 0.3 * naming, naming.item()
        loss.backward()
        if stage.step % 4 == 0:
            kept = held_to_base(model, plain.window().to(device))
            kept.backward()
            values["text"] = kept.item()
        if stage.step % LETTERS_EVERY == 1:
            values["letters"] = learn_letters(model, next(letters))
        master.step(stage.learning_rate(6e-4, warm_up=10))
        means = average.add(**values)
        stage.advance()
        if stage.step % 10 == 0:
            stage.log(pictures=stage.step * batch_size, **means)
    stage.log(**validation())
    stage.save()
