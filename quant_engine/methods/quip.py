"""QuIP: rotate a weight at random so that no entry stands out, then round with feedback (LDLQ).

For a weight W and the Hessian H of its inputs, minimise tr((Q - W) H (Q - W)^T).

Incoherence: with d_j = (H_jj / (W^T W)_jj)^(1/4) and random rotations U, V,

    W' = U (W diag(d)) V^T        H' = V (diag(d)^-1 H diag(d)^-1) V^T

leaves the loss as it is. W' is rounded on one grid of 2^b points evenly over [-s, s], s = 2.4 rms(W').
LDLQ: with H' = M D M^T, M unit lower triangular, columns are fixed from the last to the first,

    q_i = round(w_i + (W - Q)[:, i+1:] M[i+1:, i])

Chee et al., QuIP: 2-bit quantization of large language models with guarantees, arXiv 2307.13304. LDLQ is GPTQ's column
loop in the reverse order (theorem 6 there), which is how it is computed here. Steps and constants follow the reference
code: the Hessian's trace is normalised to n and 0.01 I added before damping, and weights are clipped to the grid before
LDLQ sees them, so that clipping is not fed back (as in GPTQ, which loses much less at 4 bits on weights with long
tails).

Paper and code differ in the rotations. The paper's are Kronecker products, and the code's documentation says that they
are its default; but its preset sets a field that nothing reads, so that an independent rotation for each slice is
what really runs (option "blocked"). "kronecker" is the default here: it is what both state, multiplies faster and takes
little memory. Greedy passes differ from the code in one point: it clips codes after each pass but goes on with
the errors from before, we compute them anew. The Hessian is summed in float32 and used in float64 (code: float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods import gptq
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.rtn import grouped_bits
from quant_engine.spec import QuantSetting
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    import torch

    from quant_engine.weights.grouped import GroupedInt
    from quant_engine.weights.rotated import RotatedInt

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")
rotated = deferred("quant_engine.weights.rotated")

GRID_REACH = 2.4
"""The grid's end over the root mean square of the rotated weights; holds 98.4% of a normal distribution."""
RIDGE = 0.01
"""Added to the Hessian's diagonal once its mean is 1."""
SMALLEST = 1e-8
HALF = 2.0**-14, 65504.0
"""The normal float16 numbers."""


class QuipOptions(Options):
    incoherence: bool = Field(True, description="Rotate and rescale; without it, a grid per row and LDLQ alone.")
    rounding: Literal["ldlq", "ldlq_rg", "nearest"] = Field(
        "ldlq", description="LDLQ; with columns in the order of their inputs' size (RG); or each weight by itself."
    )
    passes: int = Field(0, ge=0, le=20, description="Greedy passes over all columns afterwards.")
    rotation: Literal["kronecker", "blocked"] = Field(
        "kronecker", description="One rotation for each of two axes, or one for each slice along them."
    )


def quantize(layer: Layer) -> RotatedInt | GroupedInt:
    """The weight quantized against the Hessian of its calibration inputs, in float64."""
    weight, bits, highest, options, log = layer.weight, layer.bits, 2**layer.bits - 1, layer.options, layer.log
    if not options.incoherence:
        hessian = gptq.clear_dead_columns(weight, layer.required_statistics.hessian).double()
        scales, zeros = grouped.grids(weight, bits, weight.shape[1])
        aim = weight.double() / scales.double() + zeros.double()
        codes = round_columns(aim, hessian, highest, options, log)
        return grouped.GroupedInt.pack(codes, scales, zeros, bits, weight.shape[1])

    weight, hessian, column_scales = rescale(weight.double(), layer.required_statistics.hessian.double())
    seed = layer.required_statistics.seed
    weight, hessian = rotate(weight, hessian, options.rotation, seed)
    reach = GRID_REACH * weight.square().mean().sqrt()
    scale = (2 * reach / highest).clamp(min=grouped.SMALLEST_SCALE).half().reshape(1)
    aim = weight / scale.double() + highest / 2
    codes = round_columns(aim, hessian, highest, options, log)
    return rotated.RotatedInt.pack(codes, scale, column_scales, bits, seed, options.rotation)


def rescale(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W diag(d), diag(d)^-1 H diag(d)^-1 and 1 / d as it is stored, in float16.

    d is scaled to a geometric mean of 1, which changes nothing else and keeps float16 precise. It is the stored value
    that W and H are scaled by.
    """
    hessian = hessian / hessian.abs().max().clamp(min=SMALLEST)
    inputs = hessian.diagonal().clamp(min=SMALLEST)
    d = (inputs / weight.square().sum(0).clamp(min=SMALLEST)) ** 0.25
    d = d / d.log().mean().exp()
    stored = (1 / d).clamp(*HALF).half()
    back = stored.double()
    return weight / back, hessian * back * back[:, None], stored


def rotate(
    weight: torch.Tensor, hessian: torch.Tensor, kind: rotated.Kind, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """U W V^T and V H V^T, the latter with its trace normalised to n and 0.01 I added."""
    rows, columns = weight.shape
    how = kind, torch.float64, str(weight.device)
    inputs = rotated.rotation(columns, seed, "inputs", *how)
    outputs = rotated.rotation(rows, seed, "outputs", *how)
    hessian = hessian * (columns / (hessian.trace() + SMALLEST))
    hessian.diagonal().add_(RIDGE)
    return outputs(inputs(weight).T).T, inputs(inputs(hessian).T).T


def round_columns(
    aim: torch.Tensor, hessian: torch.Tensor, highest: int, options: QuipOptions, log: Callable[[str], None]
) -> torch.Tensor:
    """Codes 0 to `highest`, uint8 [m, n], for `aim` [m, n], real numbers on the same scale."""
    aim = aim.clamp(0, highest)
    # The column loop goes from the first to the last, QuIP's order is the reverse.
    order = torch.arange(aim.shape[1], device=aim.device).flip(0)
    if options.rounding == "ldlq_rg":
        order = torch.argsort(hessian.diagonal(), stable=True).flip(0)
    aim, hessian = aim[:, order], hessian[order][:, order]
    codes = torch.floor(aim + 0.5) if options.rounding == "nearest" else ldlq(aim, hessian, highest, log)
    if options.passes:
        damped = hessian + torch.diag(gptq.DAMPING * hessian.diagonal().mean().expand(len(hessian)))
        codes = greedy_passes(codes, aim, damped, highest, options.passes)
    return codes[:, torch.argsort(order)].to(torch.uint8)


def ldlq(aim: torch.Tensor, hessian: torch.Tensor, highest: int, log: Callable[[str], None]) -> torch.Tensor:
    """Codes [m, n] in the type of `aim`, columns fixed from the first to the last, each error fed to the later ones."""
    factor = gptq.inverse_factor(hessian, log)
    codes = torch.empty_like(aim)

    def fix(column: int, values: torch.Tensor) -> torch.Tensor:
        codes[:, column] = torch.floor(values + 0.5).clamp_(0, highest)
        return codes[:, column]

    gptq.compensate(aim.clone(), factor, fix)
    return codes


def greedy_passes(
    codes: torch.Tensor, aim: torch.Tensor, hessian: torch.Tensor, highest: int, passes: int
) -> torch.Tensor:
    """`codes` [m, n] after each column in turn went to its best integers, the others being what they are.

    Clipped to the grid after each pass; ends early when a pass changes nothing.
    """
    diagonal = hessian.diagonal()
    for _ in range(passes):
        before, codes = codes, codes.clone()
        errors = codes - aim
        for start in range(0, codes.shape[1], gptq.LAZY_BLOCK):
            block = slice(start, start + gptq.LAZY_BLOCK)
            # The gradient of the block's columns, kept up to date as they change.
            pull, local = errors @ hessian[:, block], hessian[block, block]
            for i in range(pull.shape[1]):
                column = start + i
                best = torch.floor(codes[:, column] - pull[:, i] / diagonal[column] + 0.5)
                change = best - codes[:, column]
                codes[:, column], errors[:, column] = best, errors[:, column] + change
                pull += torch.outer(change, local[i])
        codes.clamp_(0, highest)
        if torch.equal(codes, before):
            break
    return codes


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: QuipOptions) -> float:
    """Bits per weight: codes, a scale, and 16 bits per column; without incoherence, a grid per row."""
    bits = int(setting.w_bits)
    if not options.incoherence:
        return grouped_bits(out_features, in_features, bits, None)
    total = packed_bits(out_features, in_features, bits) + 16 + 16 * in_features
    return total / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="quip",
        title="QuIP",
        idea="Rotate inputs and outputs of a layer at random, so that no single weight or input stands out, and round "
        "with feedback. Made for 2 bits without groups; the rotations cost two small products per linear.",
        formula=r"\min_Q \operatorname{tr}\big((Q-W')\,H'\,(Q-W')^\top\big),\quad W' = U\,W D\,V^\top,\quad "
        r"q_i = \lfloor w_i + (W'-Q)_{:,i+1:}\,M_{i+1:,i}\rceil,\quad H' = M \Lambda M^\top",
        stored="b-bit codes; per linear a 16-bit scale, and 16 bits for each input; the rotations follow from a seed",
        bits=(2, 3, 4, 5, 6, 7, 8),
        grouped=False,
        calibrated=True,
        reference="Chee et al., QuIP: 2-bit quantization of large language models with guarantees",
        url="https://arxiv.org/abs/2307.13304",
    ),
    Options=QuipOptions,
    quantize=quantize,
    stored_bits=stored_bits,
)
