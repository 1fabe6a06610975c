"""Multiply by stored low-bit weights: the one place that picks how.

A few rows (decoding) go to the kernel that reads packed words. Many rows (prompts, perplexity) go through tiles:
a few hundred rows of the weight are dequantized into a buffer, multiplied by the platform's own matrix product, and
dropped, so that at no time more than a tile is dense.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import ModuleType

import torch

from quant_engine.kernels import cpu, cpu_binary
from quant_engine.weights import LowRank, StoredWeight

TILE_WEIGHTS = 2**20
"""Weights that are dense at once: 4 MiB in float32."""
FEW_ROWS = 4
"""Up to so many activation rows, the packed kernel beats dequantizing a tile."""
CPU_KERNELS = {
    "grouped_int": cpu,
    "binary": cpu_binary,
    "partly_binary": cpu_binary,
    "residual_binary": cpu_binary,
}
"""By storage form, the module with its functions `fits`, `multiply_row` and `dequantize_rows` for the CPU."""


def matmul(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features] times the weight's transpose: [rows, out_features], in the type of `x`."""
    if isinstance(weight, LowRank):
        a, b = weight.a.to(x.dtype), weight.b.to(x.dtype)
        return matmul(x, weight.base).add_(x @ a.T @ b.T, alpha=weight.scale)
    kernel = _kernel(x, weight)
    if kernel and len(x) <= FEW_ROWS and kernel.fits(weight):
        rows = weight.transform_input(x.float()).contiguous()
        y = torch.stack([kernel.multiply_row(row, weight) for row in rows])
        return weight.transform_output(y).to(x.dtype)
    return tiled(x, weight)


def _kernel(x: torch.Tensor, weight: StoredWeight) -> ModuleType | None:
    return CPU_KERNELS.get(weight.form) if x.device.type == "cpu" else None


def tiled(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """The same product by dequantizing a tile of weight rows at a time, for any form and device."""
    kernel = _kernel(x, weight)
    x = weight.transform_input(x)
    step = max(1, TILE_WEIGHTS // weight.in_features)
    parts = []
    for start in range(0, weight.out_features, step):
        end = min(start + step, weight.out_features)
        rows = kernel.dequantize_rows(weight, start, end) if kernel else weight.stored_rows(start, end)
        parts.append(x @ rows.to(x.dtype).T)
    return weight.transform_output(parts[0] if len(parts) == 1 else torch.cat(parts, 1))


def matmul_back(gradient: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`gradient` [rows, out_features] times the weight: [rows, in_features], the gradient of the product's input.

    As `tiled`, a tile of weight rows at a time.
    """
    x = gradient.new_zeros((len(gradient), weight.in_features))
    step = max(1, TILE_WEIGHTS // weight.in_features)
    for start in range(0, weight.out_features, step):
        end = min(start + step, weight.out_features)
        x.addmm_(gradient[:, start:end], weight.dequantize(start, end).to(gradient.dtype))
    return x


def warm_up(weights: Iterable[StoredWeight]) -> None:
    """Compiles, or loads from earlier, every kernel that these weights need, so that no answer waits for it."""
    kinds = {(weight.form, json.dumps(weight.config(), sort_keys=True)): weight for weight in weights}
    for weight in kinds.values():
        for rows in (1, FEW_ROWS + 1):
            matmul(torch.zeros((rows, weight.in_features), device=weight.device), weight)
