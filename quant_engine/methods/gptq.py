"""GPTQ: fix the columns of a weight one after the other, and let the columns still free make up for each error.

For calibration inputs X [tokens, n] and H = (2/N) X^T X, minimise tr((W - Q) H (W - Q)^T). With inv(H + damping) =
U^T U, U upper triangular, and columns fixed from left to right:

    q_j = round_to_grid(w_j)      e_j = (w_j - q_j) / U_jj      w_k <- w_k - e_j U_jk   for every k > j

Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers, arXiv 2210.17323.
Columns go in lazy blocks of 128, which only reorders the arithmetic. Dynamic groups (the default, as in the reference
code) fit each group's grid when its first column is reached, to the weights as updated by then; the reference reads
them without the updates still pending inside the current block of 128, and so do we. Static groups fit all grids to
the original weights in original column order; act-order with static groups needs no stored column order. Weights of
inputs that are always zero become zero before any grid is fitted, so that they widen none (the reference fits a grid
per row first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.rtn import grouped_bits
from quant_engine.spec import QuantSetting, UserError

if TYPE_CHECKING:
    from quant_engine.weights.grouped import GroupedInt

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")
kernel = deferred("quant_engine.kernels.columns")

LAZY_BLOCK = 128
"""Columns whose mutual updates are applied at once; the updates of later columns wait for the block's end."""
DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""
SMALL_STEP = 2**20
"""Elements below which one thread does a step of the column loop faster than several."""


class GptqOptions(Options):
    act_order: bool = Field(False, description="Fix the columns with the largest inputs first.")
    true_sequential: bool = Field(True, description="Collect inputs anew behind each set of linears of a block.")
    groups: Literal["dynamic", "static"] = Field(
        "dynamic", description="Fit a group's grid when it is reached, or all grids to the original weights."
    )
    symmetric: bool = Field(False, description="Grid centred on zero, so that no zero point is stored.")
    mse_clip: bool = Field(False, description="Shrink each group's range to the one with the least rounding error.")


def quantize(layer: Layer) -> GroupedInt:
    """The weight quantized against the Hessian of its calibration inputs."""
    weight, bits, options = layer.weight, layer.bits, layer.options
    columns = weight.shape[1]
    group = layer.setting.group_size or columns
    hessian = clear_dead_columns(weight, layer.required_statistics.hessian)
    fit = {"symmetric": options.symmetric, "mse_clip": options.mse_clip}

    # A grid per row is always fixed in advance, to the original weights.
    static = options.groups == "static" or group >= columns
    grids = grouped.grids(weight, bits, group, **fit) if static else None

    order = None
    group_of_column = torch.arange(columns, device=weight.device) // group
    if options.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        weight, hessian = weight[:, order], hessian[order][:, order]
        if static:
            group_of_column = group_of_column[order]

    factor = shared_factor(layer, hessian)
    codes, scales, zeros = fix_columns(weight, factor, bits, group, group_of_column, grids, fit)

    if order is not None and static:
        codes = codes[:, torch.argsort(order)]
        order = None
    return grouped.GroupedInt.pack(codes, scales, None if options.symmetric else zeros, bits, group, order=order)


def clear_dead_columns(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """A copy of the Hessian with 1 on the diagonal of inputs that were always zero; their weights become zero.

    Must come before damping, or the mean of the diagonal would shrink.
    """
    hessian = hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    return hessian


def shared_factor(layer: Layer, hessian: torch.Tensor) -> torch.Tensor:
    """The `inverse_factor` of the layer's Hessian, computed for the first of the linears that share it. `hessian` is
    that one with dead columns cleared, its columns in the order that the method takes for all of them."""
    shared = layer.required_statistics.shared
    if "inverse_factor" not in shared:
        shared["inverse_factor"] = inverse_factor(hessian, layer.log)
    return shared["inverse_factor"]


def inverse_factor(hessian: torch.Tensor, log: Callable[[str], None], damping: float = DAMPING) -> torch.Tensor:
    """U [n, n], upper triangular, with inv(H + damping * mean(diag H) * I) = U^T U, in the Hessian's dtype.

    Where the factorisation fails, it is tried in float64 and then with ten times the damping, at most three times;
    each is logged. Raises UserError if all fail (inputs with infinities, for example).
    """
    if not torch.isfinite(hessian).all():
        raise UserError("The calibration inputs of a layer are not finite; use dtype float32 or bfloat16.")
    mean = hessian.diagonal().mean()
    for attempt in range(4):
        share = damping * 10**attempt
        for dtype in (hessian.dtype, torch.float64) if hessian.dtype != torch.float64 else (torch.float64,):
            damped = hessian.to(dtype, copy=True)
            damped.diagonal().add_(share * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                # The inverse is symmetric only up to rounding, and the second factorisation needs it exactly so.
                inverse = (inverse + inverse.T) / 2
                factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
                if not failed:
                    return factor.to(hessian.dtype)
            log(f"factorisation failed in {dtype} with damping {share:g}; trying again")
    raise UserError("GPTQ could not factor a layer's Hessian; use more calibration samples.")


@contextmanager
def _one_thread_for_small_steps(weight: torch.Tensor) -> Iterator[None]:
    """The column loop takes thousands of small steps; handing each out to threads costs more than it saves."""
    threads = torch.get_num_threads()
    if weight.shape[0] * LAZY_BLOCK < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fix_columns(
    weight: torch.Tensor,
    factor: torch.Tensor,
    bits: int,
    group: int,
    group_of_column: torch.Tensor,
    grids: tuple[torch.Tensor, torch.Tensor] | None,
    fit: dict[str, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GPTQ's column loop on `weight` [m, n], which is used up.

    Args:
        factor: U [n, n], of the Hessian in the same order of columns.
        group: columns of a dynamic group, consecutive in this order.
        group_of_column: the group whose grid each column is rounded to [n].
        grids: scales and zeros [m, groups] fixed beforehand; None fits each dynamic group when it is reached.
        fit: what `grouped.grids` is called with then.

    Returns:
        Codes, uint8 [m, n], and scales and zeros [m, groups].
    """
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=weight.device)
    if grids is None:
        count = -(-columns // group)
        scales = torch.empty((rows, count), dtype=torch.float16, device=weight.device)
        zeros = torch.empty((rows, count), dtype=torch.uint8, device=weight.device)
    else:
        scales, zeros = grids
    fix = kernel.fix_columns if weight.device.type == "cpu" else fix_block
    for start in range(0, columns, LAZY_BLOCK):
        end = min(start + LAZY_BLOCK, columns)
        first, last = -(-start // group), -(-end // group)
        if grids is None and first < last:  # groups that begin in this block
            reached = weight[:, first * group : last * group]
            scales[:, first:last], zeros[:, first:last] = grouped.grids(reached, bits, group, **fit)
        # Columns lie in rows here, so that each step reads and writes memory in one piece.
        block = weight[:, start:end].T.contiguous()
        groups = group_of_column[start:end]
        scale, zero = (grid.T[groups].to(weight.dtype) for grid in (scales, zeros))
        codes[:, start:end] = fix(block, factor[start:end, start:end], scale, zero, 2**bits - 1).T
        weight[:, end:] -= block.T @ factor[start:end, end:]
    return codes, scales, zeros


def fix_block(
    block: torch.Tensor, factor: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, highest: int
) -> torch.Tensor:
    """What `kernels.columns.fix_columns` does, on any device."""
    codes = torch.empty_like(block, dtype=torch.uint8)
    diagonal = factor.diagonal().tolist()
    for i, values in enumerate(block):
        code = torch.round(values / scales[i]).add_(zeros[i]).clamp_(0, highest)
        codes[i] = code
        values.sub_(scales[i] * (code - zeros[i])).div_(diagonal[i])
        block[i + 1 :] -= torch.outer(factor[i, i + 1 :], values)
    return codes


def compensate(
    weight: torch.Tensor,
    factor: torch.Tensor,
    fix: Callable[[int, torch.Tensor], torch.Tensor],
    lazy_block: int = LAZY_BLOCK,
) -> None:
    """The column loop: fixes each column of `weight` [m, n] in turn and lets the later ones make up for its error.

    `fix(column, values)` gets the column's values as corrected so far [m] and returns the stored ones. While it runs,
    `weight` itself lacks the corrections from inside the current block of `lazy_block` columns. It is used up.
    """
    columns = weight.shape[1]
    diagonal = factor.diagonal().tolist()
    with _one_thread_for_small_steps(weight):
        for start in range(0, columns, lazy_block):
            end = min(start + lazy_block, columns)
            # Columns lie in rows here, so that each step reads and writes memory in one piece.
            block = weight[:, start:end].T.contiguous()
            errors = torch.empty_like(block)
            local = factor[start:end, start:end].contiguous()
            for i in range(end - start):
                errors[i] = (block[i] - fix(start + i, block[i])) / diagonal[start + i]
                block[i + 1 :] -= torch.outer(local[i, i + 1 :], errors[i])
            weight[:, end:] -= errors.T @ factor[start:end, end:]


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: GptqOptions) -> float:
    """Bits per weight: codes, scales, zero points, and for act-order with dynamic groups a 32-bit order of columns."""
    bits, group = int(setting.w_bits), setting.group_size
    grids = grouped_bits(out_features, in_features, bits, group, zero_points=not options.symmetric)
    ordered = options.act_order and options.groups == "dynamic" and (group or in_features) < in_features
    return grids + (32 / out_features if ordered else 0)


METHOD = Method(
    card=MethodCard(
        name="gptq",
        title="GPTQ",
        idea="Quantize the columns of a weight one after the other, and correct the columns not yet quantized for the "
        "error made so far, weighted by how the layer's inputs vary together. "
        "Needs a few calibration texts; strong at 3 and 4 bits.",
        formula=r"\min_Q \operatorname{tr}\big((W-Q)\,H\,(W-Q)^\top\big),\quad H = \tfrac{2}{N} X^\top X",
        stored="b-bit codes; per group a 16-bit scale and a b-bit zero point; "
        "with act-order and dynamic groups also a 32-bit column order per layer",
        bits=(1, 2, 3, 4, 5, 6, 7, 8),
        grouped=True,
        calibrated=True,
        reference="Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers",
        url="https://arxiv.org/abs/2210.17323",
    ),
    Options=GptqOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    true_sequential=lambda options: options.true_sequential,
)
