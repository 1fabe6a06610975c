"""Multiply by stored low-bit weights: the one place that picks how.

A few rows (decoding) go to the kernel that reads packed words. Many rows (prompts, perplexity) go through tiles:
a few hundred rows of the weight are dequantized into a buffer, multiplied by the platform's own matrix product, and
dropped, so that at no time more than a tile is dense. On a GPU without Triton everything goes through tiles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType

import torch

from quant_engine.kernels import cpu
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.int_activations import IntActivations, quantize_tokens
from quant_engine.weights.interleaving import ROWS
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.mixed_width import MixedWidth
from quant_engine.weights.rounded_inputs import RoundedInputs

TILE_WEIGHTS = 2**20
"""Weights that are dense at once: 4 MiB in float32."""
MANY_ROWS = 17
"""So many activation rows are more than any kernel takes at once."""
CPU_KERNELS = {
    "grouped_int": cpu,
    "int_activations": cpu,
    "rotated_int": cpu,
    "codebook": cpu,
    "binary": cpu,
    "partly_binary": cpu,
    "residual_binary": cpu,
    "dual_binary": cpu,
    "half": cpu,
    "scaled_int": cpu,
    "float8": cpu,
    "fp4_codebook": cpu,
    "gguf_blocks": cpu,
}
"""By storage form, the module with its functions `fits`, `prepare`, `multiply` and `dequantize_rows` for the CPU, and
up to how many activation rows it multiplies from the words."""


def matmul(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features] times the weight's transpose: [rows, out_features], in the type of `x`."""
    if isinstance(weight, LowRank):
        a, b = weight.a.to(x.dtype), weight.b.to(x.dtype)
        return matmul(x, weight.base).add_(x @ a.T @ b.T, alpha=weight.scale)
    if isinstance(weight, RoundedInputs):
        return matmul(weight.round(x), weight.base)
    if isinstance(weight, IntActivations):
        codes, scale = quantize_tokens(x, weight.a_bits)
        return (_by_integers(codes, weight) * scale).to(x.dtype)
    if isinstance(weight, MixedWidth):
        return sum(matmul(part_of_x, part) for part_of_x, part in weight.split(x))
    y = _from_words(x, weight)
    if y is None:
        return tiled(x.to(_tile_dtype(x)), weight).to(x.dtype)
    return weight.transform_output(y).to(x.dtype)


def _tile_dtype(x: torch.Tensor) -> torch.dtype:
    """What many rows are multiplied in: their own type, unless torch was asked to choose for a while."""
    chosen = torch.is_autocast_enabled(x.device.type) and len(x) >= MANY_ROWS
    return torch.get_autocast_dtype(x.device.type) if chosen else x.dtype


def _from_words(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor | None:
    """The product of a few rows with the stored matrix, straight from its packed words; None where no kernel fits."""
    kernel = _kernel(x, weight)
    if not kernel or len(x) > kernel.FEW_ROWS:
        return None
    if x.device.type != "cpu":
        return kernel.multiply(weight.transform_input(x), weight)
    return kernel.multiply(weight.transform_input(x.float()), weight) if kernel.fits(weight) else None


def _by_integers(codes: torch.Tensor, weight: IntActivations) -> torch.Tensor:
    """Activation `codes`, whole numbers in float32 [rows, in_features], times the weight: float32, summed in integers
    where there are many rows."""
    on_cpu = codes.device.type == "cpu"
    y = cpu.multiply(codes, weight) if on_cpu and cpu.sums_integers(weight) else _from_words(codes, weight)
    if y is not None:
        return y
    if not on_cpu and (len(codes) <= 16 or weight.in_features % 8 or weight.out_features % 8):
        # Too small or odd for the GPU's integer product; in float32 these sums are all but exact as well.
        return tiled(codes, weight)
    narrow = codes.to(torch.int8)
    step = max(1, TILE_WEIGHTS // weight.in_features)
    step = max(8, step - step % 8)
    by_kernel = on_cpu and cpu.fits(weight)
    parts = []
    for start in range(0, weight.out_features, step):
        end = min(start + step, weight.out_features)
        rows = cpu.integer_rows(weight, start, end) if by_kernel else weight.integers(start, end)
        parts.append(torch._int_mm(narrow, rows.T).float())
    return torch.cat(parts, 1) * weight.row_scales.float()


def _kernel(x: torch.Tensor, weight: StoredWeight) -> ModuleType | None:
    if x.device.type == "cpu":
        return CPU_KERNELS.get(weight.form)
    gpu = _triton() if x.device.type == "cuda" else None
    return gpu if gpu and gpu.fits(weight, x.dtype) else None


@cache
def _triton() -> ModuleType | None:
    """The kernels of a GPU; None where Triton is not installed."""
    try:
        # Not above: Triton is there on a GPU's machine only, and its compiler takes a second to load.
        from quant_engine.kernels import gpu
    except ImportError:
        return None
    return gpu


def tiled(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`x` [rows, in_features] times the weight's transpose, a tile of dequantized rows at a time, on any device."""
    kernel = _kernel(x, weight)
    x = weight.transform_input(x)
    y = x.new_empty((len(x), weight.out_features))
    for start, end in _tiles(weight, kernel):
        rows = kernel.dequantize_rows(weight, start, end) if kernel else weight.stored_rows(start, end)
        torch.mm(x, rows.to(x.dtype).T, out=y[:, start:end])
    return weight.transform_output(y)


def _tiles(weight: StoredWeight, kernel: ModuleType | None) -> Iterator[tuple[int, int]]:
    """First and last row of each tile."""
    step = getattr(kernel, "TILE_WEIGHTS", TILE_WEIGHTS) // weight.in_features
    step = max(ROWS, step - step % ROWS)
    for start in range(0, weight.out_features, step):
        yield start, min(start + step, weight.out_features)


def stored_rows(weight: StoredWeight, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of a weight whose stored rows are its own, float32, on any device."""
    kernel = CPU_KERNELS.get(weight.form) if weight.device.type == "cpu" else None
    return kernel.dequantize_rows(weight, start, end) if kernel else weight.dequantize(start, end)


def matmul_back(gradient: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """`gradient` [rows, out_features] times the weight: [rows, in_features], the gradient of the product's input."""
    # A kernel gives the stored rows, which are the weight's own where nothing is transformed on the way.
    plain = type(weight).stored_rows is StoredWeight.stored_rows
    kernel = _kernel(gradient, weight) if plain else None
    x = gradient.new_zeros((len(gradient), weight.in_features))
    for start, end in _tiles(weight, kernel):
        rows = kernel.dequantize_rows(weight, start, end) if kernel else weight.dequantize(start, end)
        x.addmm_(gradient[:, start:end], rows.to(gradient.dtype))
    return x


def warm_up(weights: Iterable[StoredWeight], dtype: torch.dtype) -> None:
    """Gets weights ready to be multiplied by activations in `dtype`, so that no answer waits for it: lays them as the
    kernels read them, and compiles, or loads from earlier, every kernel that they need."""
    kinds = {}
    for weight in weights:
        kinds[weight.form, json.dumps(weight.config(), sort_keys=True)] = weight
        for part in weight.modules():
            kernel = CPU_KERNELS.get(part.form) if isinstance(part, StoredWeight) else None
            if kernel and weight.device.type == "cpu" and kernel.fits(part):
                kernel.prepare(part)
    for weight in kinds.values():
        for rows in (1, MANY_ROWS - 1, MANY_ROWS):
            matmul(torch.zeros((rows, weight.in_features), dtype=dtype, device=weight.device), weight)
