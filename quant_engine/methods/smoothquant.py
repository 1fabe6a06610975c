r"""SmoothQuant: integer weights and integer activations, after moving the activations' outliers into the weights.

For the linears W_i that share the output X of a norm, each input channel j is divided by s_j in the norm, and the
columns of the weights multiplied by it:

    s_j = max_t |X_tj|^alpha / max_{i,r} |W_i,rj|^(1 - alpha)          X diag(s)^-1 (W diag(s))^T = X W^T

Then weights are rounded row by row, and activations token by token as they come, both symmetric:

    delta = max |v| / (2^(b-1) - 1)          v_hat = delta * round(v / delta)

Xiao et al., SmoothQuant: accurate and efficient post-training quantization for large language models, arXiv 2211.10438;
reference code mit-han-lab/smoothquant, with its settings for LLaMA: alpha 0.85 (its examples for LLaMA-3; 0.5 is the
paper's), no smoothing before o_proj and down_proj, whose inputs come from no norm, but integers there too, and the
outputs of the query, key and value projections rounded as well. The reference has 8 bits only; other widths use the
same grids. A channel that calibration never excites keeps s_j = 1, where the reference would blow up its norm weight.
Maxima come from the unquantized model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.awq import fold
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.rtn import grouped_bits
from quant_engine.spec import QuantSetting

if TYPE_CHECKING:
    from quant_engine.methods.block import CalibratedBlock
    from quant_engine.weights.int_activations import IntActivations

torch = deferred("torch")
int_activations = deferred("quant_engine.weights.int_activations")

SMOOTHED = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
SMALLEST = 1e-5
ERROR_TOKENS = 512


class SmoothQuantOptions(Options):
    alpha: float = Field(
        0.85, ge=0, le=1, description="How much of the activations' outliers moves into the weights: 0 none, 1 all."
    )
    attention_inputs: bool = Field(
        True, description="Also round the queries, keys and values to the activation bits, a token at a time."
    )


def prepare(
    block: CalibratedBlock, setting: QuantSetting, options: SmoothQuantOptions, log: Callable[[str], None]
) -> None:
    """Folds the smoothing of a block into its norms and the linears behind them."""
    maxima: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        largest = x.float().abs().amax(tuple(range(x.dim() - 1)))
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    block.watch([names[0] for _, names in SMOOTHED], see)
    for norm, names in SMOOTHED:
        linears = [block.module.get_submodule(name) for name in names]
        scales = smoothing(maxima[names[0]], [linear.weight for linear in linears], options.alpha)
        fold(block.module.get_submodule(norm), linears, scales)


def smoothing(maxima: torch.Tensor, weights: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """s [n] from the activations' `maxima` [n] and the `weights` [m_i, n] of all linears that share them."""
    largest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0).clamp(min=SMALLEST)
    scales = (maxima.clamp(min=SMALLEST).pow(alpha) / largest.pow(1 - alpha)).clamp(min=SMALLEST)
    return torch.where(maxima == 0, torch.ones_like(scales), scales)


def quantize(layer: Layer) -> IntActivations:
    """The weight, smoothed before, rounded row by row."""
    codes, scales = int_activations.quantize_rows(layer.weight, layer.bits)
    rounds_output = layer.options.attention_inputs and layer.required_statistics.linear in SMOOTHED[0][1]
    return int_activations.IntActivations.pack(codes, scales, layer.bits, layer.setting.a_bits, rounds_output)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: SmoothQuantOptions) -> float:
    """Bits per weight: codes and a scale per row."""
    return grouped_bits(out_features, in_features, int(setting.w_bits), setting.group_size, zero_points=False)


METHOD = Method(
    card=MethodCard(
        name="smoothquant",
        title="SmoothQuant",
        idea="Compute in integers: round activations as well as weights. Activations have a few channels far larger "
        "than the rest, which ruin their grid; dividing those channels in the norm and multiplying the weights behind "
        "it moves the difficulty to where it can be borne.",
        formula=r"Y = \big(X\,\mathrm{diag}(s)^{-1}\big)\big(W\,\mathrm{diag}(s)\big)^\top,\quad "
        r"s_j = \frac{\max_t |X_{tj}|^{\alpha}}{\max_r |W_{rj}|^{1-\alpha}}",
        stored="b-bit codes and a 16-bit scale per row; activations are rounded as they come, the smoothing is folded "
        "into norms",
        bits=(2, 3, 4, 5, 6, 7, 8),
        a_bits=(4, 5, 6, 7, 8),
        grouped=False,
        calibrated=True,
        reference="Xiao et al., SmoothQuant: accurate and efficient post-training quantization for large language "
        "models",
        url="https://arxiv.org/abs/2211.10438",
    ),
    Options=SmoothQuantOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    prepare=prepare,
    original_inputs=True,
    hessian=False,
    input_tokens=ERROR_TOKENS,
)
