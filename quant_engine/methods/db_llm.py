r"""DB-LLM: two binary planes with a learnt scale each for every group of weights, and distillation of the whole model.

Flexible dual binarization. With step size s a 2-bit weight is w_hat = a1 b1 + a2 b2, b1 and b2 in {0, 1}, at first
a1 = 2s and a2 = -s. The scales of all groups are then trained, independently of each other; the full-precision weights
w stay, and the planes follow from them and the scales in every step:

    b1 = step(w - (a1 + a2) / 2)          b2 = step(-(w - a1 b1 - a2 / 2))

Deviation-aware distillation. The unquantized model is the teacher. At each position, with its distribution p and the
student's q over V tokens, and CE = -sum p log q,

    loss = mean CE + lambda * mean( h^gamma CE )          h = (H(p) + H(q)) / (2 log V)

so that positions at which both are undecided count more.

Chen et al., DB-LLM: accurate dual-binarization for efficient LLMs, arXiv 2402.11960. There is no reference code. From
the paper are the planes, the scales' first values, that the scales alone are trained, and that positions are weighted
by teacher-student entropy; the form of that weight, learning rate, steps and batch are ours. Scales are learnt as
a1 = 2s exp(t) and a2 = -a1 sigmoid(r), so that a1 > 0 > a2 and a1 + a2 > 0 always hold, which keeps the levels in
order; a group may have all signs flipped. The texts are the calibration windows and others that the teacher writes
itself (first token random, three to five greedy ones, then sampled, as in LLM-QAT).

The step size s is by default the one with the least squared error among 100, for the better of the two signs;
`minmax` takes max|w| / 2 instead; `gptq` lets the columns of a weight make up for each other's errors on that grid
(gptq.py), and trains with the weights as corrected then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from quant_engine import disk
from quant_engine.deferred import deferred
from quant_engine.methods.contract import Layer, Method, MethodCard, Options, Training
from quant_engine.methods.gptq import clear_dead_columns, compensate, inverse_factor
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.packing import packed_bits

if TYPE_CHECKING:
    from torch import nn

    from quant_engine.weights.dual_binary import DualBinary

torch = deferred("torch")
safetensors = deferred("safetensors.torch")
checkpoint = deferred("torch.utils.checkpoint")
calibration = deferred("quant_engine.methods.block")
dual_binary = deferred("quant_engine.weights.dual_binary")
grouped = deferred("quant_engine.weights.grouped")

STEPS_TRIED = 100
SMALLEST_SHARE = 0.2
"""Step sizes are searched from this share of the min-max one up to the whole."""
BETAS = (0.9, 0.95)
WARM_UP = 0.02
LARGEST_GRADIENT = 1.0
TOKENS_AT_ONCE = 2048
"""Tokens that go through the model together in training; a batch may take several passes."""
LOGITS_AT_ONCE = 512
"""Positions whose logits are in memory together."""
WRITTEN_AT_ONCE = 32
SAVED_EVERY = 60.0
"""Seconds between the states from which a killed training goes on."""


class DbLlmOptions(Options):
    init: Literal["l2", "minmax", "gptq"] = Field("l2", description="How the first scales are found.")
    steps: int = Field(200, ge=0, le=100_000, description="Training steps; 0 leaves the first scales.")
    batch: int = Field(8, ge=1, le=1024, description="Windows that each training step looks at.")
    learning_rate: float = Field(1e-3, gt=0, le=0.1, description="Relative to the size of each scale.")
    generated: int = Field(
        64,
        ge=0,
        le=65536,
        description="Windows that the unquantized model writes itself, added to the calibration text.",
    )
    deviation: float = Field(
        1.0, ge=0, le=100, description="Lambda: how much more positions count at which the models are undecided."
    )
    gamma: float = Field(1.0, gt=0, le=10, description="The power of that indecision.")


def quantize(layer: Layer) -> DualBinary:
    """The weight as training has left its planes and scales."""
    rows, columns = layer.weight.shape
    with torch.device("meta"):
        stored = dual_binary.DualBinary(rows, columns, layer.setting.group_size or columns)
    trained = layer.required_statistics.trained
    stored.planes, stored.scales = trained["planes"], trained["scales"]
    return stored


def train(training: Training) -> dict[str, torch.Tensor]:
    """The planes and scales of every linear."""
    student = make_student(training)
    if training.options.steps:
        distill(training, student)
    with torch.no_grad():
        return {
            f"{name}.{key}": buffer
            for name, dual in student.weights.items()
            for key, buffer in dual.packed().named_buffers()
        }


@dataclass
class DualWeight:
    """A weight while it is trained: `latent` [m, n] gives the planes, `moves` [2, m, groups] what is learnt.

    a1 = start * exp(moves[0]) and a2 = -a1 * sigmoid(moves[1]); all zeros leave a1 = start, a2 = -start / 2.
    """

    latent: torch.Tensor
    start: torch.Tensor
    moves: nn.Parameter
    group: int

    def scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.start * self.moves[0].exp()
        return first, -first * self.moves[1].sigmoid()

    def dense(self) -> torch.Tensor:
        """w_hat [m, n] in the type of `latent`, differentiable in `moves` with the planes as they are now."""
        first, second = self.scales()
        with torch.no_grad():
            bits = dual_binary.planes(self.latent, first, second, self.group)
        return dual_binary.compose(*bits, first, second)[:, : self.latent.shape[1]].to(self.latent.dtype)

    def packed(self) -> DualBinary:
        return dual_binary.DualBinary.pack(self.latent, *self.scales(), self.group)


class Student:
    """The model with dual-binarized weights, in the same modules as the teacher's; `teaching` says who answers."""

    def __init__(self) -> None:
        self.weights: dict[str, DualWeight] = {}
        self.teaching = False

    def take(self, name: str, linear: nn.Module, dual: DualWeight) -> None:
        """Makes `linear` multiply by its dual weight, unless the teacher is to answer."""
        self.weights[name] = dual

        def forward(x: torch.Tensor) -> torch.Tensor:
            weight = linear.weight if self.teaching else dual.dense()
            return torch.nn.functional.linear(x, weight, linear.bias)

        linear.forward = forward

    def hidden(self, decoder: nn.Module, ids: torch.Tensor, *, teaching: bool) -> torch.Tensor:
        """What the decoder makes of `ids` [windows, length], before the output head."""
        self.teaching = teaching
        try:
            return decoder(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            self.teaching = False


def make_student(training: Training) -> Student:
    """All linears with their first scales; for `gptq` block by block, behind the blocks already quantized."""
    student, init = Student(), training.options.init
    blocks = training.decoder.layers
    with torch.no_grad():
        if init == "gptq":
            hidden, kwargs = calibration.first_inputs(training.decoder, training.windows)
        for index, module in enumerate(blocks):
            training.progress(0, f"first scales of block {index + 1} of {len(blocks)}")
            block = (
                calibration.CalibratedBlock(module, hidden, kwargs, training.check_stop, training.at_once)
                if init == "gptq"
                else None
            )
            for names in training.sets:
                hessian = _hessian(block, names[0]) if block else None
                for name in names:
                    linear = module.get_submodule(name)
                    group = training.setting.group_size or linear.in_features
                    latent, start = linear.weight, first_scale(linear.weight.float(), group, init)
                    if hessian is not None:
                        latent = corrected(latent.float(), start, group, hessian, training.log).to(latent.dtype)
                    moves = torch.nn.Parameter(torch.zeros((2, *start.shape), device=start.device))
                    student.take(f"{index}.{name}", linear, DualWeight(latent, start, moves, group))
            if block:
                block.advance(hidden)
            training.check_stop()
    return student


def first_scale(weight: torch.Tensor, group: int, init: str) -> torch.Tensor:
    """a1 = 2s, or -2s where the mirrored grid is better, for each group of `weight` [m, n]: [m, groups]."""
    slices = grouped.in_groups(weight, group)
    largest = (slices.abs().amax(-1) / 2).clamp(min=grouped.SMALLEST_SCALE)
    if init == "minmax":
        return 2 * largest
    least, best = torch.full_like(largest, torch.inf), largest
    for step in range(STEPS_TRIED):
        size = largest * (1 - (1 - SMALLEST_SHARE) * step / STEPS_TRIED)
        scaled = slices / size[..., None]
        for sign in (1, -1):
            low, high = (-1, 2) if sign == 1 else (-2, 1)
            error = (scaled - scaled.round().clamp_(low, high)).square_().sum(-1) * size.square()
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, sign * size, best)
    return 2 * best


def corrected(
    weight: torch.Tensor, start: torch.Tensor, group: int, hessian: torch.Tensor, log: Callable[[str], None]
) -> torch.Tensor:
    """`weight` [m, n] with each column as GPTQ had corrected it when it was fixed to its group's four levels."""
    hessian = clear_dead_columns(weight := weight.clone(), hessian)
    factor = inverse_factor(hessian, log)
    latent = torch.empty_like(weight)

    def fix(column: int, values: torch.Tensor) -> torch.Tensor:
        latent[:, column] = values
        first = start[:, column // group, None]
        bits = dual_binary.planes(values[:, None], first, -first / 2, 1)
        return dual_binary.compose(*bits, first, -first / 2)[:, 0]

    compensate(weight, factor, fix)
    return latent


def _hessian(block: Any, name: str) -> torch.Tensor:
    """(2 / samples) * sum of x x^T over the inputs of a linear."""
    total = None

    def see(_: str, x: torch.Tensor) -> None:
        nonlocal total
        x = x.reshape(-1, x.shape[-1]).float()
        total = torch.zeros((x.shape[1],) * 2, device=x.device) if total is None else total
        total.addmm_(x.T, x, alpha=2 / len(block.hidden))

    block.watch([name], see)
    return total


def distill(training: Training, student: Student) -> None:
    """Trains the scales so that the student answers as the teacher. Goes on where a killed training stood."""
    options = training.options
    windows = _windows(training, student)
    parameters = {name: dual.moves for name, dual in student.weights.items()}
    optimizer = torch.optim.AdamW(parameters.values(), betas=BETAS, weight_decay=0.0)
    state = training.folder / "state.safetensors"
    done = _restore(state, parameters, optimizer)
    if training.windows.device.type == "cuda":
        # The weights made dense for a block are made again on the way back instead of being kept.
        training.model.activation_checkpointing_enable()
        training.model.train()
    at_once = training.at_once or max(1, TOKENS_AT_ONCE // windows.shape[1])
    saved = time.monotonic()
    for step in range(done, options.steps):
        loss = 0.0
        ids = windows[_picks(training.seed, step, options.batch, len(windows))]
        for chunk in ids.split(at_once):
            part = distillation_loss(training, student, chunk) * len(chunk) / len(ids)
            part.backward()
            loss += part.item()
            training.check_stop()
        if not math.isfinite(loss):
            raise UserError(f"Training diverged in step {step + 1}; try a smaller learning_rate.")
        torch.nn.utils.clip_grad_norm_(parameters.values(), LARGEST_GRADIENT)
        optimizer.param_groups[0]["lr"] = options.learning_rate * _schedule(step, options.steps)
        optimizer.step()
        optimizer.zero_grad()
        training.progress((step + 1) / options.steps, f"step {step + 1} of {options.steps}, loss {loss:.4g}")
        if step == 0 or (step + 1) % max(1, options.steps // 20) == 0:
            training.log(f"step {step + 1} of {options.steps}: loss {loss:.4f}")
        if time.monotonic() - saved > SAVED_EVERY:
            _save(state, parameters, optimizer, step + 1)
            saved = time.monotonic()


def distillation_loss(training: Training, student: Student, ids: torch.Tensor) -> torch.Tensor:
    """The loss on `ids` [windows, length], over all positions; logits are made a few positions at a time."""
    with torch.no_grad():
        taught = student.hidden(training.decoder, ids, teaching=True).flatten(0, 1)
    answered = student.hidden(training.decoder, ids, teaching=False).flatten(0, 1)
    head, options = training.model.lm_head, training.options

    def part(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return deviation_aware(head(ours), head(theirs), options.deviation, options.gamma).sum()

    parts = [
        checkpoint.checkpoint(part, ours, theirs, use_reentrant=False)
        for ours, theirs in zip(answered.split(LOGITS_AT_ONCE), taught.split(LOGITS_AT_ONCE), strict=True)
    ]
    return sum(parts) / len(answered)


def deviation_aware(student: torch.Tensor, teacher: torch.Tensor, deviation: float, gamma: float) -> torch.Tensor:
    """The loss of each position, from logits [positions, vocabulary]."""
    log_q, log_p = (torch.log_softmax(logits.float(), -1) for logits in (student, teacher))
    p = log_p.exp()
    cross = -(p * log_q).sum(-1)
    with torch.no_grad():
        entropy = -(p * log_p).sum(-1) - (log_q.exp() * log_q).sum(-1)
        undecided = (entropy / (2 * math.log(student.shape[-1]))).clamp(0, 1)
    return cross * (1 + deviation * undecided.pow(gamma))


def _schedule(step: int, steps: int) -> float:
    """The share of the learning rate: up in a straight line, then down along a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _picks(seed: int, step: int, batch: int, count: int) -> torch.Tensor:
    """Which windows a step looks at: all in turn, in a new order each time round."""
    picks = []
    for index in range(step * batch, (step + 1) * batch):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index // count)
        picks.append(torch.randperm(count, generator=generator)[index % count])
    return torch.stack(picks)


def _windows(training: Training, student: Student) -> torch.Tensor:
    """The calibration windows and those that the teacher writes, which are kept for a training that goes on."""
    if not training.options.generated:
        return training.windows
    path = training.folder / "windows.safetensors"
    if not path.exists():
        written = written_by_teacher(training, student)
        _write(path, {"windows": written})
    written = safetensors.load_file(path)["windows"].to(training.windows.device)
    return torch.cat([training.windows, written])


def written_by_teacher(training: Training, student: Student) -> torch.Tensor:
    """Windows [generated, length]: a random first token, three to five greedy ones, then sampled ones."""
    length, count = training.windows.shape[1], training.options.generated
    generator = torch.Generator().manual_seed(training.seed)
    head, device = training.model.lm_head, training.windows.device
    parts = []
    student.teaching = True
    with torch.no_grad():
        for start in range(0, count, WRITTEN_AT_ONCE):
            rows = min(WRITTEN_AT_ONCE, count - start)
            ids = torch.randint(head.out_features, (rows, 1), generator=generator)
            greedy = torch.randint(3, 6, (rows, 1), generator=generator)
            cache = None
            for position in range(1, length):
                out = training.decoder(input_ids=ids[:, -1:].to(device), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                logits = head(out.last_hidden_state[:, -1]).float().cpu()
                sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                best = logits.argmax(-1, keepdim=True)
                ids = torch.cat([ids, torch.where(position <= greedy, best, sampled)], 1)
                training.check_stop()
            parts.append(ids)
            training.progress(0, f"the model writes: {start + rows} of {count} texts")
    student.teaching = False
    return torch.cat(parts)


def _save(path: Any, parameters: dict[str, nn.Parameter], optimizer: Any, step: int) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in parameters.items():
        tensors[f"{name}.moves"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = value
    _write(path, tensors)


def _restore(path: Any, parameters: dict[str, nn.Parameter], optimizer: Any) -> int:
    """Fills parameters and optimizer from a saved state. Returns the number of steps done, 0 without one."""
    if not path.exists():
        return 0
    tensors = safetensors.load_file(path)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"{name}.moves"])
        optimizer.state[parameter] = {
            key: tensors[f"{name}.{key}"].to(parameter.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(tensors["step"])


def _write(path: Any, tensors: dict[str, torch.Tensor]) -> None:
    with disk.replacing(path) as aside:
        safetensors.save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: DbLlmOptions) -> float:
    """Bits per weight: two planes, and two scales per group."""
    groups = out_features * -(-in_features // (setting.group_size or in_features))
    return (packed_bits(2 * out_features, in_features, 1) + 2 * 16 * groups) / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="db_llm",
        title="DB-LLM",
        idea="Split 2-bit weights into two planes of zeros and ones with a scale each, and train the scales of the "
        "whole model until it answers as the unquantized one does, above all where both are undecided. "
        "The only method here whose quality is bought with training time.",
        formula=r"\hat w = \alpha_1 b_1 + \alpha_2 b_2,\quad b_1, b_2 \in \{0, 1\},\quad "
        r"\min_{\alpha}\ \mathbb{E}_t\big[(1 + \lambda h_t^{\gamma})\,\mathrm{CE}(p_t, q_t)\big]",
        stored="two 1-bit planes; per group two 16-bit scales",
        bits=(2,),
        grouped=True,
        calibrated=True,
        reference="Chen et al., DB-LLM: accurate dual-binarization for efficient LLMs",
        url="https://arxiv.org/abs/2402.11960",
    ),
    Options=DbLlmOptions,
    quantize=quantize,
    stored_bits=stored_bits,
    train=train,
)
