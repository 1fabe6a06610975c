"""A better start than noise for a small vision tower, so that learning to read takes minutes and not hours.

*What a patch looks like.* The patch embedding starts as the principal components of real patches, each scaled to the
same variance. From noise the tower sees brightness first, and the fine strokes that tell letters apart last; whitened,
all are equally loud.

*Where its neighbours are.* A character often lies across patches. The position embeddings start as sines and cosines of
column and row, and in the first layers each head's query is its key turned by one patch in one direction, so that its
attention peaks at that neighbour. All of it is trained on from there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import CLIPVisionModel

LOOKS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # (columns, rows) from a patch to the neighbour that a head looks at
LAYERS = 3  # how many layers start so
SHARPNESS = 1.3
LOUDNESS = 0.5  # standard deviation of each whitened component
FLOOR = 1e-3  # share of the largest variance below which a component is not made louder


@torch.no_grad()
def prepare(tower: CLIPVisionModel, pixels: Tensor) -> None:
    """Set an untrained tower's embeddings and first attention in place, from tiles [tiles, 3, height, width]."""
    used = _positions(tower)
    _whitened_patches(tower, pixels, used)


def _waves(period: int, side: int) -> Tensor:
    """Sines and cosines of column and row [side * side, 4 * period], of 2 * period patches and its overtones."""
    phases = torch.arange(side)[:, None] * torch.arange(1, period + 1) * (2 * math.pi / (2 * period))
    along = torch.stack([phases.cos(), phases.sin()], -1).flatten(1)
    across, down = torch.broadcast_tensors(along[None], along[:, None])
    return torch.cat([across, down], -1).flatten(0, 1)


def vision(tower: CLIPVisionModel) -> torch.nn.Module:
    """The part of the tower that has the layers, in this and in earlier versions of transformers."""
    return getattr(tower, "vision_model", tower)


def _whitened_patches(tower: CLIPVisionModel, pixels: Tensor, used: int) -> None:
    """Principal components of the patches into the embedding's dimensions from `used` on."""
    embeddings, size = vision(tower).embeddings, tower.config.patch_size
    patches = torch.nn.functional.unfold(pixels.float(), size, stride=size).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    variances, directions = torch.linalg.eigh(covariance)
    count = embeddings.patch_embedding.out_channels - used
    variances, directions = variances.flip(0)[:count], directions.flip(1)[:, :count]
    scale = LOUDNESS / variances.clamp(min=FLOOR * variances[0]).sqrt()
    weight = torch.zeros(embeddings.patch_embedding.out_channels, patches.shape[1])
    weight[used:] = (directions * scale).T
    embeddings.patch_embedding.weight.copy_(weight.view_as(embeddings.patch_embedding.weight))
    # The embedding has no bias: the mean patch is taken off in the position embeddings.
    embeddings.position_embedding.weight[1:, used:] = -(weight @ mean)[used:].to(embeddings.position_embedding.weight)


def _positions(tower: CLIPVisionModel) -> int:
    """Position embeddings and the first layers' queries and keys; returns how many dimensions the positions take."""
    inner = vision(tower)
    side = tower.config.image_size // tower.config.patch_size
    frequencies = [2 * math.pi * k / (2 * side) for k in range(1, side + 1)]
    width = 2 * len(frequencies)  # dimensions for the column; as many for the row
    positions = inner.embeddings.position_embedding.weight
    positions.zero_()
    positions[1:, : 2 * width] = _waves(side, side).to(positions)
    head_size = tower.config.hidden_size // tower.config.num_attention_heads
    for layer in inner.encoder.layers[:LAYERS]:
        attention = layer.self_attn
        for head in range(tower.config.num_attention_heads):
            turn = torch.zeros(2 * width, 2 * width)
            for axis, shift in enumerate(LOOKS[head % len(LOOKS)]):
                for k, w in enumerate(frequencies):
                    at = axis * width + 2 * k
                    cos, sin = math.cos(w * shift), math.sin(w * shift)
                    turn[at : at + 2, at : at + 2] = torch.tensor([[cos, -sin], [sin, cos]])
            rows = slice(head * head_size, head * head_size + 2 * width)
            attention.k_proj.weight[rows, : 2 * width] = SHARPNESS * torch.eye(2 * width).to(positions)
            attention.q_proj.weight[rows, : 2 * width] = SHARPNESS * turn.to(positions)
    return 2 * width
