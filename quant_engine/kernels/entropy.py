"""The shift of each block of weights whose codes carry the most information: the search behind IR-QLoRA.

For a block w, candidate shifts tau = center + offset * unit are tried in order, and the first with the greatest
entropy of the codes of (w - tau) / max |w - tau| is kept. Entropies are sums of rounded integers, so that equal counts
in another order are equal, on every device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange

from quant_engine.kernels.threads import parallel_kernels

UNIT = 2**40
"""Entropies are compared in steps of 1 / UNIT bit."""
SMALLEST = torch.finfo(torch.float32).tiny


def best_shifts(
    blocks: torch.Tensor,
    centers: torch.Tensor,
    units: torch.Tensor,
    offsets: torch.Tensor,
    levels: torch.Tensor,
    try_zero: bool,
) -> torch.Tensor:
    """The best shift of each of `blocks` [count, size], float32 [count].

    `centers` and `units` are [count], `offsets` [candidates], `levels` the ascending codebook, all float32. With
    `try_zero` no shift at all is one more candidate, after the others.
    """
    middles = (levels[:-1] + levels[1:]) / 2
    terms = torch.tensor(information(blocks.shape[1]))
    if blocks.device.type == "cpu":
        arrays = [tensor.contiguous().numpy() for tensor in (blocks, centers, units, offsets, middles, terms)]
        with parallel_kernels():
            return torch.from_numpy(_search(*arrays, try_zero))
    return _search_on_device(blocks, centers, units, offsets, middles.to(blocks), terms.to(blocks.device), try_zero)


def information(size: int) -> list[int]:
    """-p log2 p for p = 0 / size to size / size, in steps of 1 / UNIT bit."""
    return [0] + [round(UNIT * count / size * math.log2(size / count)) for count in range(1, size + 1)]


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _search(blocks, centers, units, offsets, middles, terms, try_zero):  # type: ignore[no-untyped-def]
    count, size = blocks.shape
    shifts = np.empty(count, np.float32)
    for i in prange(count):
        shifted = np.empty(size, np.float32)
        best = np.int64(-1)
        for k in range(len(offsets) + try_zero):
            shift = np.float32(0) if k == len(offsets) else centers[i] + offsets[k] * units[i]
            scale = np.float32(0)
            for j in range(size):
                shifted[j] = blocks[i, j] - shift
                scale = max(scale, abs(shifted[j]))
            scale = max(scale, np.float32(SMALLEST))
            for j in range(size):
                shifted[j] = shifted[j] / scale
            entropy, left = np.int64(0), size
            for middle in middles:
                above = np.int32(0)
                for j in range(size):
                    above += shifted[j] > middle
                entropy += terms[left - above]
                left = above
            entropy += terms[left]
            if entropy > best:
                best, shifts[i] = entropy, shift
    return shifts


def _search_on_device(
    blocks: torch.Tensor,
    centers: torch.Tensor,
    units: torch.Tensor,
    offsets: torch.Tensor,
    middles: torch.Tensor,
    terms: torch.Tensor,
    try_zero: bool,
) -> torch.Tensor:
    candidates = [centers + offset * units for offset in offsets.to(blocks)]
    if try_zero:
        candidates.append(torch.zeros_like(centers))
    shifts = torch.empty_like(centers)
    best = torch.full(centers.shape, -1, dtype=torch.int64, device=centers.device)
    for shift in candidates:
        shifted = blocks - shift[:, None]
        shifted /= shifted.abs().amax(1, keepdim=True).clamp(min=SMALLEST)
        entropy, left = torch.zeros_like(best), torch.full_like(best, blocks.shape[1])
        for middle in middles:
            above = (shifted > middle).sum(1)
            entropy += terms[left - above]
            left = above
        entropy += terms[left]
        shifts = torch.where(entropy > best, shift, shifts)
        best = torch.maximum(best, entropy)
    return shifts
