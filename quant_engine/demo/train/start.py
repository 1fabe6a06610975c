"""A better start than noise for a small vision tower: attention that looks at neighbouring patches from the first step.

A character often lies across two to four patches. A tower that starts from noise must first discover, by chance, that
neighbours matter, which takes longer than all that follows. So the position embeddings start as sines and cosines of
the patch's column and row, and in the first layers each head's query is its key turned by one patch in one direction:
its attention then peaks at that neighbour. All of it is trained on from there.
"""

from __future__ import annotations

import math

import torch
from transformers import CLIPVisionModel

LOOKS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # (columns, rows) from a patch to the neighbour that a head looks at
LAYERS = 3  # how many layers start so
SHARPNESS = 1.3


@torch.no_grad()
def look_at_neighbours(tower: CLIPVisionModel) -> None:
    """Set position embeddings and the first layers' queries and keys of an untrained tower, in place."""
    vision = getattr(tower, "vision_model", tower)
    side = tower.config.image_size // tower.config.patch_size
    frequencies = [2 * math.pi * k / (2 * side) for k in range(1, side + 1)]
    width = 2 * len(frequencies)  # dimensions for the column; as many for the row
    positions = vision.embeddings.position_embedding.weight
    for row in range(side):
        for column in range(side):
            values = [f(w * place) for place in (column, row) for w in frequencies for f in (math.cos, math.sin)]
            positions[1 + row * side + column, : 2 * width] = torch.tensor(values, dtype=positions.dtype)
    head_size = tower.config.hidden_size // tower.config.num_attention_heads
    for layer in vision.encoder.layers[:LAYERS]:
        attention = layer.self_attn
        for head in range(tower.config.num_attention_heads):
            columns, rows = LOOKS[head % len(LOOKS)]
            turn = torch.zeros(2 * width, 2 * width)
            for axis, shift in enumerate((columns, rows)):
                for k, w in enumerate(frequencies):
                    at = axis * width + 2 * k
                    cos, sin = math.cos(w * shift), math.sin(w * shift)
                    turn[at : at + 2, at : at + 2] = torch.tensor([[cos, -sin], [sin, cos]])
            rows_of_head = slice(head * head_size, head * head_size + 2 * width)
            attention.k_proj.weight[rows_of_head, : 2 * width] = SHARPNESS * torch.eye(2 * width).to(positions)
            attention.q_proj.weight[rows_of_head, : 2 * width] = SHARPNESS * turn.to(positions)
