"""Rows side by side: how stored rows lie while a CPU multiplies by them.

In files a row's words follow each other, [m, c]. Interleaved, 16 rows make a tile in which their words alternate,
[ceil(m / 16), c, 16], so that one load takes a word of each; rows that fill up the last tile are zero. The bits are the
same in both.
"""

from __future__ import annotations

import torch

ROWS = 16
"""Rows of a tile."""


def interleaved(values: torch.Tensor) -> torch.Tensor:
    """`values` [..., m, c] as [..., ceil(m / 16), c, 16]."""
    short = -values.shape[-2] % ROWS
    if short:
        values = torch.nn.functional.pad(values, (0, 0, 0, short))
    return values.unflatten(-2, (-1, ROWS)).transpose(-1, -2).clone(memory_format=torch.contiguous_format)


def restored(values: torch.Tensor, rows: int) -> torch.Tensor:
    """The first `rows` rows [..., rows, c] of interleaved `values` [..., tiles, c, 16]."""
    return values.transpose(-1, -2).flatten(-3, -2)[..., :rows, :].contiguous()
