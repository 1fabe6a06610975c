"""SliM-LLM: groups of columns differ in width, b - 1, b or b + 1 bits, b on average; each grid is fitted to its group.

Bit allocation. A group's salience is the sum of w_ij^2 / U_jj^2 over all rows and its columns, with inv(H + damping) =
U^T U. For p = 1 .. G/2 - 1, the p least salient of G groups get b - 1 bits and the p most salient b + 1, and all are
rounded to the nearest. The p is chosen whose output differs least, over calibration inputs X:

    KL( softmax(X W_p^T) || softmax(X W^T) )        mean over inputs, softmax over output features, at least 1e-6

Calibrated grids. Per row of a group, the scale is tau (hi - lo) / (2^b - 1), with the tau from 0.9 to 1.1 that has the
least sum of |w - w_hat|^2.4. Groups of one bit are mean + spread * sign(w - mean). Columns are then fixed as in GPTQ,
each group's grid being fitted when its first column is reached.

Huang et al., SliM-LLM: salience-driven mixed-precision quantization for large language models, arXiv 2405.14917.
Where paper and reference code (Aaronhuang-778/SliM-LLM) differ, the code is the default and the paper an option:

- KL(quantized || original) (code), or KL(original || quantized) (paper): `divergence`.

The spread of one-bit groups is mean |w|, as in the code, though mean |w - mean| has less error.

Salient weights (saliency more than two standard deviations off; the paper says three) weigh `salient_weight` times in
the search for tau; at 1, as in all scripts of the code, they make no difference. For bit allocation H is damped by
0.01, for quantizing by a share of its mean, as in the code, but not by both. Grids always have a zero point (the code
leaves it out in a first run of (b - 1)-bit groups). A last, shorter group keeps b bits, and so does every group where
there are fewer than four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.gptq import LAZY_BLOCK, clear_dead_columns, compensate, inverse_factor, shared_factor
from quant_engine.methods.rtn import grouped_bits
from quant_engine.spec import QuantSetting

if TYPE_CHECKING:
    from quant_engine.weights.mixed_width import MixedWidth

torch = deferred("torch")
binary = deferred("quant_engine.weights.binary")
grouped = deferred("quant_engine.weights.grouped")
mixed_width = deferred("quant_engine.weights.mixed_width")

RANKING_DAMPING = 0.01
"""Added to H's diagonal for bit allocation, as it is."""
LEAST_PROBABILITY = 1e-6
TAU_RANGE = 0.1
"""How far a grid may be stretched or shrunk."""
TAU_STEPS = 50
"""Values of tau tried above 1, and as many below."""
ERROR_NORM = 2.4
SALIENT_DEVIATION = 2.0
INPUT_TOKENS = 16384
"""Calibration inputs over which the divergence is taken: all of 32 x 512; evenly spaced ones of more."""
TOKENS_AT_ONCE = 1024


class SlimLlmOptions(Options):
    divergence: Literal["reference", "paper"] = Field(
        "reference", description="KL of quantized from original outputs (reference code), or the other way (paper)."
    )
    allow_uniform: bool = Field(False, description="Also consider the same width for all groups.")
    salient_weight: float = Field(1, gt=0, description="What errors of salient weights count when a grid is fitted.")


def quantize(layer: Layer) -> MixedWidth:
    """The weight in groups of different widths; `w_bits` is their mean."""
    weight, bits, options, statistics = layer.weight, layer.bits, layer.options, layer.required_statistics
    columns = weight.shape[1]
    group = min(layer.setting.group_size or columns, columns)
    live = statistics.hessian.diagonal() != 0
    hessian = clear_dead_columns(weight, statistics.hessian)
    pairs = mixed_pairs(weight, hessian, statistics.inputs, bits, group, options, layer.log)
    factor = shared_factor(layer, hessian)
    widths = allocate(salience(weight, factor, group), bits, pairs, full_groups=columns // group)
    return fix_groups(weight, factor, live, widths, bits, group, options)


def salience(weight: torch.Tensor, factor: torch.Tensor, group: int) -> torch.Tensor:
    """The sum of w_ij^2 / U_jj^2 over each group of columns: [groups]."""
    by_column = weight.square().sum(0) / factor.diagonal().square()
    return torch.stack([part.sum() for part in by_column.split(group)])


def allocate(saliences: torch.Tensor, bits: int, pairs: int, full_groups: int) -> list[int]:
    """The width of each group: of the first `full_groups`, so many `pairs` of least and most salient leave `bits`."""
    ranked = torch.argsort(saliences[:full_groups], stable=True).tolist()
    widths = [bits] * len(saliences)
    for least, most in zip(ranked[:pairs], reversed(ranked[full_groups - pairs :]), strict=True):
        widths[least], widths[most] = bits - 1, bits + 1
    return widths


def mixed_pairs(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    inputs: torch.Tensor,
    bits: int,
    group: int,
    options: SlimLlmOptions,
    log: Callable[[str], None],
) -> int:
    """The number p of groups with one bit less, and with one more, whose outputs differ least from the original's.

    `inputs` [tokens, n] are those that outputs are compared for; `bits` is the mean width, `group` a group's columns.
    """
    full_groups = weight.shape[1] // group
    candidates = list(range(0 if options.allow_uniform else 1, full_groups // 2))
    if not candidates:
        log(f"{full_groups} whole groups are too few to mix widths; all have {bits} bits")
        return 0
    factor = inverse_factor(hessian, log, RANKING_DAMPING / hessian.diagonal().mean().item())
    ranked = torch.argsort(salience(weight, factor, group)[:full_groups], stable=True).tolist()
    scores = divergences(weight, inputs, bits, group, ranked, options)[candidates[0] :]
    pairs = candidates[scores.index(min(scores))]
    log(f"{pairs} of {full_groups} groups at {bits - 1} bits, as many at {bits + 1}: divergence {min(scores):.4g}")
    return pairs


def divergences(
    weight: torch.Tensor, inputs: torch.Tensor, bits: int, group: int, ranked: list[int], options: SlimLlmOptions
) -> list[float]:
    """The mean divergence of outputs for `inputs` [tokens, n] with 0, 1 … len(ranked) / 2 - 1 pairs of mixed groups.

    `ranked` are the whole groups from the least salient to the most.
    """
    uniform = grouped.rounded(weight, bits, group)
    lower = _lowest(weight, group) if bits == 2 else grouped.rounded(weight, bits - 1, group)
    higher = grouped.rounded(weight, bits + 1, group)
    totals = torch.zeros(len(ranked) // 2, dtype=torch.float64, device=weight.device)
    for x in inputs.to(weight.dtype).split(TOKENS_AT_ONCE):
        original = _log_probabilities(x @ weight.T)
        outputs = x @ uniform.T
        for pairs in range(len(totals)):
            if pairs:
                # One more pair changes two groups of columns, and the outputs by their share.
                for index, other in ((ranked[pairs - 1], lower), (ranked[-pairs], higher)):
                    columns = slice(index * group, index * group + group)
                    outputs += x[:, columns] @ (other - uniform)[:, columns].T
            quantized = _log_probabilities(outputs)
            of, against = (quantized, original) if options.divergence == "reference" else (original, quantized)
            totals[pairs] += (of.exp() * (of - against)).sum()
    return (totals / len(inputs)).tolist()


def _log_probabilities(outputs: torch.Tensor) -> torch.Tensor:
    return torch.softmax(outputs, -1).clamp_(min=LEAST_PROBABILITY).log_()


def _lowest(weight: torch.Tensor, group: int) -> torch.Tensor:
    """`weight` [m, n] with all groups at one bit."""
    parts = []
    for part in weight.split(group, 1):
        mean, spread = one_bit(part)
        parts.append(binary.signed(part, mean[:, None], spread[:, None])[1])
    return torch.cat(parts, 1)


def one_bit(slab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread [m] of the rows of a group `slab` [m, g]."""
    everything = torch.ones_like(slab, dtype=torch.bool)
    mean, _ = binary.fit(slab, everything)
    return mean, slab.abs().mean(1).to(torch.float16).to(slab.dtype)


def calibrated_grid(
    slab: torch.Tensor, diagonal: torch.Tensor, bits: int, options: SlimLlmOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float16) and zero (uint8) [m] for the rows of a group `slab` [m, g]; `diagonal` [g] is that of U.

    Of equally good stretches of the grid, 1 comes first, then those above it.
    """
    # A grid depends on the two ends of the range alone.
    ends = torch.stack([slab.amin(1), slab.amax(1)], 1)
    scales, zeros = (values[:, 0] for values in grouped.grids(ends, bits, 2))
    steps = [step * TAU_RANGE / TAU_STEPS for step in range(1, TAU_STEPS + 1)]
    importance = _importance(slab, diagonal, options.salient_weight)
    least = torch.full_like(ends[:, 0], torch.inf)
    for tau in (1.0, *(1 + step for step in steps), *(1 - step for step in steps)):
        tried = grouped.grids(ends * tau, bits, 2)
        scale, zero = (values.to(slab.dtype) for values in tried)
        codes = torch.round(slab / scale).add_(zero).clamp_(0, 2**bits - 1)
        error = codes.sub_(zero).mul_(scale).sub_(slab).abs_().pow_(ERROR_NORM)
        error = (error if importance is None else error * importance).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, tried[0][:, 0], scales)
        zeros = torch.where(better, tried[1][:, 0], zeros)
    return scales, zeros


def _importance(slab: torch.Tensor, diagonal: torch.Tensor, salient_weight: float) -> torch.Tensor | None:
    """What the error of each weight counts [m, g]; None if all count the same."""
    saliency = slab.square() / diagonal.square()
    outliers = (saliency - saliency.mean()).abs() > SALIENT_DEVIATION * saliency.std()
    if salient_weight == 1 or not outliers.any():
        return None
    salient = saliency >= saliency[outliers].min()
    return torch.where(salient, salient_weight, 1.0)


def fix_groups(
    weight: torch.Tensor,
    factor: torch.Tensor,
    live: torch.Tensor,
    widths: list[int],
    bits: int,
    group: int,
    options: SlimLlmOptions,
) -> MixedWidth:
    """GPTQ's column loop on `weight` [m, n], which is used up.

    Args:
        factor: U [n, n].
        live: which inputs calibration saw, bool [n].
        widths: bits of each group of columns.
        bits: their mean.
        group: columns of a group.
    """
    rows, columns = weight.shape
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=weight.device)
    scales = torch.empty((rows, len(widths)), dtype=torch.float16, device=weight.device)
    zeros = torch.zeros((rows, len(widths)), dtype=torch.uint8, device=weight.device)
    means = torch.zeros((rows, len(widths)), dtype=torch.float16, device=weight.device)
    alive = live.tolist()

    def fix(column: int, values: torch.Tensor) -> torch.Tensor:
        index = column // group
        if column % group == 0:
            slab = weight[:, column : column + group]
            if widths[index] == 1:
                means[:, index], scales[:, index] = one_bit(slab)
            else:
                diagonal = factor.diagonal()[column : column + group]
                scales[:, index], zeros[:, index] = calibrated_grid(slab, diagonal, widths[index], options)
        scale = scales[:, index].to(weight.dtype)
        if widths[index] == 1:
            sign, value = binary.signed(values, means[:, index].to(weight.dtype), scale)
            codes[:, column] = sign
            return value * alive[column]
        zero = zeros[:, index].to(weight.dtype)
        code = torch.round(values / scale).add_(zero).clamp_(0, 2 ** widths[index] - 1)
        codes[:, column] = code
        return scale * (code - zero)

    # A grid is fitted to weights that earlier groups have been made up for.
    compensate(weight, factor, fix, lazy_block=group if group < columns else LAZY_BLOCK)
    return mixed_width.MixedWidth.pack(widths, codes, scales, zeros, means, live, bits, group)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: SlimLlmOptions) -> float:
    """Bits per weight with all groups at the mean width, which is what a mix of widths takes too.

    Only a one-bit group takes more: a mean and a spread of 16 bits a row, and a bit a column.
    """
    group = min(setting.group_size or in_features, in_features)
    labels = 8 * -(-in_features // group) / (out_features * in_features)
    return grouped_bits(out_features, in_features, int(setting.w_bits), group) + labels


METHOD = Method(
    card=MethodCard(
        name="slim_llm",
        title="SliM-LLM",
        idea="Give the groups of columns that matter most one bit more, and take it from those that matter least. "
        "Each group's grid is fitted, and columns correct each other as in GPTQ. Made for 2 and 3 bits.",
        formula=r"\min_p \mathrm{KL}\big(\mathrm{softmax}(X \hat W_p^\top)\,\|\,\mathrm{softmax}(X W^\top)\big),\quad "
        r"\hat W_p:\ p \text{ groups at } b-1,\ p \text{ at } b+1 \text{ bits}",
        stored="codes of b bits on average; per row and group a 16-bit scale and a zero point of the group's width, or "
        "a mean and a spread of 16 bits where the width is 1; per group 8 bits for its width",
        bits=(2, 3, 4, 5, 6, 7),
        grouped=True,
        calibrated=True,
        reference="Huang et al., SliM-LLM: salience-driven mixed-precision quantization for large language models",
        url="https://arxiv.org/abs/2405.14917",
    ),
    Options=SlimLlmOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    input_tokens=INPUT_TOKENS,
)
