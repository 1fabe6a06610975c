"""PB-LLM: the few salient weights keep 8 bits, all others become their sign.

In each group of columns (over all rows) the weights with the largest saliency are salient, r of all. The others, B, are
binary; per row and group, with the mean taken over B:

    mean = mean w     spread = mean |w - mean|     w_hat = mean + spread * sign(w - mean)

Salient weights go to an 8-bit grid of their row. All of this is fixed for the original weights; then columns are fixed
one after the other and later ones make up for the error, as in GPTQ. The width counts 1 bit for B and 8 for the rest,
1 + 7 r: 1.7 bits are 10% salient weights, 2 bits one seventh. Which weights are salient (1 bit each), means and spreads
are not in it; stored are about 1.3 bits more.

Shang et al., PB-LLM: partially binarized large language models, arXiv 2310.00034, its variant without training.
Where paper and reference code (hahnyuan/PB-LLM, gptq_pb) differ, the code is the default and the paper an option:

- saliency is w^2 / U_jj^2 with inv(H + damping) = U^T U (code), or w^2 / [inv(H + damping)]_jj^2 (paper); or |w|,
  the default of the code's command line, while its script for LLaMA and the paper's results use H: `saliency`;
- means are taken over all columns of the group, salient weights counting as zeros, which makes mean and spread too
  small by about r (code), or over B alone, as the formula says (paper): `means`.

The code marks every weight as binary whose saliency is at most that at place floor((1 - r) count), so one more than
that share, and ties; so does this. Ties of the sign get +1. Inputs that were always zero get weight zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.gptq import clear_dead_columns, compensate, shared_factor
from quant_engine.spec import QuantSetting
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    from quant_engine.weights.binary import PartlyBinary

torch = deferred("torch")
binary = deferred("quant_engine.weights.binary")
grouped = deferred("quant_engine.weights.grouped")

SALIENT_BITS = 8


class PbLlmOptions(Options):
    saliency: Literal["hessian", "paper", "magnitude"] = Field(
        "hessian", description="Weighted by U (reference code), by the inverse Hessian (paper), or the size alone."
    )
    means: Literal["group", "binary"] = Field(
        "group", description="Means over the group, salient weights as zeros (reference code), or without them (paper)."
    )
    compensation: bool = Field(True, description="Later columns make up for the error of earlier ones.")


def quantize(layer: Layer) -> PartlyBinary:
    """The weight with a share of salient weights that follows from the width."""
    return partly_binarize(layer, salient_share(layer.setting.w_bits))


def salient_share(w_bits: float) -> float:
    """The share of salient weights that a width counts: one bit for every weight, and for these the rest of eight."""
    return (w_bits - 1) / (SALIENT_BITS - 1)


def salient_count(count: int, share: float) -> int:
    """How many of `count` weights are salient, all being of different saliency."""
    binary_count = int(count * (1 - share))
    return count - min(binary_count + 1, count) if binary_count else count


def partly_binarize(layer: Layer, share: float) -> PartlyBinary:
    """The weight with a `share` of salient weights, 0 to 1, in groups of columns."""
    weight, options = layer.weight, layer.options
    columns = weight.shape[1]
    group = min(layer.setting.group_size or columns, columns)
    live = layer.required_statistics.hessian.diagonal() != 0
    hessian = clear_dead_columns(weight, layer.required_statistics.hessian)
    factor = shared_factor(layer, hessian)
    salient = salient_marks(weight, factor, share, group, options.saliency)
    terms = binary_terms(weight, salient, group, options.means)
    grid_scales, grid_zeros = (values[:, 0] for values in grouped.grids(weight, SALIENT_BITS, columns))
    if not options.compensation:
        factor = torch.eye(columns).to(factor)
    signs, codes = fix_columns(weight, factor, live, salient, terms, (grid_scales, grid_zeros), group)
    return binary.PartlyBinary.pack(
        signs, terms, live, group, marks=salient, codes=codes, grid_scales=grid_scales, grid_zeros=grid_zeros
    )


def salient_marks(weight: torch.Tensor, factor: torch.Tensor, share: float, group: int, saliency: str) -> torch.Tensor:
    """Which entries of `weight` [m, n] are salient, bool [m, n]: a `share` of each group of columns."""
    saliencies = weight.square() / _importance(factor, saliency)
    return torch.cat([most_salient(part, share) for part in saliencies.split(group, 1)], 1)


def binary_terms(weight: torch.Tensor, salient: torch.Tensor, group: int, means: str) -> torch.Tensor:
    """Mean and spread of the binary weights of each row and group: [m, groups, 2]."""
    parts = zip(weight.split(group, 1), salient.split(group, 1), strict=True)
    return torch.stack([torch.stack(_fit(part, ~marked, means), 1) for part, marked in parts], 1)


def fix_columns(
    weight: torch.Tensor,
    factor: torch.Tensor,
    live: torch.Tensor,
    salient: torch.Tensor,
    terms: torch.Tensor,
    grids: tuple[torch.Tensor, torch.Tensor],
    group: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPTQ's column loop on `weight` [m, n], which is used up.

    Args:
        factor: U [n, n].
        live: which inputs calibration saw, bool [n].
        salient: which weights go to the grid of their row, bool [m, n]; the others are binary.
        terms: mean and spread of the binary ones [m, groups, 2].
        grids: scale and zero point of each row [m].
        group: columns of a group.

    Returns:
        Signs, bool [m, n], and codes, uint8 [m, n], each to be read where it holds.
    """
    scale, zero = (values.to(weight.dtype) for values in grids)
    signs = torch.empty_like(salient)
    codes = torch.empty_like(salient, dtype=torch.uint8)
    alive = live.tolist()

    def fix(column: int, values: torch.Tensor) -> torch.Tensor:
        code = torch.round(values / scale).add_(zero).clamp_(0, 2**SALIENT_BITS - 1)
        sign, low = binary.signed(values, *terms[:, column // group].unbind(-1))
        signs[:, column], codes[:, column] = sign, code
        return torch.where(salient[:, column], scale * (code - zero), low * alive[column])

    compensate(weight, factor, fix)
    return signs, codes


def _importance(factor: torch.Tensor, saliency: str) -> torch.Tensor:
    """What squared weights are divided by, a number for each column [n]."""
    if saliency == "hessian":
        return factor.diagonal().square()
    if saliency == "paper":
        return factor.square().sum(0).square()
    return torch.ones_like(factor.diagonal())


def most_salient(saliency: torch.Tensor, share: float) -> torch.Tensor:
    """The marks of the salient entries of `saliency` [m, c]: those above the place that the binary share ends at."""
    binary_count = saliency.numel() - salient_count(saliency.numel(), share)
    if binary_count == 0:
        return torch.ones_like(saliency, dtype=torch.bool)
    return saliency > saliency.flatten().kthvalue(binary_count).values


def _fit(values: torch.Tensor, mask: torch.Tensor, means: str) -> tuple[torch.Tensor, torch.Tensor]:
    if means == "binary":
        return binary.fit(values, mask)
    return binary.fit(values * mask, torch.ones_like(mask))


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: PbLlmOptions) -> float:
    """Bits per weight, if no two weights at the edge of the share are equally salient."""
    group = min(setting.group_size or in_features, in_features)
    whole, rest = divmod(in_features, group)
    share = salient_share(setting.w_bits)
    salient = whole * salient_count(out_features * group, share) + salient_count(out_features * rest, share)
    groups = out_features * -(-in_features // group)
    # A sign and a mark for every weight, of the salient ones seven bits more; a bit a column.
    planes = packed_bits(2 * out_features + 1, in_features, 1) + packed_bits(1, salient, SALIENT_BITS - 1)
    # A mean and a spread for every group; for every row a scale, a zero point and where its salient weights start.
    total = planes + 2 * 16 * groups + (16 + SALIENT_BITS + 32) * out_features
    return total / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="pb_llm",
        title="PB-LLM",
        idea="Keep the few weights that matter most in 8 bits, and of all others only the sign. "
        "Which weights those are has to be stored as well, so it is larger than its width says.",
        formula=r"\hat w = \begin{cases} \Delta\,(q - z),\ q \in \{0..255\} & \text{salient, by } "
        r"w^2 / U_{jj}^2 \\ \mu + \alpha\,\mathrm{sign}(w - \mu) & \text{else} \end{cases}",
        stored="a sign per weight, or 8 bits if salient; a mark per weight; per row and group a mean and a spread of "
        "16 bits; per row a 16-bit scale, an 8-bit zero point and a 32-bit place; a bit per column",
        bits=(1.35, 1.7, 2, 2.4, 4.5),
        grouped=True,
        calibrated=True,
        reference="Shang et al., PB-LLM: partially binarized large language models",
        url="https://arxiv.org/abs/2310.00034",
        headline="1 + 7 r for a share r of salient weights: 1.7 is 10%, 2 is a seventh; marks and scales come on top, "
        "about 1.3 bits",
    ),
    Options=PbLlmOptions,
    quantize=quantize,
    stored_bits=stored_bits,
)
