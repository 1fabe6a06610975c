"""GPTQ's column loop over a few columns, on a CPU: rows are independent, so some go through all columns together.

Each operation is rounded as the plain loop in torch rounds it, so both give the same numbers bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from quant_engine.kernels.threads import parallel_kernels

ROWS = 64
"""Rows of a weight that go through the columns together, so that a cache holds them."""


def fix_columns(
    columns: torch.Tensor, factor: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, highest: int
) -> torch.Tensor:
    """Rounds each of `columns` [n, m] to its grids, and lets those behind it make up for the error.

    Args:
        columns: n columns of a weight with m rows, float32 or float64. Their errors take their place, divided by the
            diagonal of `factor`.
        factor: upper triangular [n, n].
        scales, zeros: the grid of each weight [n, m], in the type of `columns`.
        highest: the largest code.

    Returns:
        The codes, uint8 [n, m].
    """
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    arrays = (values.numpy() for values in (columns, factor.contiguous(), scales, zeros, codes))
    with parallel_kernels():
        _fix(*arrays, highest)
    return codes


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _fix(
    columns: np.ndarray, factor: np.ndarray, scales: np.ndarray, zeros: np.ndarray, codes: np.ndarray, highest: int
) -> None:
    count, rows = columns.shape
    for tile in prange(-(-rows // ROWS)):
        start = tile * ROWS
        end = min(start + ROWS, rows)
        block = columns[:, start:end].copy()
        zero, most = block.dtype.type(0), block.dtype.type(highest)
        for i in range(count):
            fixed, scale, middle = block[i], scales[i, start:end], zeros[i, start:end]
            for row in range(end - start):
                code = min(max(np.rint(fixed[row] / scale[row]) + middle[row], zero), most)
                codes[i, start + row] = np.uint8(code)
                fixed[row] = (fixed[row] - scale[row] * (code - middle[row])) / factor[i, i]
            for k in range(i + 1, count):
                share, later = factor[i, k], block[k]
                for row in range(end - start):
                    later[row] -= share * fixed[row]
        columns[:, start:end] = block
