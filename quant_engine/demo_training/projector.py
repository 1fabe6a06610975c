"""Stage 3: the projector learns to turn the tower's features into the code that the language model was taught.

For each patch the target is the code of its labels, and its labels must be readable from what comes out, as the nearest
code: both are dense, with no language model in the loop, so it takes minutes. From distances alone words were never
learnt: there are hundreds, each of them rare. The tower's last layers learn along: a projector of two layers alone
can't make hundreds of words from features that only tell them apart. The layers that read stand still at first; then
the whole tower learns, and goes on naming.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, LlamaForCausalLM

from quant_engine.demo import fetch
from quant_engine.demo.model import READING_LAYERS
from quant_engine.demo_training import start
from quant_engine.demo_training import tower as tower_stage
from quant_engine.demo_training.budget import Average, Stage
from quant_engine.demo_training.labels import COUNT, LINKED, LINKED_WORD, WORD
from quant_engine.demo_training.language import load_tower
from quant_engine.demo_training.precision import Master
from quant_engine.demo_training.symbols import Symbols

READING_STILL = 0.6  # share of the stage in which the layers that read stand still


class Projector(nn.Module):
    """LLaVA-NeXT's projector, with its names: linear, GELU, linear."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, text_size)
        self.linear_2 = nn.Linear(text_size, text_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features)))


def load_symbols(folder: Path, device: torch.device) -> Symbols:
    """The code as stage 2 left it."""
    language_folder = fetch.get_language_model()
    embeddings = LlamaForCausalLM.from_pretrained(language_folder, dtype=torch.float32).model.embed_tokens.weight
    symbols = Symbols(AutoTokenizer.from_pretrained(language_folder), embeddings).to(torch.bfloat16)
    symbols.load_state_dict(torch.load(folder / "language.pt", map_location="cpu", weights_only=True)["symbols"])
    return symbols.to(device).requires_grad_(False)


def reading_loss(symbols: Symbols, projected: Tensor, labels: Tensor) -> Tensor:
    """Sum over fields of the cross-entropy of what codes [tiles, SIDE * SIDE, hidden] tell, where they tell something.

    Where a field tells nothing it isn't read: a word and a linked word have nearly the same code.
    """
    targets = symbols.coded(labels).flatten(1, 2)
    total = projected.new_zeros((), dtype=torch.float32)
    for field, logits in symbols.read(projected).items():
        there = targets[..., field] > 0
        if there.any():
            total = total + cross_entropy(logits[there].float(), targets[..., field][there])
    return total


def code_losses(symbols: Symbols, projected: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How far codes [tiles, SIDE * SIDE, hidden] are from those of labels [tiles, SIDE, SIDE, fields].

    The share of the codes' variance that is unexplained, and `reading_loss`. The many patches that hold nothing count
    little, and the few that tell of text most.
    """
    with torch.no_grad():
        target = torch.stack([symbols.exact(tile).flatten(0, 1) for tile in labels]).float()
    text = labels[..., [0, WORD, LINKED.start, LINKED_WORD, COUNT]].any(-1)
    weight = (0.1 + labels.any(-1).float() + 3 * text).flatten(1)
    error = (projected.float() - target).square().sum(-1)
    spread = (target - target.mean((0, 1))).square().sum(-1)
    return (weight * error).sum() / (weight * spread).sum(), reading_loss(symbols, projected, labels)


def train(folder: Path, minutes: float, device: torch.device, seed: int, batch: int = 16) -> None:
    """Run stage 3 for its minutes and leave `projector.pt` (keys projector, tower, heads) in `folder`."""
    torch.manual_seed(seed)
    symbols = load_symbols(folder, device)
    tower, heads = load_tower(folder, device)
    last = start.vision(tower).encoder.layers[READING_LAYERS:].requires_grad_()
    reading = nn.ModuleList([tower, heads])
    first = [p for p in reading.parameters() if not p.requires_grad]
    projector = Projector(tower.config.hidden_size, symbols.common.shape[0]).to(device, torch.bfloat16)
    master = Master((projector.parameters(), 1.0), (last.parameters(), 1.0), (first, 0.3), weight_decay=0.0)
    state = {"projector": projector, "tower": tower, "heads": heads, "master": master}
    stage = Stage(folder, "projector", minutes, state)
    if stage.over:
        return
    number = 10_000_000 * seed + 8_000_000 + batch * stage.step
    loader = iter(DataLoader(tower_stage.Tiles("train", number, batch), batch_size=None, num_workers=1))
    average = Average()
    while not stage.over:
        tiles, labels, _ = next(loader)
        labels = labels.to(device)
        reading.requires_grad_(stage.fraction >= READING_STILL)
        last.requires_grad_()
        reading_features, features = tower_stage.features(tower, tower_stage.normalised(tiles.to(device)))
        regression, reading_off = code_losses(symbols, projector(features), labels)
        naming = tower_stage.loss_of(heads(reading_features), labels)
        loss = 5 * regression + 0.25 * reading_off
        (loss + naming if naming.requires_grad else loss).backward()
        master.step(stage.learning_rate(1e-3))
        means = average.add(unexplained=regression.item(), reading_off=reading_off.item(), naming=naming.item())
        stage.advance()
        if stage.step % 50 == 0:
            stage.log(**means)
    stage.save()
