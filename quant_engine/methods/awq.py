r"""AWQ, activation-aware weight quantization: give the input channels that matter a finer grid, then round to nearest.

Input channel j of W is scaled by s_j > 0 and what produces the input by 1/s_j, which changes nothing but the rounding.
With Q rounding to nearest by groups, and f the module that uses the scaled linears (the attention, the MLP, or the
linear itself),

    r* = argmin over r in {0, 1/20, …, 19/20} of  mean ( f(X; W) - f(X; Q(W diag(s)) diag(s)^-1) )^2
    s_j = a_j^r / sqrt(max a^r * min a^r)          a_j = mean over tokens of |x_j|

Then each group's range is clipped to +-c, with c / max|w| in {1, 0.95, …, 0.55} that gives the least squared error of
the group's own part of the output, on about 512 tokens. The query and key projections are not clipped.

Lin et al., AWQ: activation-aware weight quantization for LLM compression and acceleration, arXiv 2306.00978; reference
code mit-han-lab/llm-awq. Blocks are calibrated on the outputs of the original blocks before them, as there. r = 0 is
rounding to nearest, so the search never loses to it on its own loss. The paper's objective weighs single linears; the
reference compares whole modules, and so do we. Scales are folded into the norm or linear before, and nothing of them is
stored. Scaling the value projection for the output projection needs both to have the same shape: it is left out where
several query heads share a value head, as in the reference. Where f is one linear the loss is computed from the second
moments of its inputs, which is the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options
from quant_engine.methods.rtn import grouped_bits
from quant_engine.spec import QuantSetting

if TYPE_CHECKING:
    from torch import nn

    from quant_engine.methods.block import CalibratedBlock
    from quant_engine.weights.grouped import GroupedInt

torch = deferred("torch")
grouped = deferred("quant_engine.weights.grouped")

RATIOS = tuple(step / 20 for step in range(20))
SHRINKS = tuple(1 - step / 20 for step in range(10))
CLIP_TOKENS = 512
SMALLEST_POWER = 1e-4
"""a^r is at least this before scales are normalised."""
TOKENS_AT_ONCE = 512
"""Tokens whose losses are added up together."""
NOT_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")

SEARCHES = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn"),
    ("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj"),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
    ("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
)
"""What gets 1/s, the linears that share the input and get s, and the module whose output is compared. Scaling rows of
up_proj is exact because the MLP multiplies it in: down(silu(gate(x)) * up(x))."""
LAST_LINEARS = {"self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}
"""The linear whose output is the module's."""


class AwqOptions(Options):
    search_samples: int = Field(
        0, ge=0, description="Calibration windows that the search for scales looks at; 0 for all."
    )


def prepare(block: CalibratedBlock, setting: QuantSetting, options: AwqOptions, log: Callable[[str], None]) -> None:
    """Finds the scales of each set of linears, all on the block as it is, and then folds them in."""
    if options.search_samples:
        block = replace(block, hidden=block.hidden[: options.search_samples])
    bits, group = int(setting.w_bits), setting.group_size
    scaled_sets = []
    for producer, names, compared in SEARCHES:
        if producer.endswith("v_proj") and not _same_shape(block.module, producer, names[0]):
            continue
        ratio, scales, losses = search(block, names, compared, bits, group)
        log(f"{compared}: scales to the power {ratio:g}, loss {min(losses):.4g} ({losses[0]:.4g} without)")
        scaled_sets.append((producer, names, scales))
    for producer, names, scales in scaled_sets:
        fold(block.module.get_submodule(producer), [block.module.get_submodule(name) for name in names], scales)


def _same_shape(module: nn.Module, first: str, second: str) -> bool:
    return module.get_submodule(first).weight.shape == module.get_submodule(second).weight.shape


def search(
    block: CalibratedBlock, names: tuple[str, ...], compared: str, bits: int, group: int | None
) -> tuple[float, torch.Tensor, list[float]]:
    """The best scales for linears that share an input. The block is left as it was.

    The loss is summed over parts of the inputs, those with the largest loss at ratio 0 first, and no part is negative:
    a ratio whose sum so far is above another's whole loss is out. So all ratios begin, and those with the least sums
    are summed to their end first.

    Args:
        block: the dense block with its inputs.
        names: the linears.
        compared: the module whose output's change is the loss.
        bits, group: the grid that weights are rounded to; group None is a row.

    Returns:
        The best ratio (the first of equally good ones), its scales [in_features], and the loss at each of RATIOS: whole
        for the best and for 0, else as far as it was summed.
    """
    linears = [block.module.get_submodule(name) for name in names]
    magnitude, loss = (_linear_loss if names == (compared,) else _module_loss)(block, names[0], compared, linears)

    def weights(index: int) -> list[torch.Tensor]:
        scales = scales_of(magnitude, RATIOS[index])
        return [rounded(linear.weight.float() * scales, bits, group).div_(scales) for linear in linears]

    whole = loss.order(weights(0))
    sums = [sum(whole)] + [0.0] * (len(RATIOS) - 1)
    for index in range(1, len(RATIOS)):
        sums[index] = loss.of_part(weights(index), 0)
        block.check_stop()
    least = sums[0]
    for index in sorted(range(1, len(RATIOS)), key=sums.__getitem__):
        rounded_weights = weights(index) if len(whole) > 1 and sums[index] <= least else []
        for part in range(1, len(whole)):
            if sums[index] > least:
                break
            sums[index] += loss.of_part(rounded_weights, part)
            block.check_stop()
        least = min(least, sums[index])
    best = sums.index(min(sums))
    return RATIOS[best], scales_of(magnitude, RATIOS[best]), sums


def rounded(weight: torch.Tensor, bits: int, group: int | None) -> torch.Tensor:
    return grouped.rounded(weight, bits, group or weight.shape[1], around_zero=False)


def scales_of(magnitude: torch.Tensor, ratio: float) -> torch.Tensor:
    """s [n] from the mean |x_j| [n]: its power, centred so that the largest and the smallest are inverse."""
    power = magnitude.pow(ratio).clamp(min=SMALLEST_POWER)
    return power / (power.max() * power.min()).sqrt()


class LinearLoss:
    """The mean squared error of one linear's output, in a single part: tr((W - W') G (W - W')^T) / rows, with G the
    mean of x x^T, is the mean of ((W - W') x)^2."""

    def __init__(self, weight: torch.Tensor, moments: torch.Tensor) -> None:
        self._weight, self._moments = weight, moments

    def order(self, weights: list[torch.Tensor]) -> list[float]:
        return [self.of_part(weights, 0)]

    def of_part(self, weights: list[torch.Tensor], part: int) -> float:
        change = self._weight - weights[0]
        return ((change @ self._moments) * change).sum().item() / len(change)


class ModuleLoss:
    """The mean squared error of a module's output `expected` [items, …] for inputs `x` [items, …], by parts of items:
    whole windows for the attention, else tokens."""

    def __init__(
        self,
        output: Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        expected: torch.Tensor,
    ) -> None:
        self._output, self._x, self._expected = output, x, expected
        self._step = max(1, TOKENS_AT_ONCE // x[0, ..., 0].numel())

    def order(self, weights: list[torch.Tensor]) -> list[float]:
        """The losses of the parts, after items were put in the order of their losses, the largest first."""
        losses = torch.cat([self._losses(weights, part) for part in range(-(-len(self._x) // self._step))])
        order = losses.argsort(descending=True)
        self._x = self._x[order]
        self._expected = self._expected[order]
        return [part.sum().item() for part in losses[order].split(self._step)]

    def of_part(self, weights: list[torch.Tensor], part: int) -> float:
        return self._losses(weights, part).sum().item()

    def _losses(self, weights: list[torch.Tensor], part: int) -> torch.Tensor:
        """Of each item of a part: its share of the mean."""
        items = slice(part * self._step, (part + 1) * self._step)
        change = self._output(weights, self._x[items]).sub_(self._expected[items])
        return change.square_().flatten(1).sum(1) / self._expected.numel()


def _module_loss(
    block: CalibratedBlock, first: str, compared: str, linears: list[nn.Module]
) -> tuple[torch.Tensor, ModuleLoss]:
    """The mean |x_j| of a module's input, and the loss of its output."""
    module, last = block.module.get_submodule(compared), LAST_LINEARS[compared]
    make_output = block.module.get_submodule(last).forward  # calls no hook
    kwargs = block.kwargs if compared == "self_attn" else {}
    x, expected = torch.empty_like(block.hidden), torch.empty_like(block.hidden, dtype=torch.float32)
    windows = len(block.chunks()[0])
    unseen = {first: iter(x.split(windows)), last: iter(expected.split(windows))}
    block.watch(
        [first, last], lambda name, seen: next(unseen[name]).copy_(seen if name == first else make_output(seen))
    )
    magnitude = sum(part.float().abs().flatten(0, -2).sum(0) for part in x.split(windows)) / x[..., 0].numel()
    if not kwargs:  # tokens have no say in each other's outputs
        x, expected = x.flatten(0, -2), expected.flatten(0, -2)
    originals = [linear.weight for linear in linears]

    def output(weights: list[torch.Tensor], some: torch.Tensor) -> torch.Tensor:
        try:
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight = torch.nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
            out = module(some, **kwargs)
        finally:
            for linear, original in zip(linears, originals, strict=True):
                linear.weight = original
        return (out[0] if isinstance(out, tuple) else out).float()

    return magnitude, ModuleLoss(output, x, expected)


def _linear_loss(
    block: CalibratedBlock, first: str, compared: str, linears: list[nn.Module]
) -> tuple[torch.Tensor, LinearLoss]:
    """The mean |x_j| of a linear's input, and the loss of its output."""
    weight = linears[0].weight.float()
    moments = torch.zeros((weight.shape[1],) * 2, device=weight.device)
    magnitude = torch.zeros(weight.shape[1], device=weight.device)
    tokens = block.hidden.shape[0] * block.hidden.shape[1]

    def see(name: str, x: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        moments.addmm_(x.T, x, alpha=1 / tokens)
        magnitude.add_(x.abs().sum(0) / tokens)

    block.watch([first], see)
    return magnitude, LinearLoss(weight, moments)


def fold(producer: nn.Module, linears: list[nn.Module], scales: torch.Tensor) -> None:
    """Multiplies the columns of `linears` by `scales` [in_features] and divides by them what produces their input: the
    weight of a norm, or the rows of a linear; its bias too, if it has one."""
    for linear in linears:
        linear.weight.data = (linear.weight.float() * scales).to(linear.weight.dtype)
    across = scales[:, None] if producer.weight.dim() == 2 else scales
    producer.weight.data = (producer.weight.float() / across).to(producer.weight.dtype)
    if getattr(producer, "bias", None) is not None:
        producer.bias.data = (producer.bias.float() / scales).to(producer.bias.dtype)


def quantize(layer: Layer) -> GroupedInt:
    """The weight, scales folded in, clipped and rounded to its grid."""
    weight, bits, statistics = layer.weight, layer.bits, layer.required_statistics
    group = layer.setting.group_size or weight.shape[1]
    if statistics.linear not in NOT_CLIPPED:
        limits = clip_limits(weight, statistics.inputs, bits, group)
        limits = limits.repeat_interleave(group, 1)[:, : weight.shape[1]]
        weight = torch.minimum(torch.maximum(weight, -limits), limits)
    scales, zeros = grouped.grids(weight, bits, group, around_zero=False)
    codes = grouped.round_to_grid(weight, scales, zeros, bits, group)
    return grouped.GroupedInt.pack(codes, scales, zeros, bits, group)


def clip_limits(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The largest magnitude to keep in each group [m, ceil(n / g)] of `weight` [m, n], for `inputs` [tokens, n].

    It minimises the squared error of the group's own part of the output; the larger of equally good limits is kept.
    """
    slices = grouped.in_groups(weight, group)
    # ||X d|| = ||R d|| for X = QR, and R has no more rows than a group has columns.
    root = torch.linalg.qr(grouped.in_groups(inputs.to(weight.dtype), group).transpose(0, 1), mode="r").R
    largest = slices.abs().amax(-1)
    best, limits = torch.full_like(largest, torch.inf), largest
    for shrink in SHRINKS:
        limit = largest * shrink
        wide = limit.repeat_interleave(group, 1)[:, : weight.shape[1]]
        clipped = torch.minimum(torch.maximum(weight, -wide), wide)
        change = grouped.rounded(clipped, bits, group, around_zero=False) - weight
        # [groups, rows, columns of the group] times [groups, columns, rank].
        parts = grouped.in_groups(change, group).transpose(0, 1) @ root.transpose(1, 2)
        error = parts.square().sum(-1).T
        better = error < best
        best, limits = torch.where(better, error, best), torch.where(better, limit, limits)
    return limits


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: AwqOptions) -> float:
    """Bits per weight: codes, scales and zero points; the channels' scales are folded away."""
    return grouped_bits(out_features, in_features, int(setting.w_bits), setting.group_size)


METHOD = Method(
    card=MethodCard(
        name="awq",
        title="AWQ",
        idea="Scale up the few input channels that carry the largest activations before rounding, so that they get a "
        "finer grid, and scale their source down. The scales are searched block by block, and cost nothing to store.",
        formula=r"\min_r \big\| f(X; W) - f\big(X; Q(W\,\mathrm{diag}(s))\,\mathrm{diag}(s)^{-1}\big)\big\|^2,\quad "
        r"s_j \propto \big(\tfrac1T\textstyle\sum_t |x_{tj}|\big)^r",
        stored="b-bit codes; per group a 16-bit scale and a b-bit zero point; the scales are folded into norms",
        bits=(1, 2, 3, 4, 5, 6, 7, 8),
        grouped=True,
        calibrated=True,
        reference="Lin et al., AWQ: activation-aware weight quantization for LLM compression and acceleration",
        url="https://arxiv.org/abs/2306.00978",
    ),
    Options=AwqOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    prepare=prepare,
    original_inputs=True,
    input_tokens=CLIP_TOKENS,
)
