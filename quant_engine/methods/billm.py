"""BiLLM: about one bit per weight. Salient columns get two signs, all others one, on one of two levels.

Columns go in blocks. In a block, with S_ij = w_ij^2 / U_jj^2 (U as in GPTQ, inv(H + damping) = U^T U), three masks are
searched: K3, the k salient columns (largest sum of S); K1 and K2, the other weights with |S| below and from a break
point v on. Per row and mask, with R_0 = W and R_o the rest after o terms:

    mean_o = mean of R_(o-1)    spread_o = mean |R_(o-1) - mean_o|    term_o = mean_o + spread_o sign(R_(o-1) - mean_o)

K1 and K2 take one term, K3 takes two. Then later blocks make up for the error, as in GPTQ but block by block.

Huang et al., BiLLM: pushing the limit of post-training quantization for LLMs, arXiv 2402.04291, sections 3.1 to 3.3.
Where paper and reference code (Aaronhuang-778/BiLLM) differ, the code is the default and the paper an option:

- the masks with the least squared error on S (code) or on W (paper): `search_on`;
- while k is searched, the rest takes two terms (code) or one, as it does later (paper): `search_rest_terms`;
- the error that goes to later blocks is (W - Q)_ij / U_jj (code); (W - Q) inv(U_block), which minimises the error of
  the layer's output, is `compensation=exact`.

The paper's formula has no means; its code has, and so has this. Ties get the sign +1. Inputs that were always zero get
weight zero. The paper counts 1 + r bits, r being the share of salient columns: signs alone. Marks, means and spreads
bring what is stored to about 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.gptq import clear_dead_columns, shared_factor
from quant_engine.spec import QuantSetting
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    from quant_engine.weights.binary import ResidualBinary

torch = deferred("torch")
binary = deferred("quant_engine.weights.binary")

MOST_SALIENT = 49
"""The most salient columns of a block."""
BREAK_POINTS = 81
"""Quantiles of |S| that are tried as break point: 0.10, 0.11 … 0.90."""


class BillmOptions(Options):
    metric: Literal["hessian", "magnitude"] = Field(
        "hessian", description="Salient is what is large after weighting by the inputs, or what is large."
    )
    search_on: Literal["saliency", "weight"] = Field(
        "saliency", description="Choose masks by the error on the saliency (reference code) or on the weights (paper)."
    )
    search_rest_terms: Literal[1, 2] = Field(
        2, description="Terms of the other columns while salient ones are searched: 2 (reference code) or 1 (paper)."
    )
    compensation: Literal["reference", "exact", "none"] = Field(
        "reference", description="How later blocks make up for the error of a block."
    )


def quantize(layer: Layer) -> ResidualBinary:
    """The weight binarized block by block; a block has `group_size` columns (None: all)."""
    weight, options = layer.weight, layer.options
    rows, columns = weight.shape
    size = min(layer.setting.group_size or columns, columns)
    live = layer.required_statistics.hessian.diagonal() != 0
    hessian = clear_dead_columns(weight, layer.required_statistics.hessian)
    factor = shared_factor(layer, hessian)
    signs = torch.empty((rows, columns), dtype=torch.bool, device=weight.device)
    marks = torch.empty_like(signs)
    salient = torch.empty_like(live)
    scales = []
    for start in range(0, columns, size):
        end = min(start + size, columns)
        block, local = weight[:, start:end], factor[start:end, start:end]
        salient[start:end], sparse = masks(block, local.diagonal(), options)
        quantized, signs[:, start:end], marks[:, start:end], terms = binarize(block, salient[start:end], sparse)
        scales.append(terms)
        if options.compensation != "none":
            error = block - quantized * live[start:end]
            if options.compensation == "exact":
                error = torch.linalg.solve_triangular(local, error, upper=True, left=False)
            else:
                error = error / local.diagonal()
            weight[:, end:] -= error @ factor[start:end, end:]
    counts = torch.stack([part.sum() for part in salient.split(size)]).tolist()
    layer.log(f"salient columns per block: {min(counts)} to {max(counts)}, {sum(counts) / columns:.1%} of all")
    return binary.ResidualBinary.pack(signs, torch.stack(scales, 1), live, size, marks=marks, salient=salient)


def masks(block: torch.Tensor, diagonal: torch.Tensor, options: BillmOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Salient columns K3 [c] and, outside of them, sparse weights K2 [m, c] of a `block` [m, c]; the rest is K1.

    `diagonal` [c] is that of U.
    """
    saliency = block.square() / diagonal.square() if options.metric == "hessian" else block
    slab = saliency if options.search_on == "saliency" else block
    order = torch.argsort(saliency.abs().sum(0), descending=True, stable=True)
    count = salient_count(slab[:, order], min(MOST_SALIENT, len(order) - 1), options.search_rest_terms)
    salient = torch.zeros(len(order), dtype=torch.bool, device=block.device)
    salient[order[:count]] = True
    return salient, (slab.abs() >= break_point(slab, salient)) & ~salient


def salient_count(slab: torch.Tensor, most: int, rest_terms: int) -> int:
    """How many of the first columns of `slab` [m, c] to call salient, from 1 to `most`: the first with least error."""
    if most < 1:
        return 0
    errors = [
        _remainder(slab[:, :count], 2).square().sum() + _remainder(slab[:, count:], rest_terms).square().sum()
        for count in range(1, most + 1)
    ]
    return 1 + _first_least(errors)


def break_point(slab: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
    """The |value| that best parts the columns of `slab` [m, c] outside of `salient` [c] into two binary levels.

    The candidates are quantiles of the whole slab's |values|, where salient columns count as zeros.
    """
    sizes = torch.sort((slab * ~salient).abs().flatten()).values
    # Not torch.quantile, which refuses large tensors.
    positions = torch.linspace(0.1, 0.9, BREAK_POINTS, dtype=torch.float64) * (len(sizes) - 1)
    below = positions.long().to(sizes.device)
    share = (positions - positions.floor()).to(sizes)
    candidates = torch.lerp(sizes[below], sizes[(below + 1).clamp(max=len(sizes) - 1)], share)
    rest = slab[:, ~salient]
    distance = rest.abs()
    return candidates[_first_least([_two_level_error(rest, distance < value) for value in candidates])]


def _two_level_error(values: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Squared error of `values` [m, c] with a binary term for those that are `near` and another for the others."""
    counts = near.sum(1, keepdim=True), (~near).sum(1, keepdim=True)

    def means(of: torch.Tensor) -> torch.Tensor:
        inside = (of * near).sum(1, keepdim=True)
        outside = of.sum(1, keepdim=True) - inside
        return torch.where(near, inside / counts[0].clamp(min=1), outside / counts[1].clamp(min=1))

    distance = (values - means(values)).abs_()
    return (distance - means(distance)).square_().sum()


def _remainder(values: torch.Tensor, terms: int) -> torch.Tensor:
    """What is left of `values` [m, c] after so many binary terms."""
    for _ in range(terms):
        values = values - values.mean(1, keepdim=True)
        spread = values.abs().mean(1, keepdim=True)
        values = torch.where(values >= 0, values - spread, values + spread)
    return values


def _first_least(errors: list[torch.Tensor]) -> int:
    """The index of the first minimum. Read from the device once, for all."""
    values = torch.stack(errors).tolist()
    return values.index(min(values))


def binarize(
    block: torch.Tensor, salient: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A `block` [m, c] on the masks K3 `salient` [c] and K2 `sparse` [m, c].

    Returns the quantized block, signs and marks (bool [m, c]) and the scales [m, 8], as binary.ResidualBinary has them.
    """
    scales = []

    def term(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, spread = binary.fit(values, mask)
        scales.extend((mean, spread))
        return binary.signed(values, mean[:, None], spread[:, None])

    in_salient = salient.expand_as(sparse)
    signs, concentrated = term(block, ~sparse & ~in_salient)
    sparse_signs, sparse_values = term(block, sparse)
    first_signs, first = term(block, in_salient)
    second_signs, second = term(block - first, in_salient)
    quantized = torch.where(in_salient, first + second, torch.where(sparse, sparse_values, concentrated))
    signs = torch.where(in_salient, first_signs, torch.where(sparse, sparse_signs, signs))
    marks = torch.where(in_salient, second_signs, sparse)
    return quantized, signs, marks, torch.stack(scales, 1)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: BillmOptions) -> float:
    """Bits per weight, which do not depend on how many columns are salient."""
    groups = out_features * -(-in_features // (setting.group_size or in_features))
    # A sign, and a second one or a mark, for every weight; two bits a column; four means and four spreads a group.
    total = packed_bits(2 * out_features + 2, in_features, 1) + 8 * 16 * groups
    return total / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="billm",
        title="BiLLM",
        idea="Keep little more than the sign of each weight. The columns that matter most get a second sign for what "
        "the first left over; the others are split by size into two levels. "
        "The lowest width of the study, in name; means, spreads and marks take more than the signs.",
        formula=r"\hat W = \underbrace{\mu_1 + \alpha_1 B_1}_{\text{concentrated}} + "
        r"\underbrace{\mu_2 + \alpha_2 B_2}_{\text{sparse}} + "
        r"\underbrace{\mu_3 + \alpha_3 B_3 + \mu_4 + \alpha_4 B_4}_{\text{salient columns}},\quad B_i \in \{\pm 1\}",
        stored="a sign per weight, a second one in salient columns, a mark per weight elsewhere; per row and group "
        "four means and four spreads of 16 bits; two bits per column",
        bits=(1.1,),
        grouped=True,
        calibrated=True,
        reference="Huang et al., BiLLM: pushing the limit of post-training quantization for LLMs",
        url="https://arxiv.org/abs/2402.04291",
        headline="1.1 counts signs only (1 + the share of salient columns, which the search finds layer by layer); "
        "stored are about 3",
    ),
    Options=BillmOptions,
    quantize=quantize,
    stored_bits=stored_bits,
)
