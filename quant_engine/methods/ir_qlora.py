r"""IR-QLoRA: QLoRA whose frozen weights keep more information, and whose adapters have two shortcuts.

Information calibration (ICQ). Each block w of 64 weights is shifted before it is rounded, so that its codes have the
greatest entropy:

    tau0 = median of w (the lower one)       u = max |w - tau0|
    tau = tau0 + f u,  f in 2 n + 1 steps from -lambda s to lambda s,  s = 1 / Phi^-1(0.9677083)
    codes(tau) = NF((w - tau) / max |w - tau|)        E(tau) = - sum_i p_i log2 p_i,  p_i the share of code i
    w_hat = level[code] * scale + tau       for the first tau with the greatest E

Codes are chosen with the exact tau and scale, which are then both doubly quantized.

Information elastic connection (IEC). Two shortcuts around the factors of an adapter, each with one trained scalar
that starts at 0:

    U1(x) = A x + b1 pool(x)      U2(x') = B x' + b2 repeat(x')      y = W_hat x + (alpha / r) U2(U1(x))

pool averages the features in r chunks; repeat gives each of the r values to out_features / r outputs. Both are linear,
so once trained they are merged into the factors: A' = A + b1 P, B' = B + b2 R.

Qin et al., Accurate LoRA-finetuning quantization of LLMs via information retention, arXiv 2402.05445, equations 6 to
14. Where the paper and its code differ, the code is the default here: it searches in units of the block's largest
deviation (paper: of its standard deviation, `search_unit="deviation"`), repeats each value in a row (paper: whole
copies one after the other, `tile=True`), and has 2 n + 1 candidates (paper: 2 n). The paper's general case, where r
does not divide the features, goes by their greatest common divisor; that is done here too. The code finds tau anew
whenever it loads a model; here it is stored. Neither guarantees a greater entropy than NormalFloat's, since no shift
need not be among the candidates: `try_zero` adds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods import normal_float, qlora
from quant_engine.methods.contract import Layer, Method, MethodCard
from quant_engine.methods.qlora import QloraOptions
from quant_engine.spec import QuantSetting

if TYPE_CHECKING:
    import torch as torch_types

    from quant_engine.weights.codebook import Codebook

torch = deferred("torch")
codebook = deferred("quant_engine.weights.codebook")
entropy = deferred("quant_engine.kernels.entropy")

SEARCH_RANGE = 0.1
"""How far from the median a shift is looked for (lambda), in the units of `search_unit`."""


class IrQloraOptions(QloraOptions):
    search_steps: int = Field(100, ge=1, le=10000, description="Candidates on either side of the median (n).")
    search_unit: Literal["absmax", "deviation"] = Field(
        "absmax", description="The range counts in the block's largest (reference code) or standard deviation (paper)."
    )
    try_zero: bool = Field(False, description="No shift at all is a candidate too.")
    tile: bool = Field(False, description="The second shortcut repeats whole copies (paper), not each value (code).")


def quantize(layer: Layer) -> Codebook:
    """The weight rounded to NormalFloat levels around the most informative shift."""
    bits, options, block = layer.bits, layer.options, layer.options.block_size
    flat = layer.weight.float().reshape(-1)
    full = len(flat) - len(flat) % block
    parts = [flat[:full].view(-1, block), flat[full:].view(1, -1)]
    shifts = torch.cat([informative_shifts(part, bits, options) for part in parts if part.numel()])
    codes, scales = codebook.round_to_levels(layer.weight, bits, block, shifts)
    return codebook.Codebook.pack(codes, scales, bits, block, double=options.double_quantization, shifts=shifts)


def informative_shifts(blocks: torch_types.Tensor, bits: int, options: IrQloraOptions) -> torch_types.Tensor:
    """The shift of each of `blocks` [count, size] (float32) that gives its codes the greatest entropy: [count]."""
    centers = blocks.median(1).values
    levels = codebook.levels(bits)
    reach = SEARCH_RANGE
    if options.search_unit == "absmax":
        units = (blocks - centers[:, None]).abs().amax(1)
        # From standard deviations to units of the outermost level: 1 is the 0.9677 quantile of N(0, 1).
        reach /= torch.special.ndtri(torch.tensor(codebook.OUTERMOST, dtype=torch.float64)).item()
    else:
        units = blocks.std(1, correction=0)
    steps = options.search_steps
    offsets = torch.linspace(-reach, reach, 2 * steps + 1, dtype=torch.float64)
    # The median itself is a candidate, exactly.
    offsets[steps] = 0
    return entropy.best_shifts(blocks, centers, units, offsets.float(), levels, options.try_zero)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: IrQloraOptions) -> float:
    """Bits per weight: as QLoRA, and a shift per block."""
    weights = out_features * in_features
    shifts = normal_float.block_bits(weights, options, mean=False) / weights
    return qlora.stored_bits(out_features, in_features, setting, options) + shifts


METHOD = Method(
    card=MethodCard(
        name="ir_qlora",
        title="IR-QLoRA",
        idea="Shift each block of weights so that its NormalFloat codes carry the most information, and give the "
        "adapters two shortcuts with one trained number each, which cost nothing once merged.",
        formula=r"\tau^* = \arg\max_\tau H\big(\mathrm{NF}_b(w-\tau)\big),\quad y = x\hat W^\top + "
        r"\tfrac{\alpha}{r}\,U_2(U_1(x)),\quad U_1(x) = xA^\top + \beta_1\,\mathrm{pool}(x),\quad "
        r"U_2(x') = x'B^\top + \beta_2\,\mathrm{repeat}(x')",
        stored="b-bit codes; per block of 64 an 8-bit scale and an 8-bit shift, each with a 32-bit step for every 256; "
        "per linear two 16-bit factors of the chosen rank, shortcuts merged",
        bits=(2, 3, 4),
        grouped=False,
        calibrated=False,
        reference="Qin et al., Accurate LoRA-finetuning quantization of LLMs via information retention",
        url="https://arxiv.org/abs/2402.05445",
    ),
    Options=IrQloraOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    fine_tunes=True,
)
