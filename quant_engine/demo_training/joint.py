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
from transformers import CLIPVisionModel, LlamaForCausalLM

from quant_engine.demo.model import READING_LAYERS
from quant_engine.demo_training import start
from quant_engine.demo_training import tower as tower_stage
from quant_engine.demo_training.adapter import Adapter
from quant_engine.demo_training.budget import Average, Stage
from quant_engine.demo_training.language import (
    PlainText,
    answer_loss,
    compiled,
    learn_text_and_letters,
    letters_batches,
    load_language_model,
    validate,
)
from quant_engine.demo_training.lessons import Batch, Lessons, all_tiles, filled, grid, packed
from quant_engine.demo_training.precision import Master
from quant_engine.demo_training.projector import Projector, code_losses, load_symbols
from quant_engine.demo_training.symbols import Symbols

BRIEF_LESSONS = 0.8  # share of the stage in which the layers that read stand still and most empty patches are left out
BRIEF_SHARE = 0.05
CODE_LOSS = 0.2  # weight of what stage 3 learns, beside the answers


def project_pictures(
    batch: Batch, tower: CLIPVisionModel, projector: Projector, newline: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Pictures as the model sees them [n, hidden]; of all their tiles, what the heads read and what is projected."""
    reading, features = tower_stage.features(tower, tower_stage.normalised(all_tiles(batch).to(newline.device)))
    projected = projector(features)
    pictures, start = [], 0
    for lesson in batch.lessons:
        rows, columns, _ = lesson.views.parts.shape
        tiles = projected[start : start + len(lesson.views.tiles)]
        pictures.append(packed(tiles[0], grid(tiles[1:], rows, columns), newline))
        start += len(lesson.views.tiles)
    return pictures, reading, projected


def load_parts(folder: Path) -> dict[str, Any]:
    """What the stages have left so far: tower, heads, projector, newline and adapter, by name."""
    names = ("language", "projector", "joint")
    states = {name: torch.load(path, map_location="cpu", weights_only=True) for name in names
              if (path := folder / f"{name}.pt").exists()}  # fmt: skip
    if "joint" in states:
        return {key: states["joint"][key] for key in ("tower", "heads", "projector", "newline", "adapter")}
    newline = {"newline": states["language"]["symbols"]["newline"]}
    latest = {key: states["projector"][key] for key in ("tower", "heads", "projector")}
    return {**latest, "newline": newline, "adapter": states["language"]["adapter"]}


def load_modules(folder: Path, model: LlamaForCausalLM, symbols: Symbols, device: torch.device) -> dict[str, nn.Module]:
    """Tower, heads, projector, newline and adapter of the model, as the stages have left them."""
    tower, heads = tower_stage.blank(device)
    projector = Projector(tower.config.hidden_size, model.config.hidden_size).to(device, torch.bfloat16)
    newline = Newline(symbols.newline.detach().clone())
    adapter = Adapter(model.model)
    compiled(model)
    modules = {"tower": tower, "heads": heads, "projector": projector, "newline": newline, "adapter": adapter}
    for name, state in load_parts(folder).items():
        modules[name].load_state_dict(state)
    return modules


class Newline(nn.Module):
    """The end-of-row vector, as a module so that it is saved like the others."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.newline = nn.Parameter(vector)


def learn_codes(
    projected: Tensor, reading: Tensor, batch: Batch, symbols: Symbols, heads: tower_stage.Heads | None
) -> tuple[Tensor, dict[str, float]]:
    """What stage 3 learns and, with `heads`, stage 1 too, as one loss beside that of the answers.

    Args:
        projected: codes [tiles, SIDE * SIDE, hidden] of all the batch's tiles, as the projector makes them.
        reading: features of the same tiles, as the heads read them.

    Returns:
        The loss, and the values to log.
    """
    labels = np.concatenate([lesson.views.tile_labels() for lesson in batch.lessons]).astype(np.int64)
    labels = torch.from_numpy(labels).to(projected.device)
    regression, reading_off = code_losses(symbols, projected, labels)
    values = {"unexplained": regression.item(), "reading_off": reading_off.item()}
    loss = CODE_LOSS * (5 * regression + 0.25 * reading_off)
    if heads is not None:
        naming = tower_stage.loss_of(heads(reading), labels)
        loss, values["naming"] = loss + 0.3 * naming, naming.item()
    return loss, values


def train(folder: Path, minutes: float, device: torch.device, seed: int, batch_size: int = 6) -> None:
    """Run stage 4 for its minutes and leave `joint.pt` (keys tower, heads, projector, newline, adapter) in `folder`."""
    torch.manual_seed(seed)
    model, tokenizer = load_language_model(device)
    plain = PlainText(model, tokenizer, random.Random(seed + 1))
    symbols = load_symbols(folder, device)
    modules = load_modules(folder, model, symbols, device)
    tower, heads, projector, newline, adapter = modules.values()
    layers = start.vision(tower).encoder.layers[READING_LAYERS:]
    reading_modules = nn.ModuleList([tower, heads]).requires_grad_(False)
    layers.requires_grad_()
    last = [*projector.parameters(), *newline.parameters(), *layers.parameters()]
    first = [p for p in reading_modules.parameters() if not p.requires_grad]
    master = Master((adapter.own_parameters(), 1.0), (last, 0.5), (first, 0.1), weight_decay=0.0)
    stage = Stage(folder, "joint", minutes, {**modules, "master": master})
    if stage.over:
        return
    letters = letters_batches(tokenizer, seed + 1, stage.step)
    # In shared memory for the one worker to read: a second one, forked later, would copy all that has grown meanwhile.
    share = torch.tensor(BRIEF_SHARE if stage.fraction < BRIEF_LESSONS else 1.0).share_memory_()
    number = 10_000_000 * seed + 7_000_000 + batch_size * stage.step
    loader = iter(DataLoader(Lessons(tokenizer, "train", number, batch_size, share=share), None, num_workers=1))
    average = Average(20)
    while not stage.over:
        brief = stage.fraction < BRIEF_LESSONS
        if not brief:
            share.fill_(1.0)
        reading_modules.requires_grad_(not brief)
        layers.requires_grad_()
        batch = next(loader)
        pictures, reading, projected = project_pictures(batch, tower, projector, newline.newline)
        embedded = filled(model.model.embed_tokens(batch.ids.to(device)), batch, pictures)
        loss, right = answer_loss(model, batch, embedded)
        code_loss, values = learn_codes(projected, reading, batch, symbols, None if brief else heads)
        (loss + code_loss).backward()
        values |= learn_text_and_letters(model, plain, letters, stage.step)
        master.step(stage.learning_rate(6e-4, warm_up=10))
        means = average.add(loss=loss.item(), right=right, **values)
        stage.advance()
        if stage.step % 10 == 0:
            stage.log(pictures=stage.step * batch_size, **means)
    with torch.no_grad():
        shares = validate(model, tokenizer, lambda b: project_pictures(b, tower, projector, newline.newline)[0])
    stage.log(**{f"val_{kind}": share for kind, share in shares.items()})
    stage.save()
