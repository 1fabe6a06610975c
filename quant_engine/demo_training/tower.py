"""Stage 1: the vision tower learns to name what each patch of a drawn picture holds.

Every patch has labels (characters, mark, colour, word, places: see `labels`), so the tower learns from each patch of
each tile and no language model is in the loop. Cross-entropy for each field, with the empty class weighted down.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionModel

from quant_engine.data.drawn import words
from quant_engine.data.drawn.drawing import COLOURS, FONTS, Canvas, Drawing
from quant_engine.data.drawn.pictures import Split, picture, seed
from quant_engine.demo import model as architecture
from quant_engine.demo_training import start
from quant_engine.demo_training.budget import Average, Stage
from quant_engine.demo_training.labels import (
    CENTRE,
    COLOUR,
    COUNT,
    FIELDS,
    FROM,
    LINKED,
    LINKED_WORD,
    MARK,
    SLOTS,
    TILE,
    TO,
    WORD,
    cut_views,
    tile_of,
)
from quant_engine.demo_training.precision import Master

EMPTY_WEIGHT = 0.2
FAMILY_ORDER = ("form", "chart", "diagram", "chart", "form", "diagram", "chart", "scene")  # more of what has text


class Heads(nn.Module):
    """One linear classifier for each field, on the tower's features [..., hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.fields = nn.ModuleList(nn.Linear(hidden, classes) for classes in FIELDS)

    def forward(self, features: Tensor) -> list[Tensor]:
        features = self.norm(features)
        return [head(features) for head in self.fields]


def blank(device: torch.device) -> tuple[CLIPVisionModel, Heads]:
    """An untrained tower and its classifiers, in bfloat16."""
    tower = CLIPVisionModel(architecture.vision_config()).to(device, torch.bfloat16)
    tower.set_attn_implementation("eager")  # on so few positions plain products train faster than the fused kernel
    return tower, Heads(tower.config.hidden_size).to(device, torch.bfloat16)


def features(tower: CLIPVisionModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the heads read and what the projector gets, without the class token: each [tiles, SIDE * SIDE, hidden]."""
    states = tower(pixels, output_hidden_states=True).hidden_states
    return states[architecture.READING_LAYERS][:, 1:], states[architecture.FEATURE_LAYER][:, 1:]


def normalised(tiles: Tensor) -> Tensor:
    """uint8 [tiles, height, width, 3] to the processor's form: bfloat16 [tiles, 3, height, width] in -1..1."""
    return (tiles.permute(0, 3, 1, 2).float() / 127.5 - 1).bfloat16()


def with_margins(drawing: Drawing, number: int) -> Drawing:
    """The picture between two black margins, as the processor pads a picture that doesn't fill its tiles."""
    rng = random.Random(number)
    width, height = drawing.image.size
    upright, margin = rng.random() < 0.5, rng.randint(6, 56)
    left, top = (margin, 0) if upright else (0, margin)
    image = Image.new("RGB", (width, height))
    image.paste(drawing.image.crop((left, top, width - left, height - top)), (left, top))
    colours = np.zeros_like(drawing.colours)
    inner = (slice(top, height - top), slice(left, width - left))
    colours[inner] = drawing.colours[inner]

    def inside(x: float, y: float) -> bool:
        return left <= x < width - left and top <= y < height - top

    glyphs = tuple(g for g in drawing.glyphs if inside(g.x, g.y))
    marks = tuple(m for m in drawing.marks if inside(m.x, m.y))
    complete = len(glyphs) == len(drawing.glyphs) and len(marks) == len(drawing.marks)
    return Drawing(image, glyphs, marks, colours, drawing.links, drawing.count if complete else 0)


def full_of_text(rng: random.Random) -> Drawing:
    """One tile full of numbers, words and codes at any place.

    It has several times as many characters as an ordinary picture, at the same price: the tower learns to read faster.
    """
    canvas = Canvas(rng, TILE, TILE)
    y = rng.uniform(2, 14)
    while y < TILE:
        size = rng.randint(15, 21)
        font = rng.choice(FONTS)
        ink = canvas.ink
        if rng.random() < 0.15:
            colour = rng.choice(list(COLOURS))
            canvas.rectangle((0, y - 0.75 * size, TILE, y + 0.75 * size), colour)
            ink = (0, 0, 0) if sum(canvas.palette[colour]) > 380 else (255, 255, 255)
        x = rng.uniform(-14, 16)
        while x < TILE:
            text = _some_text(rng)
            canvas.text(x, y, text, size, ink=ink, name=font)
            x += canvas.text_width(text, size, font) + rng.uniform(4, 24)
        y += size * rng.uniform(1.05, 1.7)
    return canvas.finish()


def _some_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return words.digits(rng, 1, 4) + rng.choice(("", "", "", "%"))
    if kind < 0.75:
        return rng.choice(words.common_words()) + rng.choice(("", "", ":"))
    return rng.choice((words.invented, words.code, words.price, words.date))(rng)


class Tiles(IterableDataset):
    """Batches of tiles with labels, from picture `start` of a split on.

    The share `dense` of the tiles is full of text; the others come from pictures, mostly those that hold something.
    """

    def __init__(self, split: Split, start: int, batch: int, dense: float = 0.35) -> None:
        self.split, self.start, self.batch, self.dense = split, start, batch, dense

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        for_text = round(self.dense * self.batch)
        tiles, labels = [], []
        for number in itertools.count(self.start):
            drawing = picture(FAMILY_ORDER[number % len(FAMILY_ORDER)], self.split, number).drawing
            views = cut_views(with_margins(drawing, number) if number % 12 == 0 else drawing)
            tile_labels = views.tile_labels()
            full = tile_labels.any(axis=(1, 2, 3))
            full[number % len(full)] = True
            tiles.append(views.tiles[full])
            labels.append(tile_labels[full])
            if sum(map(len, tiles)) >= self.batch - for_text:
                rng = random.Random(seed(self.split, "text", number))
                text = [tile_of(full_of_text(rng)) for _ in range(for_text)]
                yield (
                    torch.from_numpy(np.concatenate([t.tiles for t in text] + tiles)[: self.batch]),
                    torch.from_numpy(
                        np.concatenate([t.tile_labels() for t in text] + labels)[: self.batch].astype(np.int64)
                    ),
                    number + 1,
                )
                tiles, labels = [], []


def loss_of(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """Sum of the fields' cross-entropies; labels [tiles, SIDE, SIDE, fields]."""
    flat = labels.flatten(0, 2)
    total = outputs[0].new_zeros((), dtype=torch.float32)
    for index, output in enumerate(outputs):
        weight = torch.ones(FIELDS[index], device=output.device)
        weight[0] = EMPTY_WEIGHT
        total = total + cross_entropy(output.flatten(0, 1).float(), flat[:, index], weight)
    return total


def accuracies(outputs: list[Tensor], labels: Tensor) -> dict[str, float]:
    """Of what is there, how much is named rightly: characters (all slots), marks, colours, words, places."""
    flat = labels.flatten(0, 2)
    right = torch.stack([o.flatten(0, 1).argmax(-1) for o in outputs], -1) == flat
    there = flat > 0
    shares = {}
    named = {"characters": slice(0, SLOTS), "marks": MARK, "colours": COLOUR, "words": WORD}
    named |= {"centres": CENTRE, "to": TO, "from": FROM, "linked": LINKED, "linked words": LINKED_WORD, "counts": COUNT}
    for name, fields in named.items():
        shares[name] = (right[:, fields] & there[:, fields]).sum().item() / max(1, there[:, fields].sum().item())
    return shares


@torch.no_grad()
def validate(tower: CLIPVisionModel, heads: Heads, device: torch.device, batches: int = 4) -> dict[str, float]:
    """Accuracies on held-out pictures."""
    tower.eval()
    sums: dict[str, float] = {}
    for tiles, labels, _ in itertools.islice(Tiles("val", 0, 64, dense=0.0), batches):
        outputs = heads(features(tower, normalised(tiles.to(device)))[0])
        for key, value in accuracies(outputs, labels.to(device)).items():
            sums[key] = sums.get(key, 0.0) + value / batches
    tower.train()
    return sums


def train(folder: Path, minutes: float, device: torch.device, run_seed: int, batch: int = 16) -> None:
    """Run stage 1 for its minutes and leave `tower.pt` (keys tower, heads) in `folder`."""
    torch.manual_seed(run_seed)
    tower, heads = blank(device)
    if not (folder / "tower.pt").exists():
        rng = random.Random(run_seed)
        examples = [cut_views(picture("form", "train", number).drawing).tiles for number in range(60)]
        examples += [tile_of(full_of_text(rng)).tiles for _ in range(200)]
        start.prepare(tower, normalised(torch.from_numpy(np.concatenate(examples))).to(device))
    master = Master(([*tower.parameters(), *heads.parameters()], 1.0))
    stage = Stage(folder, "tower", minutes, {"tower": tower, "heads": heads, "master": master})
    if stage.over:
        return
    # A restart goes on with pictures that earlier starts have not seen.
    first = 10_000_000 * run_seed + 16 * stage.step
    loader = iter(DataLoader(Tiles("train", first, batch), batch_size=None, num_workers=1, prefetch_factor=4))
    average = Average()
    tower.train()
    while not stage.over:
        tiles, labels, _ = next(loader)
        outputs = heads(features(tower, normalised(tiles.to(device)))[0])
        loss = loss_of(outputs, labels.to(device))
        loss.backward()
        master.step(stage.learning_rate(1e-3))
        means = average.add(loss=loss.item(), **accuracies(outputs, labels.to(device)))
        stage.advance()
        if stage.step % 50 == 0:
            stage.log(tiles=stage.step * batch, **means)
        if stage.step % 500 == 0:
            stage.log(**{f"val_{k}": v for k, v in validate(tower, heads, device).items()})
    stage.log(**{f"val_{k}": v for k, v in validate(tower, heads, device, 12).items()})
    stage.save()
